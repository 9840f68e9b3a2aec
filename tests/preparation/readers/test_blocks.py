"""Blocks read by pyarrow give what the same rows give one by one, and bad ones the same messages."""

import gzip
import random
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from instructrec_jax.preparation.readers import blocks
from instructrec_jax.preparation.readers.blocks import Block, Layout, parquet_blocks, text_blocks
from instructrec_jax.preparation.readers.interactions import gather, gather_blocks
from instructrec_jax.preparation.readers.lines import BadLines, csv_rows, pick, split_rows
from instructrec_jax.ranking.catalogue import Catalogue, Interactions

NAMES = [f"i{number}" for number in range(5)] + ["01", "7", "ü", "a b"]
ITEMS = Catalogue(NAMES, NAMES, NAMES)
LAYOUT = Layout(4, (1, 0, 3, 2))  # item, user, time, rating


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "SIZE", 60)
    monkeypatch.setattr(blocks, "ROWS", 4)


def both(found: list[Block], again: list[Block], path: Path, skip: bool = False) -> list[Any]:
    """(interactions or the error, bad lines): by columns where there are some, and row by row."""
    results = []
    for kind in ("columns", "rows"):
        bad = BadLines(skip=skip)
        try:
            if kind == "columns":
                result: Any = gather_blocks(found, path, ITEMS, bad, rated=True, timed=True)
            else:
                rows = (row for block in again for row in block.rows())
                result = gather(rows, path, ITEMS, bad)
        except ValueError as error:
            result = str(error)
        results.append((result, bad.skipped))
    return results


def of_text(path: Path, content: bytes, separator: str = ",", skip: bool = False) -> tuple[Any, list[str], int]:
    """The interactions or the error, the bad lines, and the number of blocks with columns; the same both ways."""
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    by_column = BadLines(skip=skip)
    (found, skipped), (expected, listed) = (both_of(path, separator, skip, columns) for columns in (True, False))
    assert same(found, expected), (found, expected)
    assert skipped == listed
    try:
        fast = sum(block.columns is not None for block in text_blocks(path, LAYOUT, by_column, separator=separator))
    except ValueError:
        fast = 0
    return found, skipped, fast


def both_of(path: Path, separator: str, skip: bool, columns: bool) -> tuple[Any, list[str]]:
    bad = BadLines(skip=skip)
    try:
        if columns:
            found = text_blocks(path, LAYOUT, bad, separator=separator)
            return gather_blocks(found, path, ITEMS, bad, rated=True, timed=True), bad.skipped
        whole = csv_rows(path) if separator == "," else split_rows(path, separator)
        return gather(pick(whole, path, ("user", "item", "stars", "time"), bad), path, ITEMS, bad), bad.skipped
    except ValueError as error:
        return str(error), bad.skipped


def same(found: Any, expected: Any) -> bool:
    if not isinstance(found, Interactions) or not isinstance(expected, Interactions):
        return bool(found == expected)
    arrays = zip(
        (found.user, found.item, found.timestamp, found.rating),
        (expected.user, expected.item, expected.timestamp, expected.rating),
        strict=True,
    )
    return found.user_ids == expected.user_ids and all(
        a is not None and b is not None and a.dtype == b.dtype and a.tobytes() == b.tobytes() for a, b in arrays
    )


def rows(count: int = 30) -> list[list[str]]:
    draw = random.Random(0)
    return [
        [
            draw.choice(NAMES),
            f"u{draw.randrange(6)}",
            str(1_300_000_000 + draw.randrange(99)),
            draw.choice(["4", "3.5"]),
        ]
        for _ in range(count)
    ]


def text(lines: list[list[str]], separator: str = ",", end: str = "\n") -> bytes:
    return end.join(separator.join(line) for line in [["item", "user", "time", "stars"], *lines, []]).encode()


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
@pytest.mark.parametrize("form", ["plain", "crlf", "bom", "no last line end", "blank lines", "quoted", "quoted header"])
def test_plain_files_are_read_as_columns(form: str, name: str, tmp_path: Path) -> None:
    content = text(rows())
    if form == "crlf":
        content = text(rows(), end="\r\n")
    elif form == "bom":
        content = b"\xef\xbb\xbf" + content
    elif form == "no last line end":
        content = content.rstrip(b"\n")
    elif form == "blank lines":
        content = content.replace(b"\n", b"\n\n")
    elif form == "quoted":
        content = text([[f'"{cell}"' for cell in line] for line in rows()])
    elif form == "quoted header":
        content = content.replace(b"item,user", b'"item","user"')
    found, _, fast = of_text(tmp_path / name, content)
    assert isinstance(found, Interactions) and len(found) == 30
    assert fast >= 8


