"""Tables with configurable columns: CSV, TSV, Parquet or JSON lines (one object per line).

CSV and TSV (also .txt; without quoting) need a header line. Every column of the item table except id and title becomes
a fact: numbers if all entries are numbers; lists for columns with several names (genres, categories, tags, authors:
split at "|", else at ","); otherwise texts; None for empty cells.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TypeGuard

import pyarrow as pa

from instructrec_jax.parsing import open_parquet
from instructrec_jax.preparation.readers.blocks import Block, Layout, parquet_blocks, text_blocks
from instructrec_jax.preparation.readers.interactions import gather_blocks, may_be_times
from instructrec_jax.preparation.readers.items import IN_TEXT, SEVERAL, Items, find_title, require_columns
from instructrec_jax.preparation.readers.lines import (
    BadLines,
    as_id,
    csv_rows,
    first_of,
    json_records,
    pick,
    places,
    split_rows,
)
from instructrec_jax.ranking.catalogue import Catalogue, Fact, Interactions

FORMATS = (".csv", ".tsv", ".parquet", ".jsonl")
# Usual names of columns, in lower case without underscores; the first that exists is used.
USUAL = {
    "user": ("user", "userid", "uid", "reviewerid", "customerid"),
    "item": ("item", "itemid", "iid", "asin", "parentasin", "productid", "movieid", "bookid"),
    "id": ("id", "item", "itemid", "iid", "asin", "parentasin", "productid", "movieid", "bookid"),
    "time": ("timestamp", "time", "ts", "unixreviewtime", "datetime", "date"),
    "rating": ("rating", "overall", "stars", "score"),
}
LOOKED_AT = 1000  # rows inspected to detect columns of times
_NUMBER = re.compile(r"-?(0|[1-9]\d{0,17})(\.\d+)?")  # not 007, which is a code


def read_table(
    source: str | Path,
    bad: BadLines | None = None,
    *,
    items: str | Path | None = None,
    user_column: str | None = None,
    item_column: str | None = None,
    time_column: str | None = None,
    rating_column: str | None = None,
    id_column: str | None = None,
    title_column: str | None = None,
    text_columns: Sequence[str] | None = None,
) -> tuple[Catalogue, Interactions]:
    """Reads a table of interactions and a table of items.

    Args:
      source: the table of interactions, or a folder with interactions.* in one of `FORMATS`.
      items: the table of items; by default items.* in the same folder.
      user_column, item_column, time_column, rating_column, id_column, title_column: by default the usual names
        (`USUAL`). Times are numbers or ISO 8601 (UTC unless they have a zone); time_column "none": the lines are in
        order of time.
      text_columns: as in `read_recbole`.
    """
    source, bad = Path(source), bad or BadLines()
    table = source if source.is_file() else _in_folder(source, "interactions")
    beside = Path(items) if items is not None else first_of(table.parent, [f"items{ending}" for ending in FORMATS])
    if beside is None:
        raise ValueError(
            f"{table} has no table of items beside it. The backbone reads items as text: give a table of ids and "
            "titles with `--items FILE`."
        )
    catalogue = read_items(
        beside,
        bad,
        id_column=id_column,
        title_column=title_column,
        text_columns=text_columns,
    )
    names = columns_of(table, bad)
    who, what = choose(names, table, "user", user_column), choose(names, table, "item", item_column)
    rating = usual(names, table, "rating", rating_column)
    others = [name for name in names if name not in (who, what, rating)]
    some = islice(cells(table, others, BadLines(skip=True)), LOOKED_AT)
    time = find_time(others, table, time_column, [values for _, values in some])
    blocks = _blocks(table, names, (who, what, rating, time), bad)
    return catalogue, gather_blocks(blocks, table, catalogue, bad, rated=rating is not None, timed=time is not None)


def _blocks(
    path: Path, names: Sequence[str], used: tuple[str, str, str | None, str | None], bad: BadLines
) -> Iterable[Block]:
    """The interactions of a table. names: all its columns; used: user, item, rating and time."""
    kind = _format(path)
    if kind == ".parquet":
        return parquet_blocks(path, used)
    if kind == ".jsonl":
        some = [name for name in used if name is not None]

        def rows() -> Iterator[tuple[int, tuple[str, str, object, object]]]:
            for line, values in cells(path, some, bad):
                user, item, rating, time = (None if name is None else values[some.index(name)] for name in used)
                yield line, (as_id(user), as_id(item), rating, time)

        return [Block(None, rows)]
    places(names, path, [name for name in used if name is not None])
    who, what, rating, time = (None if name is None else list(names).index(name) for name in used)
    assert who is not None and what is not None
    layout = Layout(len(names), (who, what, rating, time))
    return text_blocks(path, layout, bad, separator="," if kind == ".csv" else "\t")


def read_items(
    path: Path,
    bad: BadLines,
    *,
    id_column: str | None = None,
    title_column: str | None = None,
    text_columns: Sequence[str] | None = None,
) -> Catalogue:
    """The catalogue of an item table with named columns."""
    if not path.is_file():
        raise ValueError(f"the table of items {path} does not exist.")
    names = columns_of(path, bad, every_line=True)
    identity = choose(names, path, "id", id_column)
    title = find_title([name for name in names if name != identity], path, title_column)
    require_columns(text_columns or (), names, path)
    if text_columns is None:
        text_columns = [name for name in names if name.lower() in IN_TEXT and name not in (identity, title)]
    rows = list(cells(path, names, bad))
    columns = {name: [values[place] for _, values in rows] for place, name in enumerate(names)}
    facts = {name: tidy(column, name) for name, column in columns.items() if name not in (identity, title)}
    year_column = next((name for name in ("year", "release_year", "publication_year") if name in facts), None)
    years: list[Fact] = facts.pop(year_column) if year_column else [None] * len(rows)
    items = Items(path, bad, text_columns)
    for place, (line, _) in enumerate(rows):
        raw, year = columns[title][place], years[place]
        items.add(
            line,
            as_id(columns[identity][place]),
            "" if raw is None else str(raw),
            {name: column[place] for name, column in facts.items()},
            year if isinstance(year, int) else None,
        )
    return items.catalogue()


# --- columns ---


def columns_of(path: Path, bad: BadLines, *, every_line: bool = False) -> list[str]:
    """The column names of a table; of JSON lines, the keys of the first object or, with `every_line`, of all."""
    kind = _format(path)
    if kind == ".parquet":
        return list(open_parquet(path).schema_arrow.names)
    if kind == ".jsonl":
        names: dict[str, None] = {}
        for _, record in json_records(path, BadLines(skip=True)):  # `cells` reports bad lines
            names |= dict.fromkeys(record)
            if not every_line:
                break
        return list(names)
    _, header = next(csv_rows(path) if kind == ".csv" else split_rows(path, "\t"), (0, []))
    return header


def usual(columns: Sequence[str], path: Path, kind: str, asked: str | None) -> str | None:
    """The column `asked` for, or the first with a usual name, or None."""
    if asked is not None:
        require_columns([asked], columns, path)
        return asked
    simple = {name.lower().replace("_", ""): name for name in reversed(columns)}
    return next((simple[name] for name in USUAL[kind] if name in simple), None)


def find_time(columns: Sequence[str], path: Path, asked: str | None, rows: Sequence[Sequence[object]]) -> str | None:
    """The column with the times; None if there is none, or if "none" is `asked` for.

    Without times, the order of lines decides which interactions are held out. So a column that may hold times, but has
    no usual name, is a ValueError that asks the user to decide.

    Args:
      columns: the columns of the interactions without user, item and rating.
      rows: some rows of these columns.
    """
    if asked == "none" and "none" not in columns:
        return None
    found = usual(columns, path, "time", asked)
    for place, name in enumerate(columns if found is None else ()):
        if may_be_times(name, [row[place] for row in rows]):
            raise ValueError(
                f"{path}: the column {name!r} may hold the times. If it does, set `--time_column {name}`; if the lines "
                "are already in order of time, set `--time_column none`."
            )
    return found


def choose(columns: Sequence[str], path: Path, kind: str, asked: str | None) -> str:
    """The column of `usual`. Raises ValueError if there is none."""
    found = usual(columns, path, kind, asked)
    if found is None:
        raise ValueError(
            f"{path} has no column with a usual name for the {kind}: its columns are {', '.join(columns)}. "
            f"Set `--{kind}_column`."
        )
    return found


def cells(path: Path, names: Sequence[str], bad: BadLines) -> Iterator[tuple[int, Sequence[object]]]:
    """(line or row number from 1, values of the named columns); missing values are None."""
    kind = _format(path)
    if kind == ".parquet":
        number = 0
        for batch in _batches(path, names):
            try:
                columns = [batch.column(name).to_pylist() for name in names]
            except (ValueError, OverflowError) as error:  # invalid UTF-8, a time out of Python's range
                raise ValueError(f"{path}: from row {number + 1}: unreadable values ({error}).") from None
            for values in zip(*columns, strict=True):
                number += 1
                yield number, values
    elif kind == ".jsonl":
        for line, record in json_records(path, bad):
            yield line, [record.get(name) for name in names]
    else:
        yield from pick(csv_rows(path) if kind == ".csv" else split_rows(path, "\t"), path, names, bad)


def tidy(column: Sequence[object], name: str) -> list[Fact]:
    """A column as facts: all numbers, all lists of texts, or all texts; None for empty cells ([] among lists)."""
    column = [None if _missing(value) else value for value in column]
    if any(isinstance(value, list) for value in column) or name.lower() in SEVERAL:
        separator = "|" if any(isinstance(value, str) and "|" in value for value in column) else ","
        return [_names(value, separator) for value in column]
    if any(value is not None for value in column):
        numbers = [value for value in column if value is None or _is_number(value)]
        if len(numbers) == len(column):
            whole = all(value is None or float(value).is_integer() and abs(value) < 2**53 for value in numbers)
            return [None if value is None else int(value) if whole else float(value) for value in numbers]
        texts = [value for value in column if value is None or isinstance(value, str) and _NUMBER.fullmatch(value)]
        if len(texts) == len(column):
            whole = all(value is None or "." not in value or float(value).is_integer() for value in texts)
            return [None if value is None else int(value.split(".")[0]) if whole else float(value) for value in texts]
    return [None if value is None else _text(value) for value in column]


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _missing(value: object) -> bool:
    return value is None or value == "" or (isinstance(value, float) and not math.isfinite(value))


def _names(value: object, separator: str) -> list[str]:
    if value is None:
        return []
    if isinstance(value, list):
        return [_text(entry) for entry in value if not _missing(entry)]
    names = (part.strip(" '\"[]") for part in _text(value).split(separator))
    return [name for name in names if name]


def _text(value: object) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, Mapping | list) else str(value)


# --- files ---


def _format(path: Path) -> str:
    ending = Path(path.name.removesuffix(".gz")).suffix.lower()
    if ending == ".txt":
        return ".tsv"
    if ending not in FORMATS:
        raise ValueError(f"{path}: tables are read from {', '.join(FORMATS)} files (text also as .gz).")
    return ending


def _batches(path: Path, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
    try:
        yield from open_parquet(path).iter_batches(columns=list(dict.fromkeys(names)))
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: unreadable Parquet ({error}); write it again.") from None


def _in_folder(folder: Path, name: str) -> Path:
    found = first_of(folder, [name + ending for ending in FORMATS])
    if not found:
        endings = ", ".join(FORMATS)
        raise ValueError(f"{folder} is neither a table nor a folder with {name} as {endings} (or .gz).")
    return found
