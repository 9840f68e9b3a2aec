"""Gathers rows of (user, item, rating, time) into `Interactions`."""

import math
import re
from array import array
from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import SupportsFloat

import numpy as np

from instructrec_jax.preparation.readers.blocks import Block, Columns
from instructrec_jax.preparation.readers.items import damage
from instructrec_jax.preparation.readers.lines import BadLines
from instructrec_jax.ranking.catalogue import Catalogue, Interactions

_TEXT_OR_NUMBER = (str, float, int)  # the usual types of a cell


def gather(
    rows: Iterable[tuple[int, Sequence[object]]],
    path: Path,
    catalogue: Catalogue,
    bad: BadLines,
    *,
    rated: bool = True,
    timed: bool = True,
) -> Interactions:
    """Interactions from rows (line, (user id, item id, rating, time)); rated, timed: whether the source has these.

    Ratings and times may be texts or numbers, times also dates. Times keep the unit of the source; dates become seconds
    since 1970. Rows with an unknown item, or a rating or time that is not a finite number, go to `bad`. Raises
    ValueError for no valid row, and for times in different units.
    """
    gathered = _Gathered(path, catalogue, bad, rated, timed)
    gathered.add_rows(rows)
    return gathered.interactions()


def gather_blocks(
    blocks: Iterable[Block], path: Path, catalogue: Catalogue, bad: BadLines, *, rated: bool, timed: bool
) -> Interactions:
    """`gather` from blocks: as columns where all of a block is valid, else row by row."""
    gathered = _Gathered(path, catalogue, bad, rated, timed)
    for block in blocks:
        if block.columns is None or not gathered.add_columns(block.columns):
            gathered.add_rows(block.rows())
    return gathered.interactions()


class _Gathered:
    """Interactions while they are read. Arrays of machine numbers: as lists, 25 million rows take gigabytes."""

    def __init__(self, path: Path, catalogue: Catalogue, bad: BadLines, rated: bool, timed: bool) -> None:
        self.path, self.index, self.bad, self.rated, self.timed = path, catalogue.index, bad, rated, timed
        self.users: dict[str, int] = {}
        self.user, self.item, self.rating, self.timestamp = array("i"), array("i"), array("f"), array("d")
        self.dates = 0

    def add_rows(self, rows: Iterable[tuple[int, Sequence[object]]]) -> None:
        for line, (user_id, item_id, stars, time) in rows:
            if not isinstance(user_id, str) or not user_id.strip():
                self.bad(self.path, line, "empty user id")
                continue
            if not isinstance(item_id, str) or item_id not in self.index:
                self.bad(self.path, line, f"item {item_id!r} is not in the item file")
                continue
            moment = seconds(time) if self.timed else 0.0
            try:
                rate = _finite(stars, "rating") if self.rated else 0.0
                when = _finite(moment, "timestamp")
            except ValueError as error:
                self.bad(self.path, line, str(error))
                continue
            number = self.users.get(user_id)
            if number is None:
                if why := damage(user_id):
                    self.bad(self.path, line, f"user {user_id!r} holds {why}")
                    continue
                number = self.users[user_id] = len(self.users)
            self.user.append(number)
            self.item.append(self.index[item_id])
            if self.rated:
                self.rating.append(rate)
            if self.timed:
                self.timestamp.append(when)
                self.dates += moment is not time

    def add_columns(self, block: Columns) -> bool:
        """Adds a whole block; False, and nothing is added, if one of its rows is not valid."""
        items = np.array([self.index.get(name, -1) for name in block.item.distinct], np.int32)
        new = [name for name in block.user.distinct if name not in self.users]
        if (items < 0).any() or any(not name.strip() or damage(name) for name in new):
            return False
        for name in new:
            self.users[name] = len(self.users)
        users = np.array([self.users[name] for name in block.user.distinct], np.int32)
        self.user.frombytes(users[block.user.codes].tobytes())
        self.item.frombytes(items[block.item.codes].tobytes())
        if block.rating is not None:
            self.rating.frombytes(block.rating.astype(np.float32).tobytes())
        if block.time is not None:
            self.timestamp.frombytes(block.time.tobytes())
            self.dates += len(block.time) if block.dates else 0
        return True

    def interactions(self) -> Interactions:
        if not self.user:
            why = f" ({self.bad.skipped[-1]})" if self.bad.skipped else ""
            raise ValueError(f"{self.path} holds no valid interaction{why}.")
        times = np.frombuffer(self.timestamp, np.float64) if self.timed else None
        if times is not None:
            _one_kind(times, self.dates, self.path)
        return Interactions(
            list(self.users),
            np.frombuffer(self.user, np.int32),
            np.frombuffer(self.item, np.int32),
            times,
            np.frombuffer(self.rating, np.float32) if self.rated else None,
        )


