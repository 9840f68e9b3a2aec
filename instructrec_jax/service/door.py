"""Who comes in: keys, their limits, and nobody once the service shuts down."""

import base64
import binascii
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.types import ASGIApp, Receive, Scope, Send

from instructrec_jax.service.errors import ServiceError
from instructrec_jax.service.exchange import Exchange
from instructrec_jax.service.keys import Budgets, Key, Keys, Strangers

OPEN = frozenset({"/health", "/ready"})  # for those who watch over the process


@dataclass
class Door:
    """Lets requests in.

    Attributes:
      keys: the valid keys; None: everyone on this machine may ask.
      header_bytes: as many as the headers of a request may have.
      closing: whether the service shuts down, so that no new request comes in.
      inside: requests that are being answered.
    """

    keys: Keys | None = None
    header_bytes: int = 16_384
    budgets: Budgets = field(default_factory=Budgets)
    strangers: Strangers = field(default_factory=Strangers)
    closing: bool = False
    inside: int = 0

    def admit(self, scope: Scope) -> Key | None:
        """The caller's key; None where none is needed. Raises ServiceError (503, 400, 431, 401, 429)."""
        path, names = scope["path"], [name for name, _ in scope["headers"]]
        if self.closing and path != "/health":
            closed = {"Retry-After": "5", "Connection": "close"}
            raise ServiceError(503, "the service is shutting down: ask again later.", code="closing", headers=closed)
        if b"transfer-encoding" in names and b"content-length" in names:  # where one request ends is then a guess
            close = {"Connection": "close"}
            raise ServiceError(400, "the request has both Content-Length and Transfer-Encoding.", headers=close)
        if sum(len(name) + len(value) for name, value in scope["headers"]) > self.header_bytes:
            message = f"the headers are larger than {self.header_bytes:,} bytes (limits.header_bytes)."
            raise ServiceError(431, message, code="too_large")
        if self.keys is None or path in OPEN:
            return None
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        key = self.keys.find(_key_of(given[0])) if len(given) == 1 else None
        if key is None:
            if (seconds := self.strangers.take(scope["client"][0] if scope.get("client") else "")) is not None:
                message = "too many requests without a valid key came from this address (limits.failed_keys)."
                raise ServiceError(429, message, code="failed_keys", headers={"Retry-After": str(seconds)})
            raise _stranger(scope)
        if (exceeded := self.budgets.take(key)) is not None:
            limit, seconds = exceeded
            raise ServiceError(
                429,
                f"this key's limit {limit} is reached; it is free again in {seconds:,} s.",
                code=limit,
                headers={"Retry-After": str(seconds)},
            )
        return key

    def ended(self, exchange: Exchange) -> None:
        """Counts the tokens of an answer for its key: an observer."""
        if exchange.caller is not None:
            tokens = exchange.counts["prompt_tokens"] + exchange.counts["completion_tokens"]
            self.budgets.spend(exchange.caller, tokens)


class Guarded:
    """An ASGI layer: a stranger is refused before a byte of the body is read, whatever the path."""

    def __init__(self, app: ASGIApp, door: Door):
        self.app, self.door = app, door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange: Exchange = scope["state"]["exchange"]
        try:
            exchange.caller = self.door.admit(scope)
        except ServiceError as error:
            await error.response()(scope, receive, send)
            return
        exchange.key = exchange.caller.name if exchange.caller else ""
        self.door.inside += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self.door.inside -= 1


_scheme = HTTPBearer(auto_error=False, description="a key of `serve keys add`")


def allowed(request: Request, _: Annotated[HTTPAuthorizationCredentials | None, Depends(_scheme)]) -> None:
    """The dependency of every route: whether this key opens it. Raises ServiceError (401, 403)."""
    route = request.scope["route"]
    if request.app.state.door.keys is None or route.path in OPEN:
        return
    caller: Key | None = request.state.exchange.caller
    if caller is None:  # only where the layer is missing
        raise _stranger(request.scope)
    role = "metrics" if "monitoring" in route.tags or route.path == "/metrics" else "user"
    if not caller.may_call(route.path, role):
        raise ServiceError(
            403,
            f"the key {caller.name!r} does not open {route.path}, which needs the role {role}"
            + (f" and this route; its routes are: {', '.join(caller.routes)}." if role == "user" else "."),
            code="route_not_allowed",
        )


def _key_of(header: bytes) -> str:
    """The key of `Bearer KEY`, or of `Basic` with the key as password, which browsers ask for; "" if there is none."""
    kind, _, value = header.partition(b" ")
    value = value.strip()
    try:
        if kind.lower() == b"basic":
            value = base64.b64decode(value, validate=True).partition(b":")[2]
        elif kind.lower() != b"bearer":
            return ""
        return value.decode("ascii")
    except (binascii.Error, UnicodeDecodeError):
        return ""


def _stranger(scope: Scope) -> ServiceError:
    accepted = b",".join(value for name, value in scope["headers"] if name == b"accept")
    scheme = 'Basic realm="instructrec_jax: the key is the password"' if b"text/html" in accepted else "Bearer"
    message = "a valid key is needed: send `Authorization: Bearer KEY`, with a key of `serve keys add`."
    return ServiceError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": scheme})
