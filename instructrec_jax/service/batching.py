"""Answers requests of many clients in groups: one thread takes those that wait and computes them in one call."""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from instructrec_jax.service.errors import ServiceError

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")
Read = TypeVar("Read")


class QueueFull(Exception):
    """Too many requests wait already.

    Attributes:
      seconds: about how long these take.
    """

    def __init__(self, message: str, seconds: float = 1.0):
        super().__init__(message)
        self.seconds = seconds


@dataclass
class _Waiting(Generic[Asked, Answer]):
    request: Asked
    size: int
    alone: bool
    future: "Future[Answer]" = field(default_factory=Future)


class Batcher(Generic[Asked, Answer]):
    """One thread that answers what waits, in the order of arrival.

    Args:
      answer: requests -> one answer each, or the error of that request.
      most: size of a call: the sum of its requests' sizes. A larger request is answered by itself.
      queue: requests that may wait.
    """

    def __init__(
        self, answer: Callable[[list[Asked]], Sequence[Answer | Exception]], *, most: int, queue: int, name: str
    ):
        self._answer, self._most, self._queue = answer, most, queue
        self._waiting: deque[_Waiting[Asked, Answer]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._groups = self._answered = 0
        self._each = 0.0  # seconds per request, lately
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    async def ask(self, request: Asked, *, size: int = 1, alone: bool = False) -> Answer:
        """The answer to a request; one whose caller was cancelled before its turn is not computed.

        Args:
          size: what it adds to a call, such as its number of texts.
          alone: compute it in a call of its own, so that the same bits come out whoever else asks.

        Raises QueueFull, and what `answer` gave as this request's error.
        """
        waiting: _Waiting[Asked, Answer] = _Waiting(request, size, alone)
        with self._changed:
            if self._closed:
                raise QueueFull("the service is shutting down.")
            if len(self._waiting) >= self._queue:
                raise QueueFull(f"{self._queue} requests wait for this model already.", self._queue * self._each)
            self._waiting.append(waiting)
            self._changed.notify()
        return await asyncio.wrap_future(waiting.future)

    def __len__(self) -> int:
        return len(self._waiting)

    def stats(self) -> dict[str, float]:
        """Counts by the names of `service.metrics.STATS`."""
        groups = self._groups
        return {
            "waiting": len(self._waiting),
            "queue": self._queue,
            "batches": groups,
            "batch_rows": self._answered,
            "batch_room": groups * self._most,
        }

    def close(self) -> None:
        """Answers what waits, then ends the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while group := self._next():
            began = time.perf_counter()
            try:
                answers = self._answer([each.request for each in group])
            except Exception as error:  # one that is nobody's own: all of the group learn of it
                answers = [error] * len(group)
            self._groups, self._answered = self._groups + 1, self._answered + sum(each.size for each in group)
            self._each += 0.2 * ((time.perf_counter() - began) / len(group) - self._each)
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
                while self._waiting and (not group or self._fits(group, self._waiting[0])):
                    each = self._waiting.popleft()
                    if each.future.set_running_or_notify_cancel():
                        group.append(each)
        return group

    def _fits(self, group: list[_Waiting[Asked, Answer]], more: _Waiting[Asked, Answer]) -> bool:
        alone = group[0].alone or more.alone
        return not alone and sum(each.size for each in group) + more.size <= self._most


@dataclass(frozen=True)
class _Refusal:
    error: Exception


def in_one_call(
    asked: Sequence[Asked], read: Callable[[Asked], Read], compute: Callable[[list[Read]], Sequence[Answer | Exception]]
) -> list[Answer | Exception]:
    """Answers requests in one computation; a request that cannot be read gets its error, and only it."""
    found: list[Read | _Refusal] = []
    for request in asked:
        try:
            found.append(read(request))
        except (ValueError, ServiceError) as error:
            found.append(_Refusal(error))
    readable = [each for each in found if not isinstance(each, _Refusal)]
    answers: Iterator[Answer | Exception] = iter(compute(readable) if readable else ())
    return [each.error if isinstance(each, _Refusal) else next(answers) for each in found]


def each_by_itself(
    asked: Sequence[Asked], answer: Callable[[list[Asked]], Sequence[Answer | Exception]]
) -> list[Answer | Exception]:
    """Answers requests in one call; where that raises ValueError, each in a call of its own, with its own error."""
    found: list[Answer | Exception] = []
    try:
        found += answer(list(asked))
    except ValueError as error:
        for request in asked:
            try:
                found += answer([request]) if len(asked) > 1 else [error]
            except ValueError as own:
                found.append(own)
    return found
