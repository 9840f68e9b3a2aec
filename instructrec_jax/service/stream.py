"""A request's answer as it grows, for threads and for asyncio."""

import asyncio
import math
import queue
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from instructrec_jax.inference.writer import Generated

Top = list[tuple[int, float]]  # (token, log-probability), the likeliest first


@dataclass(frozen=True)
class Piece:
    """The next part of an answer.

    Attributes:
      text: final text: whole characters, without stop sequences; the pieces' texts joined are the answer's.
      tokens: chosen since the last piece; a piece's text may hold back the end of its tokens' for the next.
      log_probs: of each token, as in `inference.decoding.Answer`.
      top: per token the likeliest tokens, as many as asked for.
      finish: of the last piece: "eos", "stop", "length" or "cancelled"; None before.
    """

    text: str
    tokens: list[int]
    log_probs: list[float]
    top: list[Top] = field(default_factory=list)
    finish: str | None = None


class Stream:
    """The pieces of an answer: `for piece in stream` or `async for piece in stream`, one reader and once.

    Leaving the loop early (a generator that is closed, a task that is cancelled) cancels the request; so does
    `cancel()`. The loop raises FloatingPointError for logits that are NaN, and RuntimeError if the engine broke.

    Attributes:
      prompt_tokens: number of the prompt's tokens.
      cached_tokens: how many of them were not computed, because a known prompt begins with them; final with the first
        piece.
    """

    def __init__(self, prompt_tokens: int, cancel: Callable[[], None]):
        self.prompt_tokens, self.cached_tokens = prompt_tokens, 0
        self._cancel = cancel
        self._items: queue.SimpleQueue[Piece | Exception] = queue.SimpleQueue()
        self._notify: Callable[[], None] | None = None

    def cancel(self) -> None:
        """Ends the answer after at most one more step; its last piece says "cancelled". From any thread."""
        self._cancel()

    def put(self, item: Piece | Exception) -> None:
        """Called by the engine."""
        self._items.put(item)
        if (notify := self._notify) is not None:
            notify()

    def __iter__(self) -> Iterator[Piece]:
        ended = False
        try:
            while not ended:
                item = self._items.get()
                ended = isinstance(item, Exception) or item.finish is not None
                yield _unwrapped(item)
        finally:
            if not ended:
                self.cancel()

    async def __aiter__(self) -> AsyncIterator[Piece]:
        loop, ready, ended = asyncio.get_running_loop(), asyncio.Event(), False

        def notify() -> None:
            with suppress(RuntimeError):  # the loop has ended, and nobody waits
                loop.call_soon_threadsafe(ready.set)

        self._notify = notify
        try:
            while not ended:
                ready.clear()
                try:
                    item = self._items.get_nowait()
                except queue.Empty:
                    await ready.wait()
                    continue
                ended = isinstance(item, Exception) or item.finish is not None
                yield _unwrapped(item)
        finally:
            self._notify = None
            if not ended:
                self.cancel()

    def result(self) -> Generated:
        """Waits for the whole answer."""
        pieces = list(self)
        log_probability = math.fsum(p for piece in pieces for p in piece.log_probs)
        finish = pieces[-1].finish
        assert finish is not None
        return Generated("".join(piece.text for piece in pieces), finish, log_probability)


def _unwrapped(item: Piece | Exception) -> Piece:
    if isinstance(item, Exception):
        raise item
    return item
