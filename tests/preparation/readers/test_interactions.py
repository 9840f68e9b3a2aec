"""Rows of (user, item, rating, time) as arrays, and times of one unit."""

from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from instructrec_jax.preparation.readers.interactions import gather, may_be_times, seconds
from instructrec_jax.preparation.readers.lines import BadLines
from instructrec_jax.ranking.catalogue import Catalogue

PATH = Path("ratings.csv")
ITEMS = Catalogue(["a", "b", "c"], ["A", "B", "C"], ["A", "B", "C"])


def of(*rows: tuple[Any, ...], skip: bool = False, **options: bool) -> tuple[Any, list[str]]:
    bad = BadLines(skip=skip)
    return gather(list(enumerate(rows, 2)), PATH, ITEMS, bad, **options), bad.skipped


def test_rows_become_arrays_in_their_order() -> None:
    found, _ = of(("u2", "c", "4.5", "20"), ("u1", "a", 3, 10.5), ("u2", "b", Decimal("1"), 30))
    assert found.user_ids == ["u2", "u1"]  # as they appear
    assert found.user.tolist() == [0, 1, 0] and found.item.tolist() == [2, 0, 1]
    assert found.rating.tolist() == [4.5, 3.0, 1.0] and found.timestamp.tolist() == [20.0, 10.5, 30.0]
    assert [x.dtype for x in (found.user, found.item, found.rating, found.timestamp)] == [
        np.int32, np.int32, np.float32, np.float64,
    ]  # fmt: skip
    plain, _ = of(("u", "a", None, None), rated=False, timed=False)
    assert plain.rating is None and plain.timestamp is None


@pytest.mark.parametrize(
    "row",
    [
        ("", "a", 1, 1),
        (" ", "a", 1, 1),
        (None, "a", 1, 1),
        (7, "a", 1, 1),
        ("u", "z", 1, 1),
        ("u", None, 1, 1),
        ("u", "a", "good", 1),
        ("u", "a", None, 1),
        ("u", "a", "nan", 1),
        ("u", "a", float("inf"), 1),
        ("u", "a", 10**400, 1),
        ("u", "a", 1, "yesterday"),
        ("u", "a", 1, None),
        ("u\ud800", "a", 1, 1),
    ],
)
def test_bad_rows_name_their_line(row: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError, match="ratings.csv:3"):
        of(("u", "a", 1, 1), row)
    found, skipped = of(("u", "a", 1, 1), row, skip=True)
    assert len(found) == 1 and found.user_ids == ["u"] and len(skipped) == 1
    with pytest.raises(ValueError, match=r"ratings.csv.*ratings.csv:2"):
        of(row, skip=True)  # nothing is left: the last bad line is told


def test_nothing_at_all() -> None:
    with pytest.raises(ValueError, match="ratings.csv"):
        of()


# --- times ---

NOON = datetime(2020, 2, 29, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("2020-02-29T12:00:00", NOON.timestamp()),
        ("2020-02-29 12:00:00+00:00", NOON.timestamp()),
        ("2020-02-29T14:00:00+02:00", NOON.timestamp()),
        ("2020-02-29", NOON.timestamp() - 43200),
        (date(2020, 2, 29), NOON.timestamp() - 43200),
        (datetime(2020, 2, 29, 12), NOON.timestamp()),
        (NOON.astimezone(timezone(timedelta(hours=-5))), NOON.timestamp()),
    ],
)
def test_dates_are_seconds_since_1970(value: object, expected: float) -> None:
    assert seconds(value) == expected


@pytest.mark.parametrize("value", ["-5", "1e9", "20200229", 7, 7.5, None, "a-b", "12:"])
def test_what_is_no_date_stays(value: object) -> None:
    assert seconds(value) is value


NOW = 1_600_000_000


@pytest.mark.parametrize(
    ("times", "whole"),
    [
        ([NOW, NOW + 1, NOW - 10**8], True),
        ([NOW * 1000, NOW * 1000 + 5], True),
        ([1, 2, 3], True),  # positions
        ([0, NOW, NOW], True),  # a zero says nothing of the unit
        ([20200229, 20191231], True),
        (["2020-02-29", "2019-12-31"], True),
        ([NOW, NOW * 1000], False),
        ([NOW * 1000, NOW * 10**6], False),
        (["2020-02-29", NOW], False),
        ([20200229, NOW], False),
    ],
)
def test_times_have_one_unit(times: list[Any], whole: bool) -> None:
    rows = [("u", "abc"[n], 1, time) for n, time in enumerate(times)]
    if whole:
        assert len(of(*rows)[0]) == len(times)
    else:
        with pytest.raises(ValueError, match="ratings.csv.*unit|ratings.csv.*dates"):
            of(*rows)


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("timestamp", [], True),
        ("reviewDate", ["x"], True),
        ("created_at", ["x"], True),
        ("ts", ["x"], True),
        ("rating", [5, 4], False),
        ("when_not", [NOW, ""], True),
        ("column", [NOW, NOW + 1, None], True),
        ("column", [NOW + 0.5], False),
        ("column", [NOW, "x"], False),
        ("column", ["2020-02-29"], True),
        ("column", [None, ""], False),
        ("cats", [1], False),  # "_ts" and "at" are words of their own
        ("flat", [1], False),
    ],
)
def test_columns_that_may_hold_times(name: str, values: list[Any], expected: bool) -> None:
    assert may_be_times(name, values) == expected
