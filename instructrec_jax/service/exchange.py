"""What is kept of a request and its answer: no word of either, but counts, times and names."""

import re
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from instructrec_jax.service.keys import Key

REQUEST_ID = re.compile(rb"[\w.:-]{1,100}")
METHODS = frozenset("GET HEAD POST PUT PATCH DELETE OPTIONS".split())


@dataclass
class Exchange:
    """A request and its answer, as logs and metrics see it.

    Attributes:
      method: the HTTP method; "other": none of the usual, because a client may write anything there.
      request_id: the client's own X-Request-Id where it is one, else a new one; the answer has it as X-Request-Id.
      route: the path of the route, such as /v1/embeddings; "unknown" where there is none.
      key: name of the caller's key; "" without keys.
      caller: the caller's key; None without keys.
      model: name of the model that answers; "" before one is chosen.
      status: the HTTP status; 499 where the client left before the answer.
      counts: prompt_tokens, completion_tokens, texts ...
      masked: places of personal data that placeholders replaced, by kind.
      seconds: whole time, once it has ended; `first`: until the first byte of the answer.
    """

    request_id: str
    method: str
    route: str = "unknown"
    key: str = ""
    caller: Key | None = None
    model: str = ""
    status: int = 499
    counts: Counter[str] = field(default_factory=Counter)
    masked: Counter[str] = field(default_factory=Counter)
    began: float = field(default_factory=time.perf_counter)
    first: float | None = None
    seconds: float = 0.0


Observer = Callable[[Exchange], None]


class Observed:
    """The outermost ASGI layer: makes each request's `Exchange` and shows it to observers when it has ended.

    Routes find it as `request.state.exchange`.
    """

    def __init__(self, app: ASGIApp, observers: Sequence[Observer]):
        self.app, self.observers = app, observers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(b"x-request-id", b"")
        name = given.decode() if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        exchange = Exchange(name, scope["method"] if scope["method"] in METHODS else "other")
        scope.setdefault("state", {})["exchange"] = exchange

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", name.encode())]
            elif exchange.first is None:
                exchange.first = time.perf_counter() - exchange.began
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except Exception:
            exchange.status = 500
            raise
        finally:
            exchange.route = getattr(scope.get("route"), "path", "unknown")
            exchange.seconds = time.perf_counter() - exchange.began
            for observe in self.observers:
                observe(exchange)
