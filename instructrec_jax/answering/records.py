"""Records of a file or of a live stream, and the times in them."""

import heapq
import queue
import re
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any, BinaryIO, Generic, Protocol, TypeVar

from instructrec_jax.data.example import BadExample, check_number, check_text, show, suggest
from instructrec_jax.data.rows import open_rows
from instructrec_jax.parsing import json_lines

T = TypeVar("T")
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
LONGEST = 100 * 366 * 86400
# Plausible seconds since 1970: from March 1973 to February 2103, or as far before 1970, but not before 1802.
EARLIEST, LATEST, LONG_AGO = 1e8, 4.2e9, 5.3e9
HOURS = 1.9e9  # seconds from here on (March 2030) may also be a day and an hour, 2024050109


# ---------------------------------------------------------------- where records come from


def read_records(source: str) -> Iterator[tuple[str, dict[str, Any] | BadExample]]:
    """(where, record) of a JSONL, JSON, CSV, TSV or Parquet file, or of stdin ("-": a JSON object a line), in order.

    A record that cannot be read comes as the `BadExample` that says why. Blank lines of stdin are passed over.
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
    """Standard input with a buffer of its own, for a thread that may still wait for a line when the program ends.

    Python closes the buffer of sys.stdin then, and aborts if somebody reads it.
    """
    try:
        return open(sys.stdin.fileno(), "rb", closefd=False)
    except OSError:  # not a file: a test's
        return sys.stdin.buffer


def _lines(stream: BinaryIO) -> Iterator[tuple[str, dict[str, Any] | BadExample]]:
    for number, record in json_lines(stream):
        where = f"stdin, line {number}"
        if isinstance(record, ValueError):
            yield where, BadExample("", "malformed line", f"{record}.", where)
        else:
            yield where, record


def blocks(items: Iterable[T], size: int, *, live: bool = False) -> Iterator[list[T]]:
    """Up to `size` items at a time. Where `items` fails, those that came before are a block, then the error is raised.

    Args:
      live: what has come in so far is a block: no item waits for a later one. A thread reads ahead, a few blocks at
        most.
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
        """Puts (items, error, whether that was all) into the queue, one item at a time."""
        try:
            for item in items:
                waiting.put(([item], None, False))
        except BaseException as error:  # whatever it is, it belongs to whoever takes the blocks
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
    """Bad records: an error, or left out and counted (`--on_bad_record skip`)."""

    skip: bool
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    first: str = ""

    def add(self, error: BadExample, where: str) -> None:
        error.where = error.where or where
        if not self.skip:
            raise ValueError(f"{error}\nCorrect the record, or leave such ones out, counted: --on_bad_record skip.")
        self.counts[error.reason, error.field] += 1
        self.first = self.first or str(error)

    def summary(self) -> str:
        """A line on what was left out; "" when nothing was."""
        if not self.counts:
            return ""
        kinds = [f"{n:,} {reason}" + (f" ({name})" if name else "") for (reason, name), n in self.counts.most_common()]
        return f"{self.counts.total():,} records were skipped as bad: {', '.join(kinds)}. The first: {self.first}"


# ---------------------------------------------------------------- what is in them


def value_of(record: Mapping[str, Any], name: str, option: str) -> Any:
    """A field of a record. Raises BadExample where it is missing, null or empty.

    Args:
      option: of the command line, which names another field.
    """
    if name not in record:
        there = [str(key) for key in record]
        detail = f"the record has {', '.join(there[:30]) or 'no fields'}.{suggest(name, there)} {option} names another."
        raise BadExample(name, "missing field", detail)
    value = record[name]
    if value is None or isinstance(value, str) and not value.strip():
        raise BadExample(name, "empty field", f"found {show(value)}: fill it in or remove the record.")
    return value


def name_of(value: Any, field: str) -> str:
    """A text, or a whole number as text (3.0 where a column of numbers has gaps)."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return check_text(value, field).strip()


def time_of(value: Any, field: str, zone: tzinfo) -> tuple[datetime, bool]:
    """The time in UTC, and whether it named its own time zone (seconds since 1970 do).

    A number is taken for seconds only between 1973 and 2103 (or as long before 1970), and for a date if it is one of
    eight digits (20240501). Anything else, and what could be either, is refused: years, months, milliseconds.

    Args:
      value: ISO 8601 ("2024-05-01", "2024-05-01T09:30:00+08:00", "...Z"), or seconds since 1970, as a number or text.
      zone: of a time that names none.

    Raises:
      BadExample: what is no time, or could mean several.
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
            detail = "milliseconds, perhaps? Divide them by 1000, or " + detail
        raise BadExample(field, "bad time", f"found {show(value)}, which is no plausible time: {detail}")
    if number >= HOURS and _is_date(digits[:8]) and digits[8:] < "24":
        detail = f"found {show(value)}: seconds since 1970, or the hour {digits[8:]} of {digits[:8]}? Write ISO 8601."
        raise BadExample(field, "bad time", detail)
    return _plausible(datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=number), field), True


def _is_date(digits: str) -> bool:
    """Whether eight digits are a day from 1800 to 2199."""
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
        raise BadExample(field, "bad time", f"found the year {time.year}: a placeholder, perhaps? Remove the record.")
    return time


def duration(text: str) -> timedelta:
    """ "90s", "30m", "36h", "7d" or "2w". Raises ValueError for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no length of time: write a number and one of s, m, h, d, w, such as 7d or 36h.")
    seconds = float(match[1]) * UNITS[match[2]]
    if seconds > LONGEST:
        raise ValueError(f"{text!r} is more than a hundred years.")
    return timedelta(seconds=seconds)


class Timed(Protocol):
    @property
    def time(self) -> datetime: ...


R = TypeVar("R", bound=Timed)


class InOrder(Generic[R]):
    """Records in the order of their time, out of a stream that may bring them late.

    A record is held until one came in that is newer by `late` or more; then all that are as old come out in the order
    of their time, equal times in the order they came in. With `late` 0 nothing is held.

    Memory: the records of the last `late` of the stream's own time.
    """

    def __init__(self, late: timedelta):
        self.late = late
        self.newest: datetime | None = None
        self.held: list[tuple[datetime, int, R]] = []
        self.count = 0

    def take(self, record: R, field: str) -> list[R]:
        """Takes the next record, gives those whose turn has come. Raises BadExample for one that came too late."""
        time = record.time
        if self.newest is not None and time < self.newest - self.late:
            detail = (
                f"{time.isoformat()} came after a record that is newer by {self.newest - time}, and --late allows "
                f"{self.late}: sort the records by time, or set a longer --late."
            )
            raise BadExample(field, "too late", detail)
        self.newest = time if self.newest is None else max(self.newest, time)
        heapq.heappush(self.held, (time, self.count, record))
        self.count += 1
        return self._until(self.newest - self.late)

    def rest(self) -> list[R]:
        """What is held when the stream ends."""
        return [] if self.newest is None else self._until(self.newest)

    def _until(self, time: datetime) -> list[R]:
        found = []
        while self.held and self.held[0][0] <= time:
            found.append(heapq.heappop(self.held)[2])
        return found
