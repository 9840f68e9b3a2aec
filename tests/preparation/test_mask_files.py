"""`prepare mask`: copies of data files without personal data. (`instructrec_jax.preparation.own_files` too)"""

import csv
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from instructrec_jax.files import read_jsonl, write_jsonl
from instructrec_jax.prepare import main

MAIL, OTHER = "ann@example.com", "bob@example.com"
ROWS = [
    {"id": f"of {MAIL}", "text": f"Write to {MAIL} or {OTHER}.", "label": "contact", "size": 4111111111111111},
    {"id": "2", "text": "你好 🙂, nothing here", "label": "other", "size": 2},
    {"id": "3", "text": f"{OTHER}", "label": MAIL, "size": 3},
]


def written(rows: list[dict[str, object]], file: Path) -> Path:
    if file.suffix == ".csv":
        with file.open("w", newline="", encoding="utf-8") as stream:
            table = csv.DictWriter(stream, list(rows[0]))
            table.writeheader()
            table.writerows(rows)
    elif file.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
    else:
        write_jsonl(file, rows)
    return file


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
def test_every_text_of_every_form(form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "masked.jsonl"
    card = main(["mask", str(written(ROWS, tmp_path / f"in.{form}")), "--out", str(out), "--kinds", "[email]"])
    rows = read_jsonl(out)
    assert [row["text"] for row in rows] == ["Write to <EMAIL_1> or <EMAIL_2>.", ROWS[1]["text"], "<EMAIL_1>"]
    assert rows[0]["id"] == "of <EMAIL_1>" and rows[2]["label"] == "<EMAIL_2>"  # a numbering for the whole row
    assert str(rows[0]["size"]) == "4111111111111111"
    assert card == {"rows": 3, "changed": 2, "counts": {"email": 5}}
    assert "3 rows, 2 of them with personal data\nmasked: email 5" in capsys.readouterr().out


def test_some_columns_and_what_is_inside_of_values(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": MAIL, "more": [MAIL, 1, None]}]
    source = written([{"messages": turns, "note": MAIL}], tmp_path / "in.jsonl")
    main(["mask", str(source), "--out", str(tmp_path / "out.jsonl"), "--columns", "[messages]"])
    (row,) = read_jsonl(tmp_path / "out.jsonl")
    masked = [{"role": "user", "content": "<EMAIL_1>", "more": ["<EMAIL_1>", 1, None]}]
    assert row == {"messages": masked, "note": MAIL}


def test_several_files_become_one(tmp_path: Path) -> None:
    files = [str(written(ROWS[:2], tmp_path / "a.jsonl")), str(written(ROWS[2:], tmp_path / "b.csv"))]
    assert main(["mask", *files, "--out", str(tmp_path / "out.jsonl")])["rows"] == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--out is missing"),
        (["--out", "out.csv"], "out.csv: name the .jsonl file"),
        (["--out", "in.jsonl"], "one of the files to read"),
        (["--out", "there.jsonl"], "there.jsonl exists.*--overwrite true"),
        (["--out", "out.jsonl", "--kinds", "[mail]"], "mail"),
        (["--out", "out.jsonl", "--kinds", "[]"], "nothing to mask"),
        (["--out", "out.jsonl", "--columns", "[txet]"], r"no row has a column 'txet'.*Did you mean .text"),
    ],
)
def test_bad_settings_are_named_and_write_nothing(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    written(ROWS, Path("in.jsonl"))
    Path("there.jsonl").write_text("mine")
    with pytest.raises(ValueError, match=message):
        main(["mask", "in.jsonl", *arguments])
    assert {path.name for path in tmp_path.iterdir()} == {"in.jsonl", "there.jsonl"}
    assert Path("there.jsonl").read_text() == "mine"


def test_a_damaged_row_is_named_without_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"text": "a"}\n{"text": "' + MAIL + "\n")
    with pytest.raises(ValueError, match=r"in.jsonl, line 2") as error:
        main(["mask", str(tmp_path / "in.jsonl"), "--out", str(tmp_path / "out.jsonl")])
    assert MAIL not in str(error.value) and not (tmp_path / "out.jsonl").exists()


def test_no_file_is_named() -> None:
    with pytest.raises(ValueError, match="name one or more data files"):
        main(["mask", "--out", "x.jsonl"])
