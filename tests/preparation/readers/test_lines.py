"""Lines, rows and records of files, and what a bad line does."""

import gzip
import warnings
from pathlib import Path

import pytest

from instructrec_jax.preparation.readers.lines import (
    BadLines,
    as_id,
    csv_rows,
    encoding_of,
    first_of,
    json_records,
    only,
    pick,
    sized,
    split_rows,
    with_gz,
)


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    data = text.encode(encoding)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def test_a_bad_line_stops_or_is_listed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a.csv:7: too short.*--on_bad_line"):
        BadLines()(tmp_path / "a.csv", 7, "too short")
    bad = BadLines(skip=True)
    bad(tmp_path / "a.csv", 7, "too short")
    bad(tmp_path / "a.csv", 9, "too long")
    assert bad.skipped == ["a.csv:7: too short", "a.csv:9: too long"]  # without folders of this machine


# --- which file ---


def test_a_file_or_its_gzipped_form(tmp_path: Path) -> None:
    assert with_gz(tmp_path / "a.csv") is None
    zipped = write(tmp_path / "a.csv.gz", "x")
    assert with_gz(tmp_path / "a.csv") == zipped
    plain = write(tmp_path / "a.csv", "x")
    assert with_gz(tmp_path / "a.csv") == plain  # the plain one first
    (tmp_path / "b.csv").mkdir()
    assert first_of(tmp_path, ["b.csv", "c.csv", "a.csv"]) == plain and first_of(tmp_path, ["b.csv"]) is None


def test_the_only_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\*.csv or \*.tsv .*of ratings; found none"):
        only(tmp_path, [".csv", ".tsv"], "of ratings")
    with pytest.raises(ValueError, match="nowhere"):
        only(tmp_path / "nowhere", [".csv"], "of ratings")
    ratings = write(tmp_path / "ratings.csv.gz", "x")
    for other in (".hidden.csv", "notes.txt"):
        write(tmp_path / other, "x")
    assert only(tmp_path, [".csv"], "of ratings") == ratings
    items = write(tmp_path / "items.csv", "x")
    with pytest.raises(ValueError, match="items.csv, ratings.csv.gz"):
        only(tmp_path, [".csv"], "of ratings")
    assert only(tmp_path, [".csv"], "of ratings", without=[items, None]) == ratings


# --- rows ---


@pytest.mark.parametrize("name", ["a.dat", "a.dat.gz"])
@pytest.mark.parametrize(("encoding", "found"), [("utf-8", "utf-8"), ("latin-1", "latin-1"), ("ascii", "utf-8")])
def test_the_encoding_is_found(name: str, encoding: str, found: str, tmp_path: Path) -> None:
    text = "one\n" * 1000 + ("two\n" if encoding == "ascii" else "naïve café\n")
    path = write(tmp_path / name, text, encoding)
    assert encoding_of(path) == found
    assert [fields for _, fields in split_rows(path, None, found)] == [line.split() for line in text.splitlines()]


def test_rows_of_csv_know_the_line_they_end_on(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'a,b\n\n"two\nlines",1\n"say ""no""",\n')
    assert list(csv_rows(path)) == [(1, ["a", "b"]), (4, ["two\nlines", "1"]), (5, ['say "no"', ""])]


@pytest.mark.parametrize("text", ['a,b\n1,"never closed\n', 'a,b\n"x"y,2\n'])
def test_csv_that_is_none_is_named(text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a.csv:2"):
        list(csv_rows(write(tmp_path / "a.csv", text)))


def test_separators(tmp_path: Path) -> None:
    path = write(tmp_path / "a.dat", "1::A::B\r\n\r\n2::C::D\n \n")
    assert list(split_rows(path, "::")) == [(1, ["1", "A", "B"]), (3, ["2", "C", "D"]), (4, [" "])]
    assert list(split_rows(path, "::", most=1))[0] == (1, ["1", "A::B"])
    assert list(split_rows(write(tmp_path / "b.txt", "u  1 2\t3\n"), None, most=1)) == [(1, ["u", "1 2\t3"])]


def test_rows_of_another_size_are_bad() -> None:
    bad = BadLines(skip=True)
    rows = [(1, ["a", "b"]), (2, ["a"]), (5, ["a", "b", "c"])]
    assert list(sized(rows, Path("x.csv"), 2, bad)) == rows[:1]
    assert bad.skipped == ["x.csv:2: expected 2 fields, found 1", "x.csv:5: expected 2 fields, found 3"]


def test_columns_are_picked_by_name_in_the_order_asked_for() -> None:
    rows = [(1, ["id", "title", "year"]), (2, ["7", "Moon", "2009"]), (3, ["8"])]
    bad = BadLines(skip=True)
    assert list(pick(iter(rows), Path("x.csv"), ["year", "id"], bad)) == [(2, ["2009", "7"])]
    assert bad.skipped == ["x.csv:3: expected 3 fields, found 1"]
    with pytest.raises(ValueError, match="x.csv.*'genre'.*id,title,year"):
        list(pick(iter(rows), Path("x.csv"), ["id", "genre"], bad))
    with pytest.raises(ValueError, match="x.csv.*'id'"):
        list(pick(iter([(1, ["id", "id"])]), Path("x.csv"), ["id"], bad))
    with pytest.raises(ValueError, match="x.csv.*'id'"):
        list(pick(iter([]), Path("x.csv"), ["id"], bad))  # an empty file


# --- records ---


@pytest.mark.parametrize(
    ("value", "text"),
    [("7", "7"), (7, "7"), (7.0, "7"), (7.5, ""), (True, ""), (None, ""), (float("nan"), ""), ([7], ""), ("", "")],
)
def test_ids_as_text(value: object, text: str) -> None:
    assert as_id(value) == text


def test_records_of_json_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json.gz", '{"a": 1}\n\n[2]\n{"a": 3,\n{"a": "é"}\n')
    bad = BadLines(skip=True)
    found = list(json_records(path, bad))
    assert found[0] == (1, {"a": 1}) and found[-1] == (5, {"a": "é"})
    assert [line.split(":")[1] for line in bad.skipped][-2:] == ["3", "4"]
    with pytest.raises(ValueError, match="a.json.gz:"):
        list(json_records(path, BadLines()))


def test_python_dicts_are_literals_and_nothing_else(tmp_path: Path) -> None:
    lines = ["{'a': 'it\\'s', 'b': None}", "{'a': __import__('os').getcwd()}", "{1: 2}", "['a']", "{'a': '\\d'}"]
    path = write(tmp_path / "a.json", "\n".join(lines))
    bad = BadLines(skip=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = list(json_records(path, bad, python_dicts=True))
    assert found == [(1, {"a": "it's", "b": None}), (5, {"a": "\\d"})]
    assert [line.split(":")[1] for line in bad.skipped] == ["2", "3", "4"]
    with pytest.raises(ValueError, match="a.json:1"):
        list(json_records(path, BadLines()))
