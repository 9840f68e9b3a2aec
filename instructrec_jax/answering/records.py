"""Records of a file or a live stream, and their times."""

import heapq
import queue
import re
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, tzinfo
from typing import BinaryIO, Generic, Protocol, TypeVar

from instructrec_jax.data.example import BadExample, check_number, check_text, show, suggest
from instructrec_jax.data.rows import open_rows
from instructrec_jax.parsing import json_lines

T = TypeVar("T")
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
LONGEST = 100 * 366 * 86400
# Plausible seconds since 1970: March 1973 to February 2103, or the same distance before 1970, but not before 1802.
EARLIEST, LATEST, LONG_AGO = 1e8, 4.2e9, 5.3e9
HOURS = 1.9e9  # larger numbers (seconds from March 2030 on) may also be a day and an hour, 2024050109


# ---------------------------------------------------------------- sources of records


def read_records(source: str) -> Iterator[tuple[str, dict[str, object] | BadExample]]:
    """(where, record) of a JSONL, JSON, CSV, TSV or Parquet file or stdin ("-": one JSON object per line), in order.

    For an unreadable record, the second element is its `BadExample`. Blank lines of stdin are skipped.
    """
    if source == "-":
        yield from _lines(stdin())
        return
    rows = open_rows(source)
    for index in range(len(rows)):
        where = rows.where(index)
        try:
            yield where, rows.row(index)
        except BadExample as error:
            error.where = where
            yield where, error


def stdin() -> BinaryIO:
    """Standard input with its own buffer, for a thread that may still be reading when the program ends.

    At exit Python closes the buffer of sys.stdin and aborts if a thread is reading it.
    """
    try:
        return open(sys.stdin.fileno(), "rb", closefd=False)
    except OSError:  # not a file, as in tests
        return sys.stdin.buffer


def _lines(stream: BinaryIO) -> Iterator[tuple[str, dict[str, object] | BadExample]]:
    for number, record in json_lines(stream):
        where = f"stdin, line {number}"
        if isinstance(record, ValueError):
            yield where, BadExample("", "malformed line", f"{record}.", where)
        else:
            yield where, record


def blocks(items: Iterable[T], size: int, *, live: bool = False) -> Iterator[list[T]]:
    """Blocks of up to `size` items. If `items` raises, the items before the error form a block, then it is raised.

    Args:
      live: a block is whatever is available, so that no item waits for a later one. A thread reads a few blocks ahead.
    """
    if live:
        yield from _live_blocks(items, size)
        return
    block: list[T] = []
    try:
        for item in items:
            block.append(item)
            if len(block) == size:
                full, block = block, []
                yield full
    except Exception:
        if block:
            yield block
        raise
    if block:
        yield block


def _live_blocks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    waiting: queue.Queue[tuple[list[T], BaseException | None, bool]] = queue.Queue(maxsize=4 * size)

    def read() -> None:
        """Puts (items, error, whether the stream ended) into the queue, one item at a time."""
        try:
            for item in items:
                waiting.put(([item], None, False))
        except BaseException as error:  # passed on to the consumer of the blocks
            waiting.put(([], error, True))
        waiting.put(([], None, True))

    threading.Thread(target=read, daemon=True).start()
    error, over = None, False
    while not over:
        block: list[T] = []
        while not over and len(block) < size and not (block and waiting.empty()):
            came, error, over = waiting.get()
            block += came
        if block:
            yield block
    if error is not None:
        raise error


@dataclass
class Skipped:
    """Bad records: raised, or skipped and counted (`--on_bad_record skip`)."""

    skip: bool
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    first: str = ""

    def add(self, error: BadExample, where: str) -> None:
        error.where = error.where or where
        if not self.skip:
            raise ValueError(f"{error}\nCorrect the record, or skip bad records with --on_bad_record skip.")
        self.counts[error.reason, error.field] += 1
        self.first = self.first or str(error)

    def summary(self) -> str:
        """A line about the skipped records; "" if there are none."""
        if not self.counts:
            return ""
        kinds = [f"{n:,} {reason}" + (f" ({name})" if name else "") for (reason, name), n in self.counts.most_common()]
        return f"{self.counts.total():,} bad records were skipped: {', '.join(kinds)}. The first: {self.first}"


# ---------------------------------------------------------------- fields


def value_of(record: Mapping[str, object], name: str, option: str) -> object:
    """A field of a record. Raises BadExample if it is missing, null or empty.

    Args:
      option: the command-line option that selects another field.
    """
    if name not in record:
        there = [str(key) for key in record]
        detail = (
            f"the record has {', '.join(there[:30]) or 'no fields'}.{suggest(name, there)} Select another: {option}."
        )
        raise BadExample(name, "missing field", detail)
    value = record[name]
    if value is None or isinstance(value, str) and not value.strip():
        raise BadExample(name, "empty field", f"found {show(value)}: fill it in or remove the record.")
    return value


