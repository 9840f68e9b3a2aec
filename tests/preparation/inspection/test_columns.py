"""Rows of files, and the profile of each column."""

import json
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from instructrec_jax.preparation.inspection.columns import Column, number, profile, read_rows


def write(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


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
    assert Column("c", values).kind == kind


def test_the_profile_of_a_column() -> None:
    column = profile([{"c": " NaN "}, {"c": "two words"}, {"c": "two words"}, {"d": 1}, {"c": ""}, {"c": "one"}])["c"]
    assert column.missing == 3 and column.filled == ["two words", "two words", "one"]
    assert column.distinct == ["one", "two words"] and column.words == pytest.approx(5 / 3)
    assert Column("c", ["1", 2, None, "x"]).numbers == [1.0, 2.0]
    assert Column("c", [3, "a"]).texts == ["3", "a"]
    assert Column("c", []).words == 0


def test_characters_of_scripts_without_spaces_count_as_half_words() -> None:
    assert Column("c", ["我想看恐怖片"]).words == 1 + 6 / 2
    assert Column("c", ["ein Film"]).words == 2


def test_columns_keep_the_order_in_which_they_appear() -> None:
    assert list(profile([{"b": 1}, {"a": 1, "b": 2}, {"c": 0}])) == ["b", "a", "c"]
    assert profile([]) == {}


def test_rows_of_several_files_and_the_file_of_each(tmp_path: Path) -> None:
    one, two = write(tmp_path / "a.jsonl", {"x": 1}, {"x": None}), write(tmp_path / "b.jsonl", {"x": "é 🎬"})
    assert read_rows([one, two]) == ([{"x": 1}, {"x": None}, {"x": "é 🎬"}], [one, one, two])


def test_files_with_other_columns_are_named(tmp_path: Path) -> None:
    one, two = write(tmp_path / "a.jsonl", {"x": 1}), write(tmp_path / "b.jsonl", {"y": 1})
    with pytest.raises(ValueError, match=r"a.jsonl.*b.jsonl.*\(x, y\)"):
        read_rows([one, two])
    # rows of one file may differ: what counts are the columns of the whole file
    one, two = write(tmp_path / "a.jsonl", {"x": 1}, {"y": 1}), write(tmp_path / "b.jsonl", {"y": 1, "x": 2})
    assert len(read_rows([one, two])[0]) == 3


def test_a_damaged_row_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"x": 1}\n{"x": \n')
    with pytest.raises(ValueError, match="a.jsonl, line 2"):
        read_rows([str(tmp_path / "a.jsonl")])


def test_values_that_json_cannot_hold_become_such_as_it_can(tmp_path: Path) -> None:
    table = {
        "decimal": [Decimal("1.50")],
        "day": [date(2020, 2, 29)],
        "nan": [float("nan")],
        "nested": [{"when": [date(2020, 2, 29)], "nan": float("inf")}],
        "bytes": [b"\x00\xff" * 1000],
    }
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    ((row,), _) = read_rows([str(tmp_path / "a.parquet")])
    assert row["decimal"] == 1.5 and row["day"] == "2020-02-29" and row["nan"] is None
    assert row["nested"] == {"when": ["2020-02-29"], "nan": None}
    assert len(json.dumps(row, allow_nan=False)) < 1000
