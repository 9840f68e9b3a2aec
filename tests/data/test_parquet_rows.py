"""Parquet files by number: row groups, jumps, damage."""

import datetime
import pickle
import random
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from instructrec_jax.data import parquet_rows
from instructrec_jax.data.example import BadExample
from instructrec_jax.data.parquet_rows import ParquetRows
from instructrec_jax.data.rows import open_rows
from instructrec_jax.data.unpacked import PlainFile

ROWS = [{"text": f"film {n}", "labels": ["a"] * (n % 3), "n": n} for n in range(50)]


def written(path: Path, rows: object = ROWS, **options: object) -> Path:
    table = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(rows)
    pq.write_table(table, path, **options)
    return path


def opened(path: Path, columns: set[str] | None = None) -> ParquetRows:
    return ParquetRows(PlainFile(path, text=False), columns)


@pytest.mark.parametrize("size", [1, 7, 20, 100])
def test_rows_in_any_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(parquet_rows, "BATCH", 7)
    rows = opened(written(tmp_path / "a.parquet", row_group_size=size))
    order = list(range(50))
    assert len(rows) == 50 and [rows.row(n) for n in order] == ROWS
    random.Random(0).shuffle(order)
    assert [rows.row(n) for n in order] == [ROWS[n] for n in order]
    copy = pickle.loads(pickle.dumps(rows))
    assert copy.row(49) == ROWS[49] and copy.where(3).endswith("row 4") and len(pickle.dumps(rows)) < 3_000


def test_a_jump_reads_only_its_row_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = opened(written(tmp_path / "a.parquet", row_group_size=10))
    read: list[int] = []
    own = pq.ParquetFile.iter_batches

    def counted(self: pq.ParquetFile, *args: object, row_groups: list[int], **options: object) -> object:
        read.extend(row_groups)
        return own(self, *args, row_groups=row_groups, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", counted)
    assert [rows.row(n)["n"] for n in (3, 5, 25, 26, 41)] == [3, 5, 25, 26, 41] and read == [0, 2, 4]


def test_empty_row_groups_and_no_needed_columns(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(ROWS[:3])
    with pq.ParquetWriter(tmp_path / "a.parquet", table.schema) as writer:
        for part in (table.slice(0, 0), table.slice(0, 2), table.slice(0, 0), table.slice(2)):
            writer.write_table(part)
    rows = opened(tmp_path / "a.parquet")
    assert [rows.row(n) for n in range(3)] == ROWS[:3]
    none = opened(tmp_path / "a.parquet", {"zzz"})
    assert [none.row(n) for n in range(3)] == [{}, {}, {}] and list(none.columns) == ["text", "labels", "n"]


def test_columns_of_mixed_types(tmp_path: Path) -> None:
    day = datetime.datetime(2024, 1, 2, tzinfo=datetime.UTC)
    columns = {
        "text": pa.array(["a", None], pa.large_string()),
        "coded": pa.array(["x", "y"]).dictionary_encode(),
        "money": pa.array([Decimal("1.50"), None]),
        "day": pa.array([day, None], pa.timestamp("ns", "UTC")),
        "turns": pa.array([[{"role": "user", "content": None}], []]),
        "pairs": pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int8())),
        "raw": pa.array([b"\xff", None]),
        "none": pa.nulls(2),
        "small": pa.array([1.5, None], pa.float16()),
    }
    rows = opened(written(tmp_path / "a.parquet", pa.table(columns), row_group_size=1))
    first, second = rows.row(0), rows.row(1)
    assert first["text"] == "a" and first["coded"] == "x" and first["money"] == Decimal("1.50") and first["day"] == day
    assert first["turns"] == [{"role": "user", "content": None}] and first["pairs"] == [("k", 1)]
    assert second["text"] is None and second["coded"] == "y" and second["turns"] == [] and first["small"] == 1.5


def test_a_text_that_is_not_utf_8_is_one_bad_row(tmp_path: Path) -> None:
    bad = pa.Array.from_buffers(
        pa.string(), 2, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pa.py_buffer(b"a\xff")]
    )
    rows = opened(written(tmp_path / "a.parquet", pa.table({"n": [1, 2], "text": bad})))
    assert rows.row(0) == {"n": 1, "text": "a"}
    with pytest.raises(BadExample, match="'text': not UTF-8"):
        rows.row(1)


def test_a_damaged_row_group_is_named(tmp_path: Path) -> None:
    path = written(tmp_path / "a.parquet", row_group_size=10, compression="gzip")
    place = pq.ParquetFile(path).metadata.row_group(2).column(0).data_page_offset
    data = bytearray(path.read_bytes())
    data[place + 25 : place + 45] = bytes(20)
    path.write_bytes(data)
    rows = open_rows(str(path))
    assert rows.row(19) == ROWS[19]
    for _ in range(2):
        with pytest.raises(ValueError, match=r"a.parquet: .*row group 3 \(rows 21 to 30\).*write"):
            rows.row(22)
    assert rows.row(30) == ROWS[30]


def test_one_of_many_files_is_open(tmp_path: Path) -> None:
    for number in range(5):
        written(tmp_path / f"{number}.parquet", ROWS[number * 10 : number * 10 + 10])
    rows = open_rows(str(tmp_path))
    assert [rows.row(n) for n in range(50)] == ROWS and rows.row(3) == ROWS[3]
    assert [part._parquet is not None for part in rows.parts] == [True, False, False, False, False]
