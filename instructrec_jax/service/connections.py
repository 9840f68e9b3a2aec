"""Connections that wait for ever are closed: uvicorn bounds the time between requests, not that of their headers."""

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from instructrec_jax.service.errors import ServiceError
from instructrec_jax.service.settings import LimitsConfig


def protocol(limits: LimitsConfig) -> type[H11Protocol]:
    """The class of connections that keep to these limits.

    A client has limits.body_seconds for the headers of a request and for what it still sends after its answer, and
    limits.seconds without reading anything of an answer. Of more than limits.connections, the newest is closed.
    """

    class Bounded(Connection):
        pass

    Bounded.limits = limits
    return Bounded


class Connection(H11Protocol):
    """A connection of uvicorn's with more time limits."""

    limits = LimitsConfig()
    _speak: asyncio.TimerHandle | None = None
    _listen: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections:
            transport.abort()
            return
        self._expect_request()

    def data_received(self, data: bytes) -> None:
        try:
            super().data_received(data)
        except h11.LocalProtocolError:  # what came is no HTTP, and half an answer is on its way
            self.transport.abort()
        if self.cycle is None or self.cycle.response_complete:
            self._expect_request()
        elif self._speak is not None:
            self._speak.cancel()
            self._speak = None

    def _expect_request(self) -> None:
        if self._speak is None:
            self._speak = self.loop.call_later(self.limits.body_seconds, self.transport.abort)

    def on_response_complete(self) -> None:
        if self._speak is not None:  # of a request that was in the pipeline
            self._speak.cancel()
            self._speak = None
        super().on_response_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._listen = self.loop.call_later(self.limits.seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._listen is not None:
            self._listen.cancel()
            self._listen = None

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        for timer in (self._speak, self._listen):
            if timer is not None:
                timer.cancel()

    def send_400_response(self, msg: str) -> None:
        """As uvicorn's, in the form of the service's other errors."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.abort()  # half an answer is on its way
            return
        if self.cycle is not None and not self.cycle.response_complete:  # its body went wrong: it gets this answer
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        answer = ServiceError(400, "this is not HTTP/1.1, or its headers are too large.", code="bad_http").response()
        headers = [*answer.raw_headers, (b"connection", b"close")]
        self.transport.write(self.conn.send(h11.Response(status_code=400, headers=headers)) or b"")
        self.transport.write(self.conn.send(h11.Data(data=bytes(answer.body))) or b"")
        self.transport.write(self.conn.send(h11.EndOfMessage()) or b"")
        self.transport.close()
