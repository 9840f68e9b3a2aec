"""Gathers rows of (user, item, rating, time) into `Interactions`."""

import math
import re
from array import array
from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import SupportsFloat

import numpy as np

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
    users: dict[str, int] = {}
    # array.array: 25 million rows would take gigabytes as lists of objects
    user, item, rating, timestamp = array("i"), array("i"), array("f"), array("d")
    index, dates = catalogue.index, 0
    for line, (user_id, item_id, stars, time) in rows:
        if not isinstance(user_id, str) or not user_id.strip():
            bad(path, line, "empty user id")
            continue
        if not isinstance(item_id, str) or item_id not in index:
            bad(path, line, f"item {item_id!r} is not in the item file")
            continue
        moment = seconds(time) if timed else 0.0
        try:
            rate = _finite(stars, "rating") if rated else 0.0
            when = _finite(moment, "timestamp")
        except ValueError as error:
            bad(path, line, str(error))
            continue
        number = users.get(user_id)
        if number is None:
            if why := damage(user_id):
                bad(path, line, f"user {user_id!r} holds {why}")
                continue
            number = users[user_id] = len(users)
        user.append(number)
        item.append(index[item_id])
        if rated:
            rating.append(rate)
        if timed:
            timestamp.append(when)
            dates += moment is not time
    if not user:
        why = f" ({bad.skipped[-1]})" if bad.skipped else ""
        raise ValueError(f"{path} holds no valid interaction{why}.")
    if timed:
        _one_kind(np.array(timestamp), dates, path)
    return Interactions(
        list(users),
        np.array(user, np.int32),
        np.array(item, np.int32),
        np.array(timestamp, np.float64) if timed else None,
        np.array(rating, np.float32) if rated else None,
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
    day = times // 100 % 100, times % 100
    compact = (
        (18000101 <= times) & (times <= 21991231) & (1 <= day[0]) & (day[0] <= 12) & (1 <= day[1]) & (day[1] <= 31)
    )
    unit = np.where(times < SECOND, np.where(compact, 0, -1), 1 + np.log10(np.maximum(times / SECOND, 1)) // 3)
    kinds = np.unique(unit[unit >= 0])
    if len(kinds) > 1:
        some = [f"{times[np.argmax(unit == kind)]:.0f}" for kind in kinds]
        raise ValueError(f"{path}: the times have several units, such as {' and '.join(some)}: use one unit.")
