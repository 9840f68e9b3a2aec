"""Reads and checks each request's body before anything else sees it."""

import asyncio
import re

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from instructrec_jax.parsing import json_value
from instructrec_jax.service.errors import ServiceError
from instructrec_jax.service.settings import LimitsConfig

SURROGATES = re.compile("[\ud800-\udfff]")


class CheckedBody:
    """An ASGI layer: a body that is too large, too slow, too deep or not JSON in UTF-8 is refused here."""

    def __init__(self, app: ASGIApp, limits: LimitsConfig):
        self.app, self.limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            body = await self._read(scope, receive)
        except ServiceError as error:
            await error.response()(scope, receive, send)
            return
        waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return waiting.pop() if waiting else await receive()

        await self.app(scope, replay, send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes:
        limit = self.limits.body_bytes
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or len(length) > 18 or int(length) > limit:
            raise _too_large(limit)
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ServiceError(400, "the connection closed before the body had arrived.")
                    part = message.get("body", b"")
                    size += len(part)
                    if size > limit:
                        raise _too_large(limit)
                    parts.append(part)
                    more = message.get("more_body", False)
        except TimeoutError:
            raise ServiceError(
                408,
                f"the body did not arrive within {self.limits.body_seconds:g} s (limits.body_seconds).",
                code="slow",
            ) from None
        body = b"".join(parts)
        if body:
            if headers.get(b"content-type", b"").partition(b";")[0].strip().lower() != b"application/json":
                # a page of another site may post any other type without asking
                raise ServiceError(415, "the body needs the header Content-Type: application/json.", code="media_type")
            _check(body, self.limits.depth)
        return body


def _too_large(limit: int) -> ServiceError:
    return ServiceError(
        413, f"the body is larger than {limit:,} bytes (limits.body_bytes): send less in one request.", code="too_large"
    )


def _check(body: bytes, depth: int) -> None:
    try:
        value = json_value(body.decode("utf-8"))
    except UnicodeDecodeError:
        raise ServiceError(422, "the body is not UTF-8.", code="invalid") from None
    except ValueError as error:
        problem = re.sub(", near .*|(?<=the key ).*(?= occurs)", "", str(error), flags=re.DOTALL)
        raise ServiceError(422, f"the body is not JSON: {problem}.", code="invalid") from None
    _check_value(value, depth)


def _check_value(value: object, depth: int) -> None:
    if depth < 0:
        raise ServiceError(422, "the body is nested too deeply (limits.depth).", code="too_deep")
    if isinstance(value, str) and SURROGATES.search(value):
        raise ServiceError(
            422, "the body has half of a surrogate pair (\\ud800 to \\udfff), which is no text.", code="invalid"
        )
    if isinstance(value, float) and value - value != 0:
        raise ServiceError(422, "the body has NaN, Infinity or a number as large.", code="invalid")
    if isinstance(value, int) and abs(value) >= 2**63:
        raise ServiceError(422, "the body has an integer of more than 64 bits.", code="invalid")
    if isinstance(value, dict):
        for name, part in value.items():
            _check_value(name, depth - 1)
            _check_value(part, depth - 1)
    elif isinstance(value, list):
        for part in value:
            _check_value(part, depth - 1)