def test_tabs_have_no_quotes(tmp_path: Path) -> None:
    lines = [*rows(), ["i1", 'say "u1"', "1300000000", "2"], ["i2", '"u1', "1300000000", "2"]]
    found, _, fast = of_text(tmp_path / "a.tsv", text(lines, "\t"), "\t")
    assert found.user_ids[-2:] == ['say "u1"', '"u1'] and fast >= 8


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("i1,u1,1300000000", "expected 4 fields, found 3"),
        ("i1,u1,1300000000,4,5", "expected 4 fields, found 5"),
        ("i9,u1,1300000000,4", "item 'i9' is not in the item file"),
        (",u1,1300000000,4", "item '' is not in the item file"),
        ("i1, ,1300000000,4", "empty user id"),
        ("i1,u1,1300000000,", "rating '' is not a number"),
        ("i1,u1,1300000000,nan", "rating 'nan' is not finite"),
        ("i1,u1,1300000000,1e999", "rating '1e999' is not finite"),
        ("i1,u1,yesterday,4", "timestamp 'yesterday' is not a number or a date"),
        ("i1,u\x001,1300000000,4", "NUL"),
    ],
)
def test_bad_lines_have_their_number(line: str, named: str, tmp_path: Path) -> None:
    content = text([*rows(12), [line], *rows(9)])
    found, _, fast = of_text(tmp_path / "a.csv", content)
    assert f"a.csv:14: {named}" in found or (named == "NUL" and "a.csv:14" in found)
    found, skipped, _ = of_text(tmp_path / "a.csv", content, skip=True)
    assert len(found) == 21 and len(skipped) == 1 and skipped[0].startswith("a.csv:14: ")


@pytest.mark.parametrize(
    "line",
    [
        "i1, u1,1300000000,4",
        "i1,u1, 1300000000 ,4",
        "i1,u1,1_300_000_000,4",
        "i1,u1,1.3e9,+4",
        '"i1",u"1,1300000000,4',
        '"a b","u,1","1300000000",4',
        '"i1","u\n1",1300000000,4',
        '"i1","u""1",1300000000,4',
        '"i1","u1,1300000000,4',
        'i1,"u1"x,1300000000,4',
        '""',
        "i1,u1,2011-03-13,4",
        "ü,ü,1300000000,4",
    ],
)
def test_what_is_unusual_is_what_it_was(line: str, tmp_path: Path) -> None:
    for skip in (False, True):
        of_text(tmp_path / "a.csv", text([*rows(7), [line], *rows(9)]), skip=skip)


def test_bytes_that_are_not_utf8_name_their_line(tmp_path: Path) -> None:
    content = text(rows(7)) + b"i1,u\xe9,1300000000,4\n" + text(rows(9)).split(b"\n", 1)[1]
    found, _, _ = of_text(tmp_path / "a.csv", content)
    assert "a.csv:9: not utf-8" in found


def test_dates_become_seconds(tmp_path: Path) -> None:
    lines = [[item, user, f"2011-03-13 07:06:{int(when) % 60:02}", stars] for item, user, when, stars in rows()]
    found, _, fast = of_text(tmp_path / "a.csv", text(lines))
    assert found.timestamp[0] // 60 == datetime(2011, 3, 13, 7, 6, tzinfo=UTC).timestamp() // 60 and fast >= 8


def test_an_incomplete_gzip_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress(text(rows(3000)))[:-300])
    with pytest.raises(ValueError, match="a.csv.gz is not a complete gzip file"):
        gather_blocks(text_blocks(path, LAYOUT, BadLines()), path, ITEMS, BadLines(), rated=True, timed=True)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"user": pa.array([7, 8, 7, 9, 7, 8], pa.int64())},
        {"user": pa.array([7.0, 8.0, 7.0, 9.0, 7.0, 8.0])},
        {"user": pa.array(["a", "b", "a", "a", "c", "b"]).dictionary_encode()},
        {"item": pa.array([7, 7, 7, 7, 7, 7], pa.uint8())},
        {"time": pa.array([datetime(2020, 1, n + 1, 3, 4, 5, 678901) for n in range(6)])},
        {"time": pa.array([datetime(2020, 1, n + 1, tzinfo=UTC) for n in range(6)], pa.timestamp("ms", "Asia/Tokyo"))},
        {"time": pa.array([date(2020, 1, n + 1) for n in range(6)])},
        {"time": pa.array([f"{1_300_000_000 + n}" for n in range(6)])},
        {"stars": pa.array([1, 2, 3, 4, 5, 1], pa.int8())},
        {"stars": pa.array([1, 2.5, 3, 4, 5, 1], pa.float32())},
        {"user": pa.array([True, False, True, True, True, True])},
        {"user": pa.array(["a", None, "a", "a", "c", "b"])},
        {"stars": pa.array([1.0, 2.0, None, 4.0, 5.0, 6.0])},
        {"time": pa.array([1.0, float("nan"), 2.0, 3.0, 4.0, 5.0])},
        {"item": pa.array(["i1", "i9", "i1", "i1", "i1", "i1"])},
    ],
)
@pytest.mark.parametrize("skip", [False, True])
def test_parquet_of_every_type(change: dict[str, pa.Array], skip: bool, tmp_path: Path) -> None:
    columns: dict[str, Any] = {
        "user": ["a", "b", "a", "d", "c", "b"],
        "item": ["i1", "i2", "i3", "01", "i1", "i4"],
        "time": [1_300_000_000 + n for n in range(6)],
        "stars": [1.0, 2.0, 3.0, 4.0, 5.0, 4.5],
    } | change
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table(columns), path)
    names = ("user", "item", "stars", "time")
    (found, skipped), (expected, listed) = both(
        list(parquet_blocks(path, names)), list(parquet_blocks(path, names)), path, skip
    )
    assert same(found, expected), (found, expected)
    assert skipped == listed
    if not change:
        assert all(block.columns is not None for block in parquet_blocks(path, names))
        assert np.array_equal(found.user, [0, 1, 0, 2, 3, 1])
