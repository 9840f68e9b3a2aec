"""One form for every error, and a failure that stays alone and silent."""

import json

import pytest
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from fastapi.testclient import TestClient
from pydantic import BaseModel, ConfigDict

from instructrec_jax.service.errors import Contained, ServiceError, add_handlers
from instructrec_jax.service.exchange import Exchange, Observed
from instructrec_jax.service.models import Service
from instructrec_jax.service.settings import ServeConfig

SECRET = "Ada Lovelace lives here"


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    text: str
    count: int = 0


@pytest.fixture
def world() -> tuple[TestClient, list[Exchange]]:
    app, seen = FastAPI(), list[Exchange]()
    app.state.service = Service(ServeConfig(), {})

    @app.post("/refuse")
    async def refuse(body: Body) -> None:
        raise ServiceError(422, f"the text {body.text!r} is bad.", param="text", headers={"Retry-After": "7"})

    @app.post("/fail")
    async def fail(body: Body) -> None:
        raise RuntimeError(body.text)

    @app.post("/half")
    async def half(body: Body) -> StreamingResponse:
        async def parts():  # type: ignore[no-untyped-def]
            yield b"begun"
            raise RuntimeError(body.text)

        return StreamingResponse(parts())

    add_handlers(app)
    app.add_middleware(Contained)
    app.add_middleware(Observed, observers=[seen.append])
    return TestClient(app, raise_server_exceptions=False), seen


@pytest.mark.parametrize(
    ("path", "body", "status", "message", "param"),
    [
        ("/refuse", {"text": SECRET}, 422, "the text … is bad.", "text"),
        ("/refuse", {"text": SECRET, "cuont": 1}, 422, "…: there is no such field; the nearest is 'count'.", "…"),
        ("/refuse", {"text": SECRET, SECRET: 1}, 422, "…: there is no such field.", "…"),
        ("/refuse", {"text": 1}, 422, "text: Input should be a valid string.", "text"),
        ("/refuse", {"count": 1}, 422, "text: this field is missing.", "text"),
        (
            "/fail",
            {"text": SECRET},
            500,
            "the service failed to answer; its log has the reason under this X-Request-Id.",
            None,
        ),
        (f"/{SECRET}", {}, 404, "there is no such path; /openapi.json lists those that there are.", None),
    ],
)
def test_errors(
    world: tuple[TestClient, list[Exchange]], path: str, body: object, status: int, message: str, param: str | None,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    client, seen = world
    answer = client.post(path, json=body)
    found = answer.json()["error"]
    assert (answer.status_code, found["message"], found["param"]) == (status, message, param)
    assert SECRET not in answer.text and len(answer.headers["x-request-id"]) == 32
    assert seen[0].status == status and seen[0].request_id == answer.headers["x-request-id"]
    if status == 500:
        assert caplog.records[0].fields == {"request_id": seen[0].request_id, "path": "/fail"}  # type: ignore[attr-defined]
    if message.endswith("bad."):
        assert answer.headers["retry-after"] == "7"


def test_half_an_answer_is_not_taken_for_a_whole(world: tuple[TestClient, list[Exchange]]) -> None:
    client = TestClient(world[0].app, raise_server_exceptions=True)
    with pytest.raises(RuntimeError):  # what uvicorn then sees: it closes the connection
        client.post("/half", json={"text": SECRET})
    assert world[1][0].status == 500


def test_the_form_is_openais() -> None:
    error = ServiceError(429, "too much", code="queue_full")
    assert error.body() == {
        "error": {"message": "too much", "type": "rate_limit_error", "param": None, "code": "queue_full"}
    }
    assert json.loads(bytes(error.response().body)) == error.body()
