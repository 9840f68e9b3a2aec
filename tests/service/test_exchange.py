"""What is kept of requests: names, counts and times."""

from fastapi import FastAPI, Request
from fastapi.testclient import TestClient

from instructrec_jax.service.exchange import Exchange, Observed


def test_every_request_is_shown_once_with_its_route() -> None:
    seen: list[Exchange] = []
    app = FastAPI()

    @app.get("/films/{name}")
    async def film(name: str, request: Request) -> str:
        request.state.exchange.counts["texts"] += 2
        if name == "bad":
            raise RuntimeError("private words")
        return name

    app.add_middleware(Observed, observers=[seen.append])
    with TestClient(app, raise_server_exceptions=False) as client:
        said = client.get("/films/alien", headers={"X-Request-Id": "mine-1"})
        client.get("/films/bad", headers={"X-Request-Id": "not mine\t"})
        client.get("/none")
    assert said.headers["x-request-id"] == "mine-1"
    assert [(each.route, each.status) for each in seen] == [
        ("/films/{name}", 200),
        ("/films/{name}", 500),
        ("unknown", 404),
    ]
    assert seen[0].request_id == "mine-1" and len(seen[1].request_id) == 32
    assert seen[0].counts == {"texts": 2} and 0 < seen[0].first <= seen[0].seconds  # type: ignore[operator]