def _float(value: object) -> float:
    """float(value). Raises TypeError, ValueError or OverflowError for another value."""
    if isinstance(value, _TEXT_OR_NUMBER) or isinstance(value, bytes | SupportsFloat):  # such as a Decimal
        return float(value)
    raise TypeError


def _finite(value: object, name: str) -> float:
    """The value as a finite number. Raises ValueError with the column's name for any other value."""
    try:
        number = _float(value)
    except (TypeError, ValueError, OverflowError):
        or_date = " or a date in ISO 8601" if name == "timestamp" else ""
        raise ValueError(f"{name} {value!r} is not a number{or_date}") from None
    if not math.isfinite(number):
        raise ValueError(f"{name} {value!r} is not finite")
    return number


def seconds(value: object) -> object:
    """A date or an ISO 8601 text (UTC unless it has a zone) as seconds since 1970; other values unchanged."""
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day)
    if isinstance(value, str) and ("-" in value[1:] or ":" in value):  # not a number in text
        try:
            value = datetime.fromisoformat(value.strip())
        except ValueError:
            return value
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
    return value


def may_be_times(name: str, values: Sequence[object]) -> bool:
    """Whether a column may hold times: by its name, or by values that are dates or plausible seconds."""
    if re.search(r"time|date|year|month|day|stamp|(^|_)(at|on|when|ts)$", name.lower()):
        return True
    found = [(value, seconds(value)) for value in values if value not in (None, "")]

    def plausible(value: object, moment: object) -> bool:
        if moment is not value:  # a date
            return True
        try:
            return SECOND <= (number := _float(value)) < 10**9 * 10 * SECOND and number.is_integer()
        except (TypeError, ValueError, OverflowError):
            return False

    return bool(found) and all(plausible(*pair) for pair in found)


PIECE = 1_000_000  # times checked at once
SECOND = 10**8  # lower bound of times in seconds since 1970 (1973); 1000 times as much for milliseconds, and so on


def _one_kind(times: np.ndarray, dates: int, path: Path) -> None:
    """Raises ValueError for times of mixed units: dates and numbers, or seconds and milliseconds.

    Args:
      times: float64 [interactions].
      dates: number of times that were dates.
    """
    if 0 < dates < len(times):
        raise ValueError(f"{path}: {dates:,} times are dates and {len(times) - dates:,} are numbers: use one of them.")
    if dates:
        return
    kinds: dict[float, float] = {}  # unit -> the first time in it
    for start in range(0, len(times), PIECE):  # in pieces, since eight arrays of this size are made on the way
        units = _units(piece := times[start : start + PIECE])
        for unit, first in zip(*np.unique(units, return_index=True), strict=True):
            if unit >= 0:
                kinds.setdefault(float(unit), float(piece[first]))
    if len(kinds) > 1:
        some = [f"{kinds[unit]:.0f}" for unit in sorted(kinds)]
        raise ValueError(f"{path}: the times have several units, such as {' and '.join(some)}: use one unit.")


def _units(times: np.ndarray) -> np.ndarray:
    """The unit of each time: 0 of days as 20240131, 1 of seconds, 2 of milliseconds ...; -1 of small numbers."""
    day = times // 100 % 100, times % 100
    compact = (
        (18000101 <= times) & (times <= 21991231) & (1 <= day[0]) & (day[0] <= 12) & (1 <= day[1]) & (day[1] <= 31)
    )
    return np.where(times < SECOND, np.where(compact, 0, -1), 1 + np.log10(np.maximum(times / SECOND, 1)) // 3)
