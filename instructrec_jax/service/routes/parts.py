"""What the routes share: the running service, and how long an answer may take."""

import asyncio
import math
from collections.abc import Awaitable, Sequence
from typing import Annotated, TypeVar

from fastapi import Depends, Request
from pydantic import BaseModel, ConfigDict

from instructrec_jax.service.batching import QueueFull
from instructrec_jax.service.errors import ServiceError
from instructrec_jax.service.exchange import Exchange
from instructrec_jax.service.models import Service
from instructrec_jax.service.privacy import Private

T = TypeVar("T")


class Asked(BaseModel):
    """A request's body: unknown fields are errors, and nothing is converted in silence."""

    model_config = ConfigDict(extra="forbid", strict=True)


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


def _exchange(request: Request) -> Exchange:
    exchange: Exchange = request.state.exchange
    return exchange


Running = Annotated[Service, Depends(_service)]


def _private(request: Request) -> Private:
    private: Private = request.app.state.privacy.request()
    request.state.exchange.masked = private.counts
    return private


Noted = Annotated[Exchange, Depends(_exchange)]
Hidden = Annotated[Private, Depends(_private)]


def too_many(error: QueueFull) -> ServiceError:
    seconds = min(max(1, math.ceil(error.seconds)), 600)
    message = f"{error} Try again in {seconds} s (limits.queue)."
    return ServiceError(429, message, code="queue_full", headers={"Retry-After": str(seconds)})


def of_size(given: Sequence[object], name: str, what: str, most: int, limit: str) -> None:
    """Raises ServiceError (422) unless a list of a request has 1 to `most` entries."""
    if not 1 <= len(given) <= most:
        message = f"{name} has {len(given):,} {what}; there may be 1 to {most:,} ({limit})."
        raise ServiceError(422, message, param=name, code="invalid")


async def in_time(service: Service, request: Request, answer: Awaitable[T]) -> T:
    """An answer within the limits.

    Raises ServiceError: 504 where it takes too long, 429 where too many wait, 422 with the error of a bad request. A
    client that closes the connection cancels the work that has not begun.
    """
    seconds = service.config.limits.seconds
    work = asyncio.ensure_future(answer)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        done, _ = await asyncio.wait({work, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if work in done:
            return work.result()
        if gone in done:  # nobody reads this; the exchange has it
            raise ServiceError(499, "the client closed the connection.")
        raise ServiceError(504, f"the answer took longer than {seconds:g} s (limits.seconds).", code="timeout")
    except QueueFull as error:
        raise too_many(error) from None
    except ValueError as error:
        raise ServiceError(422, str(error), code="invalid") from None
    finally:
        work.cancel()
        gone.cancel()
        await asyncio.gather(work, gone, return_exceptions=True)  # asyncio would log what nobody looks at


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
