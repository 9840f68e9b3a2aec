"""Answers requests of many clients in groups: one thread takes those that wait and computes them in one call."""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")


class QueueFull(Exception):
    """Too many requests wait already."""


@dataclass
class _Waiting(Generic[Asked, Answer]):
    request: Asked
    alone: bool
    future: "Future[Answer]" = field(default_factory=Future)


class Batcher(Generic[Asked, Answer]):
    """One thread that answers what waits, in the order of arrival.

    Args:
      answer: requests -> one answer each, or the error of that request.
      most: requests per call.
      queue: requests that may wait.
    """

    def __init__(
        self, answer: Callable[[list[Asked]], Sequence[Answer | Exception]], *, most: int, queue: int, name: str
    ):
        self._answer, self._most, self._queue = answer, most, queue
        self._waiting: deque[_Waiting[Asked, Answer]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    async def ask(self, request: Asked, *, alone: bool = False) -> Answer:
        """The answer to a request; one whose caller was cancelled before its turn is not computed.

        Args:
          alone: compute it in a call of its own, so that the same bits come out whoever else asks.

        Raises QueueFull, and what `answer` gave as this request's error.
        """
        waiting: _Waiting[Asked, Answer] = _Waiting(request, alone)
        with self._changed:
            if self._closed:
                raise QueueFull("the service is shutting down.")
            if len(self._waiting) >= self._queue:
                raise QueueFull(f"{self._queue} requests wait for this model already.")
            self._waiting.append(waiting)
            self._changed.notify()
        return await asyncio.wrap_future(waiting.future)

    def __len__(self) -> int:
        return len(self._waiting)

    def stats(self) -> dict[str, float]:
        return {"waiting": len(self._waiting), "queue": self._queue}

    def close(self) -> None:
        """Answers what waits, then ends the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while group := self._next():
            try:
                answers = self._answer([each.request for each in group])
            except Exception as error:  # one that is nobody's own: all of the group learn of it
                answers = [error] * len(group)
            for each, answer in zip(group, answers, strict=True):
                if isinstance(answer, Exception):
                    each.future.set_exception(answer)
                else:
                    each.future.set_result(answer)

    def _next(self) -> list[_Waiting[Asked, Answer]]:
        """The next group; empty when there will be no more."""
        group: list[_Waiting[Asked, Answer]] = []
        with self._changed:
            while not group:
                while not self._waiting and not self._closed:
                    self._changed.wait()
                if not self._waiting:
                    return []
                while self._waiting and len(group) < self._most and not (group and group[0].alone):
                    if group and self._waiting[0].alone:
                        break
                    each = self._waiting.popleft()
                    if each.future.set_running_or_notify_cancel():
                        group.append(each)
        return group
