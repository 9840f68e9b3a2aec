"""Bad rows: told in few lines, summarized, and kept in skipped.jsonl."""

from pathlib import Path

import pytest

from instructrec_jax.data.skipped import (
    SkippedRow,
    add_skipped,
    bad_rows,
    listing,
    read_skipped,
    summarize_skipped,
    write_skipped,
)


def row(number: int, field: str = "output", reason: str = "empty text", detail: str = "fill it in.") -> SkippedRow:
    return SkippedRow(f"a.csv, line {number}", field, reason, detail)


def test_equal_errors_share_a_line_and_ten_lines_are_enough() -> None:
    lines = listing([row(n) for n in range(1200)]).splitlines()
    assert len(lines) == 1 and "a.csv, line 0" in lines[0] and "1,199 more" in lines[0]
    different = [row(n, detail=f"found {n}.") for n in range(30)]
    lines = listing(different).splitlines()
    assert len(lines) == 10 and all(f"found {n}." in line for n, line in enumerate(lines))
    assert listing([]) == ""


def test_bad_rows_are_counted_as_far_as_they_were_read() -> None:
    assert "source mine: 1 bad row." in bad_rows("mine", [row(1)])
    assert "source mine: 9 bad rows." in bad_rows("mine", [row(n) for n in range(9)])
    assert "at least 10 bad rows" in bad_rows("mine", [row(n) for n in range(10)])  # reading stops at ten
    assert "on_bad_example: skip" in bad_rows("mine", [row(1)])


def test_one_missing_column_is_one_line_without_the_advice_to_skip() -> None:
    missing = [row(n, reason="missing column") for n in range(10)]
    said = bad_rows("mine", missing)
    assert said.count("\n") == 0 and "9 more" in said and "on_bad_example" not in said
    assert "on_bad_example" in bad_rows("mine", [*missing, row(11)])


def test_the_summary_groups_places_inside_a_field() -> None:
    rows = [row(1, "output[0]"), row(2, "output[7]"), row(3, "", "malformed line"), row(4, "input", "wrong type")]
    said = summarize_skipped(rows)
    assert said.startswith("4 bad rows") and "\n" not in said
    assert "2 empty text (output)" in said and "1 malformed line," in said and "1 wrong type (input)" in said
    assert "a.csv, line 1, field 'output[0]'" in said
    assert summarize_skipped([]) == ""


def test_the_file_holds_the_rows_and_is_absent_without_any(tmp_path: Path) -> None:
    rows = [row(1), SkippedRow("数据 🎬, line 2", "", "malformed line", 'a "quoted" \n text')]
    assert read_skipped(tmp_path) == []
    assert write_skipped(tmp_path, rows) == tmp_path / "skipped.jsonl" and read_skipped(tmp_path) == rows
    assert write_skipped(tmp_path, []) is None and not (tmp_path / "skipped.jsonl").exists()
    assert write_skipped(tmp_path, []) is None  # again, where there is none


def test_only_new_rows_are_appended(tmp_path: Path) -> None:
    rows = [row(n) for n in range(5)]
    assert add_skipped(tmp_path, [], 0) == 0 and not (tmp_path / "skipped.jsonl").exists()
    assert add_skipped(tmp_path, rows[:2], 0) == 2
    assert add_skipped(tmp_path, rows[:2], 2) == 2
    assert add_skipped(tmp_path, rows, 2) == 5
    assert read_skipped(tmp_path) == rows


@pytest.mark.parametrize("line", ['{"where": "a"}', '{"where": 1, "field": "", "reason": "", "detail": ""}', "[]", "{"])
def test_a_damaged_file_is_named(line: str, tmp_path: Path) -> None:
    (tmp_path / "skipped.jsonl").write_text(line + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match="skipped.jsonl"):
        read_skipped(tmp_path)
