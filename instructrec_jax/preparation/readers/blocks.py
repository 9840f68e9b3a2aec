"""Interactions from large tables, block by block as columns: CSV, tabs and Parquet, by pyarrow.

A block is read by pyarrow if all of it is plain: the fields that the header promises, quotes around whole fields alone,
numbers or ISO 8601 dates without zones. Any other block is read row by row in Python, by the rules that every format
has, so that bad lines have the same messages, and results do not depend on what is fast.

Why pyarrow and NumPy: they are there anyway. On 25 million interactions polars is faster where lines are in random
order, slower where they are sorted, and takes 4.5 GB where these take 2.3; DuckDB is slower. Either would be one more
dependency of everybody. docs/scaling.md has the measurement.
"""

import io
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv

from instructrec_jax.parsing import open_parquet, raw_blocks
from instructrec_jax.preparation.readers.lines import BadLines, as_id, csv_rows, sized, split_rows

SIZE = 8_000_000  # bytes of a block of text
ROWS = 250_000  # rows of a block of Parquet
EXACT = 2**53  # integers below it are exact as float64
# Fields without quotes, or quoted as a whole and without separators. Possessive: no backtracking over megabytes.
_WHOLE_QUOTES = re.compile(rb'(?:(?:"[^",\n]*+"|[^",\n]*+)[,\n])*+')
_UNITS = {"s": 1, "ms": 1_000, "us": 1_000_000}

Rows = Iterable[tuple[int, Sequence[object]]]


@dataclass(frozen=True)
class Ids:
    """A column of ids: the distinct ones in order of appearance, and the number of each row's."""

    distinct: list[str]
    codes: np.ndarray


@dataclass(frozen=True)
class Columns:
    """The columns of a block. Times that were dates are seconds since 1970."""

    user: Ids
    item: Ids
    rating: np.ndarray | None
    time: np.ndarray | None
    dates: bool


@dataclass(frozen=True)
class Block:
    """A part of a table, as columns if it is plain, and row by row: (line, (user, item, rating, time))."""

    columns: Columns | None
    rows: Callable[[], Rows]


@dataclass(frozen=True)
class Layout:
    """Which of a row's fields are user, item, rating and time (None: the source has none)."""

    fields: int
    places: tuple[int, int, int | None, int | None]

    def pick(self, rows: Iterable[tuple[int, Sequence[object]]]) -> Rows:
        for line, fields in rows:
            yield line, [None if place is None else fields[place] for place in self.places]


# ---------------------------------------------------------------- text


def text_blocks(path: Path, layout: Layout, bad: BadLines, *, separator: str = ",") -> Iterator[Block]:
    """The blocks of a text file, gzipped or not, whose first line names the columns.

    Args:
      separator: "," with the quotes of CSV, or a tab without quotes.
    """

    def rows(lines: Iterable[bytes], before: int, headed: bool) -> Rows:
        if separator == ",":
            found = csv_rows(path, lines, before)
        else:
            found = split_rows(path, separator, lines=lines, before=before)
        if headed:
            next(found, None)
        return layout.pick(sized(found, path, layout.fields, bad))

    before, dated = 0, False
    blocks = raw_blocks(path, SIZE)
    for number, block in enumerate(blocks):
        headed = number == 0
        plain = _plain(block, separator, headed)
        if plain is None and separator == "," and b'"' in block:  # a quote may reach into later blocks
            lines = (line for each in chain([block], blocks) for line in io.BytesIO(each))
            yield Block(None, partial(rows, lines, before, headed))
            return
        columns = None if plain is None else _text_columns(plain, layout, separator, dated)
        dated = columns.dates if columns is not None else dated
        yield Block(columns, partial(rows, io.BytesIO(block), before, headed))
        before += block.count(b"\n")


def _plain(block: bytes, separator: str, headed: bool) -> bytes | None:
    """The block without its header and quotes, if pyarrow reads it as Python does; else None."""
    if b"\r" in block:
        block = block.replace(b"\r\n", b"\n")
    if b"\r" in block or b"\x00" in block:
        return None
    if not block.isascii():
        try:
            block.decode("utf-8")
        except UnicodeDecodeError:
            return None
    if not block.endswith(b"\n"):
        block += b"\n"
    if separator == "," and b'"' in block:
        if not _WHOLE_QUOTES.fullmatch(block):
            return None
        if re.search(rb'(?m)^""$', block):  # one empty field, not a blank line
            return None
        block = block.replace(b'"', b"")
    if headed:
        first, _, block = block.partition(b"\n")
        if not first.strip():
            return None
    return block


