"""Who comes in: keys on every route, their limits, and the end of the service. (`instructrec_jax.service.routes.parts`
too)"""

import asyncio
import base64
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hostile
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from instructrec_jax.service.app import make_app
from instructrec_jax.service.batching import QueueFull
from instructrec_jax.service.door import OPEN, Door
from instructrec_jax.service.errors import ServiceError
from instructrec_jax.service.keys import Keys, Strangers, add_key, revoke_key
from instructrec_jax.service.logs import log_exchange, logs_to
from instructrec_jax.service.models import open_service
from instructrec_jax.service.routes.parts import in_time
from instructrec_jax.service.settings import LimitsConfig, ModelConfig, ServeConfig

SECRET = "Ada Lovelace, 10 St James Square"


@pytest.fixture(scope="module")
def world(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    folder = tmp_path_factory.mktemp("door")
    file, log, now = folder / "keys.json", folder / "serve.log", [0.0]
    keys = {
        "all": add_key(file, "all"),
        "ranks": add_key(file, "ranks", routes=["rerank"]),
        "second": add_key(file, "second", models=["second"]),
        "metrics": add_key(file, "metrics", roles=["metrics"]),
        "admin": add_key(file, "admin", routes=[], models=[], roles=["admin"]),
        "few": add_key(file, "few", per_minute=2),
        "short": add_key(file, "short", tokens_per_day=5),
        "leaves": add_key(file, "leaves"),
    }
    models = [ModelConfig(str(checkpoint), name="first"), ModelConfig(str(checkpoint), name="second")]
    config = ServeConfig(models=models, cors_origins=["https://shop.example"], limits=LimitsConfig(body_bytes=5000))
    door = Door(Keys(file, lambda: now[0]), strangers=Strangers(10_000))
    with logs_to(str(log)) as form:
        app = make_app(open_service(config), [log_exchange], door)
        with TestClient(app, raise_server_exceptions=False) as client:
            form.answering = True
            yield SimpleNamespace(client=client, app=app, keys=keys, file=file, now=now, door=door, log=log)


def post(world: SimpleNamespace, key: str, body: object, path: str = "/v1/embeddings", **headers: str) -> Any:
    return world.client.post(path, json=body, headers={"Authorization": f"Bearer {world.keys[key]}"} | headers)


def test_every_route_needs_a_key(world: SimpleNamespace) -> None:
    routes = [*hostile.routes_of(world.app.openapi()), hostile.Route("GET", "/", None)]
    walked = set()
    for route in world.app.routes:  # included routers stand for their routes
        walked |= {each.path for each in getattr(route, "effective_route_contexts", lambda one=route: [one])()}
    assert walked == {route.path for route in routes} and {"/metrics", "/openapi.json", "/v1/models"} < walked
    for method, path in [*((route.method, route.path) for route in routes), ("GET", "/none"), ("GET", "/docs")]:
        answer = world.client.request(method, path)
        wrong = world.client.request(method, path, headers={"Authorization": f"Bearer {world.keys['all'][:-1]}x"})
        if path in OPEN:
            assert {answer.status_code, wrong.status_code} <= {200, 503}
            continue
        assert (answer.status_code, wrong.status_code) == (401, 401), path
        assert answer.json()["error"]["code"] == "invalid_api_key" and answer.headers["www-authenticate"] == "Bearer"
    assert world.client.get("/none", headers={"Authorization": f"Bearer {world.keys['all']}"}).status_code == 404


def test_who_tries_many_keys_waits_and_a_valid_key_passes(
    world: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(world.door, "strangers", Strangers(2, lambda: 0.0))
    wrong = [world.client.get("/v1/models", headers={"Authorization": f"Bearer {n}"}) for n in range(3)]
    assert [answer.status_code for answer in wrong] == [401, 401, 429]
    assert wrong[2].headers["retry-after"] == "31" and wrong[2].json()["error"]["code"] == "failed_keys"
    assert world.client.get("/v1/models", headers={"Authorization": f"Bearer {world.keys['all']}"}).status_code == 200


def test_the_dependency_alone_refuses_too(world: SimpleNamespace) -> None:
    bare = FastAPI(dependencies=make_app(world.app.state.service).router.dependencies)
    bare.state.door = world.door

    @bare.get("/page")
    def page() -> None: ...

    @bare.middleware("http")
    async def without_layers(request: Any, call_next: Any) -> Any:
        request.state.exchange = SimpleNamespace(caller=None)
        return await call_next(request)

    with pytest.raises(ServiceError, match="a valid key is needed"):
        TestClient(bare).get("/page")


def test_routes_models_and_roles(world: SimpleNamespace) -> None:
    text = {"input": "love"}
    assert post(world, "all", text).json()["model"] == "first"
    assert post(world, "admin", text).status_code == 200
    refused = post(world, "ranks", text)
    assert refused.status_code == 403 and "its routes are: rerank" in refused.json()["error"]["message"]
    assert post(world, "second", text).json()["model"] == "second"  # the first that it may use
    refused = post(world, "second", {**text, "model": "first"})
    assert refused.status_code == 403 and refused.json()["error"]["param"] == "model"
    listed = world.client.get("/v1/models", headers={"Authorization": f"Bearer {world.keys['second']}"}).json()
    assert [each["id"] for each in listed["data"]] == ["second"]
    for key, status in (("all", 403), ("metrics", 200), ("admin", 200)):
        assert (
            world.client.get("/metrics", headers={"Authorization": f"Bearer {world.keys[key]}"}).status_code == status
        )
    assert post(world, "metrics", text).status_code == 403


def test_a_browser_asks_for_the_key(world: SimpleNamespace) -> None:
    asked = world.client.get("/", headers={"Accept": "text/html"})
    assert asked.status_code == 401 and asked.headers["www-authenticate"].startswith("Basic realm=")
    given = base64.b64encode(f"anyone:{world.keys['all']}".encode()).decode()
    assert world.client.get("/", headers={"Authorization": f"Basic {given}"}).status_code == 200


def test_limits_of_a_key(world: SimpleNamespace) -> None:
    answers = [post(world, "few", {"input": "love"}) for _ in range(3)]
    assert [each.status_code for each in answers] == [200, 200, 429]
    assert 1 <= int(answers[2].headers["retry-after"]) <= 31 and answers[2].json()["error"]["code"] == "per_minute"
    assert post(world, "all", {"input": "love"}).status_code == 200
    answers = [post(world, "short", {"input": ["love", "war"]}) for _ in range(2)]
    assert [each.status_code for each in answers] == [200, 429]
    assert answers[0].json()["usage"]["total_tokens"] >= 5 and int(answers[1].headers["retry-after"]) <= 86401


def test_revoked_without_a_restart(world: SimpleNamespace) -> None:
    assert post(world, "leaves", {"input": "love"}).status_code == 200
    revoke_key(world.file, "leaves")
    world.now[0] += 1.0
    assert post(world, "leaves", {"input": "love"}).status_code == 401


def test_other_origins(world: SimpleNamespace) -> None:
    wish = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    allowed = world.client.options("/v1/embeddings", headers={"Origin": "https://shop.example", **wish})
    assert allowed.headers["access-control-allow-origin"] == "https://shop.example"
    other = world.client.options("/v1/embeddings", headers={"Origin": "https://evil.example", **wish})
    assert "access-control-allow-origin" not in other.headers
    refused = world.client.post("/v1/embeddings", headers={"Origin": "https://shop.example"})
    assert refused.status_code == 401 and "access-control-allow-origin" in refused.headers


def test_the_description_has_the_errors_and_the_keys(world: SimpleNamespace) -> None:
    found = world.client.get("/openapi.json", headers={"Authorization": f"Bearer {world.keys['all']}"}).json()
    assert (
        found["openapi"].startswith("3.") and found["components"]["securitySchemes"]["HTTPBearer"]["scheme"] == "bearer"
    )
    embeddings = found["paths"]["/v1/embeddings"]["post"]
    form = embeddings["responses"]["4XX"]["content"]["application/json"]["schema"]["$ref"]
    assert form == "#/components/schemas/ErrorForm" and "HTTPValidationError" not in found["components"]["schemas"]
    assert embeddings["security"] == [{"HTTPBearer": []}]


def test_ambiguous_requests_and_the_end(world: SimpleNamespace) -> None:
    both = {"transfer-encoding": "chunked", "content-length": "2", "Authorization": f"Bearer {world.keys['all']}"}
    answer = world.client.post("/v1/embeddings", content=b"{}", headers=both)
    assert answer.status_code == 400 and answer.headers["connection"] == "close"
    world.door.closing = True
    try:
        assert [world.client.get(path).status_code for path in ("/health", "/ready", "/")] == [200, 503, 503]
        closed = post(world, "all", {"input": "love"})
        assert closed.status_code == 503 and closed.headers["retry-after"] == "5"
    finally:
        world.door.closing = False
    assert world.door.inside == 0


def test_nothing_that_was_said_is_anywhere_else(world: SimpleNamespace, capfd: pytest.CaptureFixture[str]) -> None:
    """Good, bad and failing requests to every route, with the same words in each field, name, path and query."""
    said = ""
    key = {"Authorization": f"Bearer {world.keys['all']}", "Content-Type": "application/json"}
    for route in hostile.routes_of(world.app.openapi()):
        bodies: list[Any] = [{}]
        if route.schema is not None:
            rng = hostile.random.Random(1)
            bodies = [hostile.fitting(route.schema, rng, SECRET) for _ in range(6)]
            bodies += [{**bodies[0], name: SECRET} for name in route.schema.get("properties", {})]
            bodies += [{**bodies[0], name: [SECRET]} for name in route.schema.get("properties", {})]
            bodies += [{**bodies[0], SECRET: 1}, {**bodies[0], "model": "first", "input": SECRET * 500}, [SECRET]]
        for body in bodies:
            path = f"{route.path}?model={SECRET}&q={SECRET}"
            answer = world.client.request(route.method, path, content=json.dumps(body), headers=key)
            said += answer.text if answer.status_code >= 400 else ""
    for torn in (f'{{"input": "{SECRET}"', f'{{"{SECRET}": 1, "{SECRET}": 2}}', f"{SECRET}", f'["{SECRET}" "a"]'):
        said += world.client.post("/v1/embeddings", content=torn, headers=key).text
    model = world.app.state.service.models["first"]
    with pytest.MonkeyPatch.context() as patch:

        async def broken(*args: object, **options: object) -> None:
            raise RuntimeError(f"cannot read {SECRET}")

        async def refused(*args: object, **options: object) -> None:
            raise ValueError(f"cannot read {SECRET!r}: too long")

        for fails, status in ((broken, 500), (refused, 422)):
            patch.setattr(type(model), "ask", fails)
            answer = post(world, "all", {"input": SECRET})
            assert answer.status_code == status
            said += answer.text
    said += world.client.get("/metrics", headers={"Authorization": f"Bearer {world.keys['metrics']}"}).text
    said += world.client.get(f"/{SECRET}", headers={"Authorization": f"Bearer {world.keys['all']}"}).text
    logging.getLogger().handlers[0].flush()
    said += world.log.read_text() + "".join(capfd.readouterr())
    words = ("Ada", "Lovelace", "James")
    found = [said[max(0, said.find(word) - 200) : said.find(word) + 100] for word in words if word in said]
    assert found == [] and '"route": "/v1/embeddings"' in said and '"key": "all"' in said
    lines = [json.loads(line) for line in world.log.read_text().splitlines()]
    assert {"request", "a request failed"} <= {line["message"] for line in lines}


# ------------------------------------------------------------------ the time of an answer


class Asking:
    """A request whose client leaves after some seconds."""

    def __init__(self, leaves: float):
        self.leaves = leaves

    async def receive(self) -> dict[str, str]:
        await asyncio.sleep(self.leaves)
        return {"type": "http.disconnect"}


@pytest.mark.parametrize(
    ("leaves", "takes", "error", "status", "after"),
    [
        (60.0, 0.0, None, None, None),
        (60.0, 60.0, None, 504, None),
        (0.0, 60.0, None, 499, None),
        (60.0, 0.0, ValueError("too long"), 422, None),
        (60.0, 0.0, QueueFull("3 wait.", 2.5), 429, "3"),
        (60.0, 0.0, QueueFull("3 wait.", 0.0), 429, "1"),
        (60.0, 0.0, QueueFull("3 wait.", 9e9), 429, "600"),
    ],
)
def test_in_time(leaves: float, takes: float, error: Exception | None, status: int | None, after: str | None) -> None:
    ended: list[str] = []

    async def answer() -> str:
        try:
            await asyncio.sleep(takes)
            if error is not None:
                raise error
            return "answer"
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    async def ask() -> str:
        service: Any = SimpleNamespace(config=ServeConfig(limits=LimitsConfig(seconds=0.05)))
        request: Any = Asking(leaves)
        try:
            return await in_time(service, request, answer())
        finally:
            await asyncio.sleep(0)

    if status is None:
        assert asyncio.run(ask()) == "answer"
        return
    with pytest.raises(ServiceError) as found:
        asyncio.run(ask())
    assert found.value.status == status and found.value.headers.get("Retry-After") == after
    assert ended == (["cancelled"] if takes else [])
