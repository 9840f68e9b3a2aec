"""Reading files line by line, and the treatment of bad lines, for all readers.

A row is (line number from 1, content). Every file may be gzipped (`.gz`). A file that is damaged as a whole (not UTF-8,
incomplete gzip) is a ValueError at once; a bad line goes to `BadLines`.
"""

import ast
import csv
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from instructrec_jax.parsing import json_lines, raw_lines, text_lines

Row = tuple[int, list[str]]
Record = tuple[int, dict[str, object]]


@dataclass
class BadLines:
    """Raises ValueError at the first bad line or, with `skip`, lists the bad lines in `skipped`."""

    skip: bool = False
    skipped: list[str] = field(default_factory=list)
    remedy: str = "Repair the file, or leave bad lines out with `--on_bad_line skip`."

    def __call__(self, path: Path, line: int, why: str) -> None:
        if not self.skip:
            raise ValueError(f"{path}:{line}: {why}. {self.remedy}")
        self.skipped.append(f"{path.name}:{line}: {why}")


# --- which file ---


def with_gz(path: Path) -> Path | None:
    """The file or its gzipped form, if one exists."""
    return next((p for p in (path, path.with_name(path.name + ".gz")) if p.is_file()), None)


def first_of(folder: Path, names: Sequence[str]) -> Path | None:
    """The first of these files (or its gzipped form) that exists in a folder."""
    return next((path for name in names if (path := with_gz(folder / name))), None)


def only(folder: Path, endings: Sequence[str], what: str, without: Iterable[Path | None] = ()) -> Path:
    """The only file of a folder with one of these endings (before .gz), except hidden files and `without`."""
    found = [
        p
        for p in (sorted(folder.glob("*")) if folder.is_dir() else [])
        if p.is_file() and p not in without and not p.name.startswith(".")
        if p.name.removesuffix(".gz").endswith(tuple(endings))
    ]
    if len(found) != 1:
        names = ", ".join(p.name for p in found) or "none"
        listed = " or ".join("*" + ending for ending in endings)
        raise ValueError(f"{folder} must hold exactly one {listed} file (or .gz) {what}; found {names}.")
    return found[0]


# --- lines ---


def encoding_of(path: Path) -> str:
    """utf-8, or latin-1 if the file is not valid UTF-8 (ml-1m and ml-100k are latin-1, ml-10m UTF-8)."""
    try:
        for line in raw_lines(path):
            line.decode("utf-8")
    except UnicodeDecodeError:
        return "latin-1"
    return "utf-8"


# --- rows ---


def csv_rows(path: Path, lines: Iterable[bytes] | None = None, before: int = 0) -> Iterator[Row]:
    """Rows of a CSV file. lines: a part of the file, after `before` lines; None: the whole file."""
    # strict: an unclosed quote is an error, not a long field
    reader = csv.reader(text_lines(path, "utf-8", lines, before), strict=True)
    try:
        for fields in reader:
            if fields:
                yield before + reader.line_num, fields
    except csv.Error as error:
        raise ValueError(f"{path}:{before + reader.line_num}: not CSV ({error}).") from None


def split_rows(
    path: Path,
    separator: str | None,
    encoding: str = "utf-8",
    most: int = -1,
    lines: Iterable[bytes] | None = None,
    before: int = 0,
) -> Iterator[Row]:
    """Rows without quoting, split at a separator (None: any white space), at most `most` times.

    Args:
      lines: a part of the file, after `before` lines; None: the whole file.
    """
    for number, line in enumerate(text_lines(path, encoding, lines, before), before + 1):
        if text := line.rstrip("\r\n"):
            yield number, text.split(separator, most)


def sized(rows: Iterable[Row], path: Path, count: int, bad: BadLines) -> Iterator[Row]:
    """The rows with `count` fields; others are bad lines."""
    for number, fields in rows:
        if len(fields) == count:
            yield number, fields
        else:
            bad(path, number, f"expected {count} fields, found {len(fields)}")


def pick(rows: Iterator[Row], path: Path, names: Sequence[str], bad: BadLines) -> Iterator[Row]:
    """The named columns of rows that start with a header."""
    _, header = next(rows, (0, []))
    columns = places(header, path, names)
    for number, fields in sized(rows, path, len(header), bad):
        yield number, [fields[column] for column in columns]


def places(header: Sequence[str], path: Path, names: Sequence[str]) -> list[int]:
    """Where the named columns are in a header. Raises ValueError for one that is missing or there twice."""
    if missing := [name for name in names if name not in header]:
        raise ValueError(f"{path} has no column {missing[0]!r}; its header is {','.join(header)!r}.")
    if twice := [name for name in names if list(header).count(name) > 1]:
        raise ValueError(f"{path} has the column {twice[0]!r} more than once: rename one of them.")
    return [header.index(name) for name in names]


# --- records ---


def as_id(value: object) -> str:
    """An id as text; "" if there is none. (Columns of integers with nulls hold 7 as 7.0.)"""
    if isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else ""


def json_records(path: Path, bad: BadLines, *, python_dicts: bool = False) -> Iterator[Record]:
    """One JSON object per line.

    python_dicts: also accept lines that are Python literals, as in the Amazon data up to 2014. They are parsed as
    literals (`ast.literal_eval`), never executed.
    """
    kept: list[bytes] = []  # the current line of `json_lines`

    def lines() -> Iterator[bytes]:
        for line in raw_lines(path):
            kept[:] = [line]
            yield line

    for number, value in json_lines(lines()):
        if isinstance(value, ValueError):
            literal = _literal(kept[0]) if python_dicts else None
            if literal is None:
                bad(path, number, str(value))
                continue
            value = literal
        yield number, value


def _literal(line: bytes) -> dict[str, object] | None:
    if not line.lstrip().startswith(b"{"):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes such as "\d"; Python 3.11 has another category than 3.12
            value = ast.literal_eval(line.decode("utf-8").strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None
    return value if isinstance(value, dict) and all(isinstance(key, str) for key in value) else None
