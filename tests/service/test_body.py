"""Bodies: size, time, depth and form."""

import asyncio
import json
from typing import Any

import pytest

from instructrec_jax.service.body import CheckedBody
from instructrec_jax.service.settings import LimitsConfig

JSON = (b"content-type", b"application/json")


def sent(parts: list[bytes], *headers: tuple[bytes, bytes], wait: float = 0.0) -> tuple[int, str, bytes]:
    """Status, code and what the app saw of a body that arrives in parts, `wait` seconds before the last."""
    seen: list[bytes] = []
    said: list[Any] = []
    arriving = list(parts)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        seen.append(message["body"])
        assert not message["more_body"]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b'{"error": {"code": null}}'})

    async def receive() -> Any:
        if not arriving:
            return {"type": "http.disconnect"}
        part = arriving.pop(0)
        if not arriving:
            await asyncio.sleep(wait)
        return {"type": "http.request", "body": part, "more_body": bool(arriving)}

    async def send(message: Any) -> None:
        said.append(message)

    limits = LimitsConfig(body_bytes=100, depth=4, body_seconds=0.05)
    asyncio.run(CheckedBody(app, limits)({"type": "http", "headers": headers}, receive, send))
    return said[0]["status"], json.loads(said[1]["body"])["error"]["code"], b"".join(seen)


def test_a_body_in_parts_is_whole() -> None:
    assert sent([b'{"a"', b": [1, ", b"2]}"], JSON) == (200, None, b'{"a": [1, 2]}')
    assert sent([b""]) == (200, None, b"")
    assert sent([b"{}"], (b"content-type", b"Application/JSON; charset=utf-8")) == (200, None, b"{}")


@pytest.mark.parametrize(
    ("parts", "headers", "status", "code"),
    [
        ([b"{}"], [JSON, (b"content-length", b"101")], 413, "too_large"),
        ([b"{}"], [JSON, (b"content-length", b"9" * 5000)], 413, "too_large"),
        ([b"{}"], [JSON, (b"content-length", b"-1")], 413, "too_large"),
        ([b'"' + b"a" * 60, b"a" * 60 + b'"'], [JSON], 413, "too_large"),  # without a length
        ([b"{}"], [], 415, "media_type"),
        ([b"{}"], [(b"content-type", b"text/plain")], 415, "media_type"),  # what a foreign page may send
        ([b'{"secret'], [JSON], 422, "invalid"),
        ([b'{"secret": 1, "secret": 2}'], [JSON], 422, "invalid"),
        ([b'"\xff"'], [JSON], 422, "invalid"),
        ([b'"\\udc00"'], [JSON], 422, "invalid"),
        ([b'{"\\udc00": 1}'], [JSON], 422, "invalid"),
        ([b"[1e999]"], [JSON], 422, "invalid"),
        ([b"[NaN]"], [JSON], 422, "invalid"),
        ([b"[9223372036854775808]"], [JSON], 422, "invalid"),
        ([b"[[[[[[1]]]]]]"], [JSON], 422, "too_deep"),
        ([b"[" * 99], [JSON], 422, "invalid"),
    ],
)
def test_bad_bodies(parts: list[bytes], headers: list[tuple[bytes, bytes]], status: int, code: str) -> None:
    assert sent(parts, *headers) == (status, code, b"")


def test_a_slow_body_and_a_closed_connection() -> None:
    assert sent([b"{", b"}"], JSON, wait=5.0)[:2] == (408, "slow")
    assert sent([], JSON)[0] == 400
