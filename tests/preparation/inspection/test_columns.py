"""Rows of files, and the profile of each column."""

import json
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from instructrec_jax.preparation.inspection.columns import Column, RowStream, number, profile, time_of


def write(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def column(*values: Any) -> Column:
    return profile([("a.csv", {"c": value}) for value in values or (None,)]).columns["c"]


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (3, 3.0), (2.5, 2.5), ("3", 3.0), (" -2.5 ", -2.5), ("+1e3", 1000.0), ("0", 0.0), ("0.5", 0.5), ("-0.5", -0.5),
        ("007", None), ("-01", None), ("1_000", None), ("1,5", None), ("nan", None), ("inf", None), ("1e999", None),
        ("", None), ("three", None), (True, None), (None, None), ([1], None),
    ],
)  # fmt: skip
def test_numbers_of_cells(value: object, found: float | None) -> None:
    assert number(value) == found


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([None, None], "empty"),
        ([], "empty"),
        (["a", None], "text"),
        (["1", "2.5"], "number"),
        (["1", 2], "number"),
        ([1, 2.5, None], "number"),
        (["1", "two"], "text"),
        ([1, "two"], "mixed"),
        (["007", "008"], "text"),
        ([True, False], "bool"),
        ([True, 1], "mixed"),
        ([["a"], []], "list"),
        ([[{"role": "user", "content": "a"}], [{"from": "gpt", "value": "b"}]], "messages"),
        ([[{"role": "user"}, {"x": 1}]], "object"),
        ([[{"x": 1}]], "object"),
        ([{"x": 1}], "object"),
        ([["a"], {"x": 1}], "mixed"),
    ],
)
def test_kinds_of_columns(values: list[Any], kind: str) -> None:
    assert column(*values).kind == kind


def test_the_profile_of_a_column() -> None:
    rows: list[dict[str, object]] = [
        {"c": " NaN "},
        {"c": "two words"},
        {"c": "two words"},
        {"d": 1},
        {"c": ""},
        {"c": "one"},
    ]
    found = profile([("a.csv", row) for row in rows]).columns["c"]
    assert found.filled_rows == 3 and found.filled == ["two words", "two words", "one"]
    assert found.different == 2 and found.words == pytest.approx(5 / 3) and not found.all_different
    assert column("1", 2, None, "x").numbers == [1.0, 2.0] and column("3", -2.5).has_decimals
    assert (column(3, "-1.5").low, column(3, "-1.5").high) == (-1.5, 3.0)
    assert column(3, "a").texts == ["3", "a"]
    assert column().words == 0


def test_columns_with_as_many_words_or_entries_in_every_row() -> None:
    assert column("a b", "c").word_counts == column("d e", "f").word_counts != column("d", "e f").word_counts
    assert column(["a"], ["b", "c"]).list_lengths == column([1], [2, 3]).list_lengths
    assert column(["a"], ["b", "c"]).list_lengths != column([1], [2]).list_lengths
    assert column(["a"], ["b", "c"]).most_entries == 2 == column("x y", "z").most_words


def test_many_different_values_are_not_counted_to_the_end() -> None:
    found = column(*map(str, range(1000)))
    assert found.different == 601 and found.count == "more than 600" and found.all_different


def test_characters_of_scripts_without_spaces_count_as_half_words() -> None:
    assert column("我想看恐怖片").words == 1 + 6 / 2
    assert column("ein Film").words == 2


def test_columns_keep_the_order_in_which_they_appear() -> None:
    rows: list[dict[str, object]] = [{"b": 1}, {"a": 1, "b": 2}, {"c": 0}]
    assert list(profile([("a.csv", row) for row in rows]).columns) == ["b", "a", "c"]
    assert profile([]).columns == {} and profile([]).rows == 0


def test_rows_of_several_files_and_the_file_of_each(tmp_path: Path) -> None:
    one, two = write(tmp_path / "a.jsonl", {"x": 1}, {"x": None}), write(tmp_path / "b.jsonl", {"x": "é 🎬"})
    stream = RowStream([one, two])
    assert list(stream) == [(one, {"x": 1}), (one, {"x": None}), (two, {"x": "é 🎬"})] == list(stream)
    assert len(stream) == 3


def test_files_with_other_columns_are_named(tmp_path: Path) -> None:
    one, two = write(tmp_path / "a.jsonl", {"x": 1}), write(tmp_path / "b.jsonl", {"y": 1})
    with pytest.raises(ValueError, match=r"a.jsonl.*b.jsonl.*\(x, y\)"):
        profile(RowStream([one, two]))
    # rows of one file may differ: what counts are the columns of the whole file
    one, two = write(tmp_path / "a.jsonl", {"x": 1}, {"y": 1}), write(tmp_path / "b.jsonl", {"y": 1, "x": 2})
    assert profile(RowStream([one, two])).rows == 3


def test_a_damaged_row_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"x": 1}\n{"x": \n')
    with pytest.raises(ValueError, match="a.jsonl, line 2"):
        list(RowStream([str(tmp_path / "a.jsonl")]))


def test_values_that_json_cannot_hold_become_such_as_it_can(tmp_path: Path) -> None:
    table = {
        "decimal": [Decimal("1.50")],
        "day": [date(2020, 2, 29)],
        "nan": [float("nan")],
        "nested": [{"when": [date(2020, 2, 29)], "nan": float("inf")}],
        "bytes": [b"\x00\xff" * 1000],
    }
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    ((_, row),) = RowStream([str(tmp_path / "a.parquet")])
    assert row["decimal"] == 1.5 and row["day"] == "2020-02-29" and row["nan"] is None
    assert row["nested"] == {"when": ["2020-02-29"], "nan": None}
    assert len(json.dumps(row, allow_nan=False)) < 1000


@pytest.mark.parametrize(
    ("value", "time"),
    [
        (3, 3.0), ("2", 2.0), ("1970-01-01", 0.0), ("1970-01-02 00:00:01", 86401.0),
        ("1970-01-01T01:00:00+01:00", 0.0), (None, None), ("soon", None), (True, None),
    ],
)  # fmt: skip
def test_times_in_numbers_and_dates(value: object, time: float | None) -> None:
    assert time_of(value) == time
