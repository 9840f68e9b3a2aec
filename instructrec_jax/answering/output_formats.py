"""Rows as JSON lines, and a file of them as CSV, TSV, Parquet or NumPy, in constant memory.

A row that the format cannot hold is a `BadExample` when it is answered, not an error of the last step: see `writable`.
"""

import base64
import csv
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO
from uuid import UUID

import numpy as np

from instructrec_jax.data.example import BadExample
from instructrec_jax.files import replacing

if TYPE_CHECKING:
    import pyarrow

CHUNK = 16384  # rows of a row group in Parquet
VECTOR = "vector"  # name of the column with vectors; in JSON lines they are base64 of little-endian float32
_HALF_PAIR = re.compile("[\ud800-\udfff]")
_BREAK = re.compile("[\t\r\n]")


# ---------------------------------------------------------------- rows


def line(record: Mapping[str, object]) -> bytes:
    """A record as a line of JSON in UTF-8; half of a surrogate pair, which UTF-8 does not have, is escaped (\\ud800).

    Raises ValueError for NaN and infinity, which JSON does not have.
    """
    return _json(record).encode() + b"\n"


def _json(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return text if _HALF_PAIR.search(text) is None else json.dumps(value, allow_nan=False)


def writable(record: Mapping[str, object], ending: str) -> dict[str, object]:
    """The record in JSON's types: dates and times as ISO 8601, durations, decimals and UUIDs as texts, NaN as null.

    Args:
      ending: of the output (.jsonl, .csv ...).

    Raises BadExample, with the field, for what a file with this ending cannot hold.
    """
    for name in record:
        _check_text(name, name, ending)
    return {name: _plain(value, name, ending, inside=False) for name, value in record.items()}


def _plain(value: object, field: str, ending: str, *, inside: bool = True) -> object:
    if isinstance(value, str):
        if not inside or ending == ".parquet":  # in CSV and TSV, inner texts are escaped as JSON
            _check_text(value, field, ending)
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, Mapping):
        return {_name(key, field, ending): _plain(each, f"{field}.{key}", ending) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each, f"{field}[{number}]", ending) for number, each in enumerate(value)]
    if isinstance(value, date | datetime | time):
        return value.isoformat()
    if isinstance(value, Decimal | timedelta | UUID):
        return str(value)
    detail = f"{type(value).__name__} is neither a text nor a number: remove the column, or write its values as texts."
    raise BadExample(field, "not writable", detail)


def _name(key: object, field: str, ending: str) -> str:
    name = str(_plain(key, field, ending, inside=False))
    _plain(name, field, ending)
    return name


def _check_text(text: str, field: str, ending: str) -> None:
    if ending in (".csv", ".tsv", ".parquet") and (half := _HALF_PAIR.search(text)):
        found = f"character {half.start()} is half a surrogate pair (\\u{ord(half[0]):04x})"
        raise BadExample(field, "not writable", f"{found}, which {ending} cannot hold: mend the text, or use .jsonl.")
    if ending == ".tsv" and (found_break := _BREAK.search(text)):
        found = f"character {found_break.start()} is a tab or a line break"
        raise BadExample(field, "not writable", f"{found}, which a cell of .tsv cannot hold: use .csv.")


# ---------------------------------------------------------------- files


def convert(answers: Path, out: Path, *, vectors: bool = False) -> None:
    """Writes JSON lines as `out`, in the format of its ending: .csv, .tsv, .parquet or .npy (the vectors alone).

    Args:
      vectors: whether the lines have vectors (see `coded`).

    Raises ValueError where a column has values of types that do not fit together (Parquet).
    """
    with replacing(out) as file:
        if out.suffix == ".parquet":
            _write_parquet(answers, file, vectors)
        else:
            {".csv": _write_csv, ".tsv": _write_tsv, ".npy": _write_npy}[out.suffix](answers, file)


def _read(answers: Path) -> Iterator[dict[str, object]]:
    with open(answers, "rb") as file:
        for each in file:
            yield json.loads(each)


def _columns(answers: Path) -> list[str]:
    return list(dict.fromkeys(name for record in _read(answers) for name in record))


def _cell(value: object) -> object:
    if isinstance(value, dict | list):
        return _json(value)
    return "" if value is None else value


class _Lines:
    """Takes the rows of a csv.writer, which quotes "\\r" in a cell only where it ends rows with it."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file

    def write(self, row: str) -> None:
        self.file.write(row.removesuffix("\r\n").encode() + b"\n")


def _write_csv(answers: Path, file: BinaryIO) -> None:
    columns = _columns(answers)
    table = csv.writer(_Lines(file), lineterminator="\r\n")
    if columns:
        table.writerow(columns)
    for record in _read(answers):
        table.writerow([_cell(record.get(name)) for name in columns])


def _write_tsv(answers: Path, file: BinaryIO) -> None:
    """Without quoting, as TSV is read."""
    columns = _columns(answers)
    if columns:
        file.write("\t".join(columns).encode() + b"\n")
    for record in _read(answers):
        file.write("\t".join(str(_cell(record.get(name))) for name in columns).encode() + b"\n")


def coded(vector: np.ndarray) -> str:
    """float32 [width] as the text that JSON lines hold."""
    return base64.b64encode(np.ascontiguousarray(vector, "<f4").tobytes()).decode()


def _write_npy(answers: Path, file: BinaryIO) -> None:
    with open(answers, "rb") as lines:
        count = sum(1 for _ in lines)
    for number, record in enumerate(_read(answers)):
        vector = base64.b64decode(str(record[VECTOR]))
        if not number:
            header = {"descr": "<f4", "fortran_order": False, "shape": (count, len(vector) // 4)}
            np.lib.format.write_array_header_2_0(file, header)
        file.write(vector)


def _write_parquet(answers: Path, file: BinaryIO, vectors: bool) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([])
    try:
        for chunk in _chunks(answers):
            schema = pa.unify_schemas([schema, _table(chunk, vectors).schema], promote_options="permissive")
        with pq.ParquetWriter(file, schema) as writer:
            for chunk in _chunks(answers):
                writer.write_table(_table(chunk, vectors, schema))
    except (pa.ArrowException, OverflowError) as error:
        raise ValueError(
            f"the rows do not fit into the columns of a Parquet file ({error}). All rows are in {answers} as JSON "
            "lines: rename it to .jsonl, or mend the column and begin again."
        ) from None


def _chunks(answers: Path) -> Iterator[list[dict[str, object]]]:
    rows = _read(answers)
    while chunk := list(itertools.islice(rows, CHUNK)):
        yield chunk


def _table(chunk: list[dict[str, object]], vectors: bool, schema: "pyarrow.Schema | None" = None) -> "pyarrow.Table":
    """The rows as a table; without a schema with the columns of all of them (`from_pylist` has those of the first)."""
    import pyarrow as pa

    names = list(dict.fromkeys(name for record in chunk for name in record)) if schema is None else schema.names
    columns = {}
    for name in names:
        values = [record.get(name) for record in chunk]
        if vectors and name == VECTOR:
            array = np.stack([np.frombuffer(base64.b64decode(str(each)), "<f4") for each in values])
            columns[name] = pa.FixedSizeListArray.from_arrays(pa.array(array.ravel()), array.shape[1])
        else:
            columns[name] = pa.array(values, None if schema is None else schema.field(name).type)
    return pa.table(columns, schema)
