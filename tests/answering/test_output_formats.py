"""What each format can hold, and what becomes of the rest."""

import json
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from letters import ASKED, asker

from instructrec_jax.answering import output_formats
from instructrec_jax.answering.output_formats import convert, line, writable
from instructrec_jax.answering.prediction_files import Counts, predict_file
from instructrec_jax.data.example import BadExample
from instructrec_jax.data.rows import open_rows
from instructrec_jax.files import read_jsonl, write_jsonl

HALF = "a\ud800"


@pytest.mark.parametrize("ending", ["jsonl", "csv", "tsv", "parquet"])
@pytest.mark.parametrize("field", ["text", "note"])
def test_half_a_surrogate_pair_is_written_or_named(field: str, ending: str, tmp_path: Path) -> None:
    """In the text that the run reads it is always an error; in another column where the format has no word for it."""
    rows = [{"text": "ab", "note": "c"}, {"text": "abc", "note": "d"} | {field: HALF}]
    write_jsonl(tmp_path / "in.jsonl", rows)
    out = tmp_path / f"out.{ending}"
    written = ending == "jsonl" and field == "note"
    if not written:
        named = "instruction" if field == "text" else field  # of the example, or of the row
        with pytest.raises(BadExample, match=rf"in\.jsonl, line 2, field '{named}'"):
            predict_file(asker(), tmp_path / "in.jsonl", out, asked=ASKED)
    assert not out.exists() or written
    counts = predict_file(asker(), tmp_path / "in.jsonl", out, asked=ASKED, skip=True)
    assert counts == (Counts(2, 0) if written else Counts(1, 1))
    if written:
        out.read_text(encoding="utf-8")  # valid UTF-8
        assert [row["note"] for row in read_jsonl(out)] == ["c", HALF]
    else:
        assert "line 2" in str(read_jsonl(tmp_path / "out.rejected.jsonl")[0]["where"])
        assert len(open_rows(str(out))) == 1


def test_half_a_surrogate_pair_inside_of_a_list(tmp_path: Path) -> None:
    for ending in (".csv", ".tsv", ".jsonl"):
        assert writable({"a": [HALF]}, ending) == {"a": [HALF]}  # JSON escapes it
    with pytest.raises(BadExample, match=r"a\[1\]"):
        writable({"a": ["b", HALF]}, ".parquet")
    with pytest.raises(BadExample, match="not writable"):
        writable({HALF: 1}, ".csv")
    (tmp_path / "in.partial").write_bytes(line({"a": [HALF]}))
    convert(tmp_path / "in.partial", tmp_path / "out.csv")
    assert json.loads(str(open_rows(str(tmp_path / "out.csv")).row(0)["a"])) == [HALF]


def test_values_that_json_does_not_have() -> None:
    found = writable(
        {
            "day": date(2024, 5, 1),
            "at": datetime(2024, 5, 1, 12),
            "price": Decimal("1.10"),
            "x": float("nan"),
            "b": True,
        },
        ".jsonl",
    )
    assert found == {"day": "2024-05-01", "at": "2024-05-01T12:00:00", "price": "1.10", "x": None, "b": True}
    with pytest.raises(BadExample, match="picture.*bytes"):
        writable({"picture": b"a"}, ".jsonl")


def test_columns_of_a_parquet_file_are_passed_through(tmp_path: Path) -> None:
    days = pa.array([datetime(2024, 5, 1), None], pa.timestamp("us"))
    pq.write_table(pa.table({"text": ["a", "bb"], "day": days, "x": [float("nan"), 1.5]}), tmp_path / "in.parquet")
    predict_file(asker(), tmp_path / "in.parquet", tmp_path / "out.parquet", asked=ASKED)
    found = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert [(row["day"], row["x"], row["prediction"]) for row in found] == [
        ("2024-05-01T00:00:00", None, "1"),
        (None, 1.5, "2"),
    ]


def test_a_column_that_begins_late_is_in_every_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output_formats, "CHUNK", 2)
    (tmp_path / "in.partial").write_bytes(b"".join(map(line, [{"a": 1}, {"a": 2}, {"a": 3}, {"b": "x"}])))
    for ending in (".csv", ".tsv", ".parquet"):
        out = tmp_path / f"out{ending}"
        convert(tmp_path / "in.partial", out)
        rows = open_rows(str(out))
        assert [rows.row(number)["b"] or "" for number in range(4)] == ["", "", "", "x"]


def test_types_that_do_not_fit_into_a_parquet_column(tmp_path: Path) -> None:
    answers, out = tmp_path / "out.parquet.partial", tmp_path / "out.parquet"
    for rows in ([{"a": 1}, {"a": "x"}], [{"a": 2**70}], [{"a": {}}]):
        answers.write_bytes(b"".join(map(line, rows)))
        with pytest.raises(ValueError, match=r"out\.parquet\.partial"):
            convert(answers, out)
        assert [path.name for path in tmp_path.iterdir()] == [answers.name]  # the rows are kept


def test_cells_with_line_breaks(tmp_path: Path) -> None:
    rows = [{"a": "b\rc"}, {"a": 'd\n"e"'}, {"a": ""}]
    (tmp_path / "in.partial").write_bytes(b"".join(map(line, rows)))
    convert(tmp_path / "in.partial", tmp_path / "out.csv")
    found = open_rows(str(tmp_path / "out.csv"))
    assert [found.row(number) for number in range(3)] == rows
    for text in ("b\tc", "b\rc", "b\nc"):
        with pytest.raises(BadExample, match="'a'.*csv"):
            writable({"a": text}, ".tsv")