def name_of(value: object, field: str) -> str:
    """A text, or a whole number as text (3.0 if the column has missing values)."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return check_text(value, field).strip()


def time_of(value: object, field: str, zone: tzinfo) -> tuple[datetime, bool]:
    """The time in UTC, and whether it has a time zone (seconds since 1970 do).

    A number is a date if it is one of eight digits (20240501), else seconds if between 1973 and 2103 (or the same
    distance before 1970). Other and ambiguous numbers (years, months, milliseconds) are errors.

    Args:
      value: ISO 8601 ("2024-05-01", "2024-05-01T09:30:00+08:00", "...Z"), or seconds since 1970, as a number or text.
      zone: time zone of a time without one.

    Raises:
      BadExample: an invalid or ambiguous time.
    """
    if isinstance(value, str):
        text = value.strip()
        if not re.fullmatch(r"[+-]?\d+(\.\d+)?", text):
            return _iso(text, field, zone)
        value = float(text) if "." in text else int(text[:30])
    number = check_number(value, field)
    digits = str(int(number)) if number == int(number) else ""
    if len(digits) == 8 and _is_date(digits):
        return _iso(digits, field, zone)
    if not EARLIEST <= abs(number) < LATEST or number <= -LONG_AGO:
        detail = "write ISO 8601 (2024-05-01T09:30:00+02:00) or seconds since 1970."
        if 10 * LATEST <= abs(number) < 1000 * LATEST:
            detail = "divide milliseconds by 1000, or " + detail
        raise BadExample(field, "bad time", f"found {show(value)}, which is not a plausible time: {detail}")
    if number >= HOURS and _is_date(digits[:8]) and digits[8:] < "24":
        detail = f"found {show(value)}: seconds since 1970, or hour {digits[8:]} of {digits[:8]}? Write ISO 8601."
        raise BadExample(field, "bad time", detail)
    return _plausible(datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=number), field), True


def _is_date(digits: str) -> bool:
    """Whether eight digits are a date between 1800 and 2199."""
    try:
        return "1800" <= datetime.strptime(digits, "%Y%m%d").strftime("%Y") < "2200"
    except ValueError:
        return False


def _iso(text: str, field: str, zone: tzinfo) -> tuple[datetime, bool]:
    try:
        time = datetime.fromisoformat(text)
        named = time.tzinfo is not None
        time = (time if named else time.replace(tzinfo=zone)).astimezone(UTC)
    except (ValueError, OverflowError):
        detail = f"found {show(text)}: write ISO 8601 (2024-05-01T09:30:00+02:00) or seconds since 1970."
        raise BadExample(field, "bad time", detail) from None
    return _plausible(time, field), named


def _plausible(time: datetime, field: str) -> datetime:
    if time.year < 1800:
        raise BadExample(field, "bad time", f"found the year {time.year}, probably a placeholder: remove the record.")
    return time


def duration(text: str) -> timedelta:
    """ "90s", "30m", "36h", "7d" or "2w". Raises ValueError for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a duration: write a number and one of s, m, h, d, w, such as 7d or 36h.")
    seconds = float(match[1]) * UNITS[match[2]]
    if seconds > LONGEST:
        raise ValueError(f"{text!r} is longer than 100 years.")
    return timedelta(seconds=seconds)


class Timed(Protocol):
    @property
    def time(self) -> datetime: ...


R = TypeVar("R", bound=Timed)


class InOrder(Generic[R]):
    """Sorts a stream of slightly late records by time.

    A record is held until a record newer by at least `late` arrives. Records leave in the order of their times, ties in
    the order of arrival. With `late` 0 nothing is held.

    Memory: the records of the last `late` of the stream's own time.
    """

    def __init__(self, late: timedelta):
        self.late = late
        self.newest: datetime | None = None
        self.held: list[tuple[datetime, int, R]] = []
        self.count = 0

    def take(self, record: R, field: str) -> list[R]:
        """Adds a record; returns the records that are due. Raises BadExample for a record later than `late`."""
        time = record.time
        if self.newest is not None and time < self.newest - self.late:
            detail = (
                f"{time.isoformat()} arrived {self.newest - time} after a newer record, but --late is {self.late}: "
                "sort the records by time, or set a longer --late."
            )
            raise BadExample(field, "too late", detail)
        self.newest = time if self.newest is None else max(self.newest, time)
        heapq.heappush(self.held, (time, self.count, record))
        self.count += 1
        return self._until(self.newest - self.late)

    def rest(self) -> list[R]:
        """The held records, at the end of the stream."""
        return [] if self.newest is None else self._until(self.newest)

    def _until(self, time: datetime) -> list[R]:
        found = []
        while self.held and self.held[0][0] <= time:
            found.append(heapq.heappop(self.held)[2])
        return found
