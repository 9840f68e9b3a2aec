import asyncio
import threading

import pytest

from instructrec_jax.service.stream import Piece, Stream

PIECES = [Piece("a", [1], [-0.5]), Piece("", [2], [-0.25]), Piece("b", [3], [-1.0], finish="eos")]


def stream_of(items: list[Piece | Exception]) -> tuple[Stream, list[int]]:
    cancelled: list[int] = []
    stream = Stream(3, lambda: cancelled.append(1))
    for item in items:
        stream.put(item)
    return stream, cancelled


def test_result() -> None:
    stream, cancelled = stream_of([*PIECES])
    answer = stream.result()
    assert (answer.text, answer.finish, answer.log_probability) == ("ab", "eos", -1.75) and not cancelled


def test_pieces_reach_a_running_loop_from_another_thread() -> None:
    async def read() -> list[Piece]:
        stream, _ = stream_of([])
        thread = threading.Timer(0.01, lambda: [stream.put(piece) for piece in PIECES])
        thread.start()
        return [piece async for piece in stream]

    assert asyncio.run(read()) == PIECES


def test_leaving_the_loop_cancels() -> None:
    stream, cancelled = stream_of([*PIECES])
    pieces = iter(stream)
    next(pieces)
    pieces.close()  # type: ignore[attr-defined]
    assert cancelled == [1]


def test_a_failure_is_raised() -> None:
    stream, cancelled = stream_of([PIECES[0], FloatingPointError("NaN")])
    with pytest.raises(FloatingPointError):
        stream.result()
    assert not cancelled
