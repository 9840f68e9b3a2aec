"""Records of a stream: times, durations, order and blocks."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from instructrec_jax.answering.records import InOrder, blocks, duration, time_of
from instructrec_jax.data.example import BadExample

START = datetime(2030, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Timed:
    time: datetime
    value: float


def after(day: float, value: float = 0.0) -> Timed:
    return Timed(START + timedelta(days=day), value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("2024-05-01T09:30:00+08:00", "2024-05-01T01:30:00+00:00"),
        ("2024-05-01T01:30:00Z", "2024-05-01T01:30:00+00:00"),
        ("2024-05-01 09:30", "2024-05-01T07:30:00+00:00"),  # Berlin, in summer
        ("2024-05-01", "2024-04-30T22:00:00+00:00"),
        ("20240501", "2024-04-30T22:00:00+00:00"),
        (1714527000, "2024-05-01T01:30:00+00:00"),
        ("1714527000.5", "2024-05-01T01:30:00.500000+00:00"),
        (20240501, "2024-04-30T22:00:00+00:00"),  # a day, not 235 days after 1970
        (20240501.0, "2024-04-30T22:00:00+00:00"),
        (-1000000000, "1938-04-24T22:13:20+00:00"),
        ("20240501T0930", "2024-05-01T07:30:00+00:00"),
    ],
)
def test_times(value: Any, expected: str) -> None:
    assert time_of(value, "time", ZoneInfo("Europe/Berlin"))[0].isoformat() == expected


NO_TIMES = ["yesterday", "2024-13-01", 1714527000000, True, float("nan"), [1], "0001-01-01", "1714527000000"]


AMBIGUOUS = [
    0,
    1,
    2024,
    "2024",
    202405,
    "202405",
    20241301,
    2024050109,
    202405010930,
    "20240501093000",
    1e30,
    "9" * 5000,
]


@pytest.mark.parametrize("value", NO_TIMES + AMBIGUOUS)
def test_times_that_are_none(value: Any) -> None:
    with pytest.raises(BadExample, match="'when'"):
        time_of(value, "when", UTC)


def test_durations() -> None:
    assert [duration(t) for t in ("90s", "30m", "36h", "7d", "0.5w")] == [
        timedelta(seconds=90),
        timedelta(minutes=30),
        timedelta(hours=36),
        timedelta(days=7),
        timedelta(days=3.5),
    ]
    for text in ("7", "d", "-1d", "7 days", "99999w"):
        with pytest.raises(ValueError):
            duration(text)


def test_late_records_are_sorted_within_the_watermark() -> None:
    order: InOrder[Timed] = InOrder(timedelta(days=2))
    days = [1, 3, 2, 2, 5, 4, 9]
    found = [o for number, day in enumerate(days) for o in order.take(after(day, number), "time")]
    assert [(o.time - START).days for o in found] == [1, 2, 2, 3, 4, 5]
    assert [o.value for o in found if (o.time - START).days == 2] == [2, 3]  # in order of arrival
    with pytest.raises(BadExample, match="--late.*2 days"):
        order.take(after(6.9), "time")
    assert [(o.time - START).days for o in [*order.take(after(7), "time"), *order.rest()]] == [7, 9]


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("size", [1, 2, 3, 64])
def test_what_came_before_an_error_is_delivered(live: bool, size: int) -> None:
    def feed() -> Iterator[int]:
        yield from range(5)
        raise ValueError("record 6")

    got: list[int] = []
    with pytest.raises(ValueError, match="record 6"):
        for block in blocks(feed(), size, live=live):
            assert 0 < len(block) <= size
            got += block
    assert got == [0, 1, 2, 3, 4]


def test_live_blocks_hold_nothing_back() -> None:
    """The second item is produced only after the first was consumed."""
    taken = threading.Event()

    def items() -> Iterator[int]:
        yield 1
        assert taken.wait(5)
        yield from (2, 3)

    found = []
    for block in blocks(items(), 8, live=True):
        found += block
        taken.set()
    assert found == [1, 2, 3]
    assert list(blocks(iter(range(5)), 2)) == [[0, 1], [2, 3], [4]]

    def failing() -> Iterator[int]:
        yield 1
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        list(blocks(failing(), 1, live=True))


def test_a_program_ends_while_its_input_is_still_open() -> None:
    code = (
        "from instructrec_jax.answering.records import blocks, read_records\n"
        "print(next(blocks(read_records('-'), 8, live=True)), flush=True)\n"
        "raise SystemExit(3)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write('{"text": "你好"}\n'.encode())
    process.stdin.flush()
    assert "stdin, line 1" in process.stdout.readline().decode()
    assert process.wait(30) == 3
    process.stdin.close()