def _text_columns(block: bytes, layout: Layout, separator: str, dated: bool) -> Columns | None:
    """The columns; None if a field is not what it should be. dated: whether to try dates before numbers."""
    user, item, rating, time = layout.places
    ids = pa.dictionary(pa.int32(), pa.string())
    types: dict[str, pa.DataType] = {str(user): ids, str(item): ids}
    if rating is not None:
        types[str(rating)] = pa.float64()
    if not block.strip():
        return None
    for kind in _time_types(time is not None, dated):
        if kind is not None:
            types[str(time)] = kind
        try:
            table = pa.csv.read_csv(
                pa.BufferReader(block),
                pa.csv.ReadOptions(column_names=[str(place) for place in range(layout.fields)]),
                pa.csv.ParseOptions(delimiter=separator, quote_char=False, double_quote=False),
                pa.csv.ConvertOptions(column_types=types, include_columns=list(types), null_values=[]),
            )
        except pa.ArrowInvalid:
            continue
        return _columns(
            table.column(str(user)),
            table.column(str(item)),
            None if rating is None else table.column(str(rating)),
            None if time is None else table.column(str(time)),
        )
    return None


def _time_types(timed: bool, dated: bool) -> list[pa.DataType | None]:
    if not timed:
        return [None]
    kinds = [pa.float64(), pa.timestamp("us")]
    return kinds[::-1] if dated else kinds


# ---------------------------------------------------------------- Parquet


def parquet_blocks(path: Path, names: tuple[str, str, str | None, str | None]) -> Iterator[Block]:
    """The blocks of a Parquet file. names: the columns of user, item, rating and time (None: there is none)."""
    used = list(dict.fromkeys(name for name in names if name is not None))
    before = 0
    try:
        for batch in open_parquet(path).iter_batches(batch_size=ROWS, columns=used):
            columns = [None if name is None else pa.chunked_array([batch.column(name)]) for name in names]
            yield Block(_columns(*columns), partial(_parquet_rows, path, batch, names, before))
            before += len(batch)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: unreadable Parquet ({error}); write it again.") from None


def _parquet_rows(path: Path, batch: pa.RecordBatch, names: Sequence[str | None], before: int) -> Rows:
    try:
        columns = [[None] * len(batch) if name is None else batch.column(name).to_pylist() for name in names]
    except (ValueError, OverflowError) as error:  # invalid UTF-8, a time out of Python's range
        raise ValueError(f"{path}: from row {before + 1}: unreadable values ({error}).") from None
    for row, (user, item, rating, time) in enumerate(zip(*columns, strict=True), before + 1):
        yield row, (as_id(user), as_id(item), rating, time)


# ---------------------------------------------------------------- columns


def _columns(
    user: pa.ChunkedArray, item: pa.ChunkedArray, rating: pa.ChunkedArray | None, time: pa.ChunkedArray | None
) -> Columns | None:
    """The columns in NumPy; None if one holds what only Python reads."""
    users, items = _ids(user), _ids(item)
    stars = None if rating is None else _numbers(rating)
    when = None if time is None else _moments(time)
    if users is None or items is None or (rating is not None and stars is None) or (time is not None and when is None):
        return None
    dates = time is not None and pa.types.is_temporal(time.type)
    return Columns(users, items, stars, when, dates)


def _ids(column: pa.ChunkedArray) -> Ids | None:
    if column.null_count:
        return None
    try:
        if not pa.types.is_dictionary(column.type):
            column = column.dictionary_encode()
        found = column.unify_dictionaries().combine_chunks()
        distinct = [as_id(value) for value in found.dictionary.to_pylist()]
    except (pa.ArrowException, ValueError):  # a type without a dictionary, invalid UTF-8
        return None
    return Ids(distinct, found.indices.to_numpy())


def _numbers(column: pa.ChunkedArray) -> np.ndarray | None:
    """float64 [rows] of finite numbers."""
    kinds = pa.types.is_integer(column.type) or pa.types.is_float32(column.type) or pa.types.is_float64(column.type)
    if not kinds or column.null_count:
        return None
    found = column.to_numpy().astype(np.float64, copy=False)
    return found if np.isfinite(found).all() else None


def _moments(column: pa.ChunkedArray) -> np.ndarray | None:
    """float64 [rows]: numbers as they are, dates as seconds since 1970."""
    if not pa.types.is_temporal(column.type):
        return _numbers(column)
    if column.null_count:
        return None
    if pa.types.is_date32(column.type):
        return column.cast(pa.int32()).to_numpy().astype(np.float64) * 86_400
    if not pa.types.is_timestamp(column.type) or column.type.unit not in _UNITS:
        return None
    ticks = column.cast(pa.int64()).to_numpy()
    return ticks / _UNITS[column.type.unit] if np.abs(ticks).max(initial=0) < EXACT else None
