"""Groups of requests: their order and size, requests alone, errors, and those whose clients left."""

import asyncio
import threading
from typing import Any

import pytest

from instructrec_jax.service.batching import Batcher, QueueFull, each_by_itself, in_one_call
from instructrec_jax.service.errors import ServiceError


class Slow:
    """Waits for `go` in its first call, and remembers its groups."""

    def __init__(self) -> None:
        self.go, self.groups = threading.Event(), list[list[int]]()

    def __call__(self, asked: list[int]) -> list[Any]:
        self.groups.append(asked)
        if len(self.groups) == 1:
            self.go.wait(10)
        return [ValueError("odd") if number % 2 else 10 * number for number in asked]


async def begun(batcher: Batcher[int, Any], slow: Slow) -> "asyncio.Task[Any]":
    first = asyncio.create_task(batcher.ask(0))
    while not slow.groups:
        await asyncio.sleep(0.001)
    return first


def test_groups_keep_the_order_and_their_size() -> None:
    slow = Slow()
    batcher = Batcher(slow, most=4, queue=100, name="test")

    async def all_of_them() -> list[Any]:
        first = await begun(batcher, slow)
        sizes = {2: 1, 4: 2, 6: 2, 8: 9, 10: 1, 12: 1, 14: 1, 3: 1}
        rest = [asyncio.create_task(batcher.ask(n, size=size, alone=n == 12)) for n, size in sizes.items()]
        gone = asyncio.create_task(batcher.ask(16))
        await asyncio.sleep(0.01)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        await asyncio.sleep(0.01)
        slow.go.set()
        return await asyncio.gather(first, *rest, return_exceptions=True)

    *found, odd = asyncio.run(all_of_them())
    assert found == [0, 20, 40, 60, 80, 100, 120, 140]
    assert isinstance(odd, ValueError)
    assert slow.groups == [[0], [2, 4], [6], [8], [10], [12], [14, 3]]
    batcher.close()
    with pytest.raises(QueueFull, match="shutting down"):
        asyncio.run(batcher.ask(0))


def test_a_full_queue_and_an_error_of_a_whole_call() -> None:
    slow = Slow()
    batcher = Batcher(slow, most=4, queue=2, name="test")

    async def too_many() -> list[Any]:
        first = await begun(batcher, slow)
        rest = [asyncio.create_task(batcher.ask(2)) for _ in range(3)]
        await asyncio.sleep(0.01)
        slow.go.set()
        return await asyncio.gather(first, *rest, return_exceptions=True)

    *found, full = asyncio.run(too_many())
    assert found == [0, 20, 20] and isinstance(full, QueueFull)
    batcher.close()

    def fails(asked: list[int]) -> list[int]:
        raise RuntimeError("out of memory")

    failing = Batcher(fails, most=4, queue=2, name="test")
    with pytest.raises(RuntimeError, match="out of memory"):
        asyncio.run(failing.ask(0))
    failing.close()


def test_errors_stay_with_their_requests() -> None:
    calls: list[list[int]] = []

    def read(text: str) -> int:
        if text == "refused":
            raise ServiceError(429, "full")
        return int(text)

    def compute(numbers: list[int]) -> list[int]:
        calls.append(numbers)
        if 0 in numbers:
            raise ValueError("zero")
        return [2 * number for number in numbers]

    one, wrong, refused, two = in_one_call(["1", "x", "refused", "2"], read, compute)
    assert (one, two, calls) == (2, 4, [[1, 2]])
    assert isinstance(wrong, ValueError) and isinstance(refused, ServiceError)
    assert [isinstance(each, ValueError) for each in in_one_call(["x"], read, compute)] == [True]

    four, zero, six = each_by_itself([2, 0, 3], compute)
    assert (four, six) == (4, 6) and isinstance(zero, ValueError)
    assert [str(each) for each in each_by_itself([0], compute)] == ["zero"]
