"""Records of JSONL, JSON, CSV, TSV, Parquet and parallel text files, plain or gzipped, by number.

`open_rows(path)` indexes the records; `rows.row(i)` reads one. A damaged record raises `BadExample` when it is read;
an unreadable file raises `ValueError` at once.
"""

import csv
import glob
import gzip
import io
import logging
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO, Protocol, TypeVar

import numpy as np

from instructrec_jax.data.example import BadExample, show
from instructrec_jax.data.parquet_rows import ParquetBatches, ParquetRows
from instructrec_jax.parsing import json_value

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
R = TypeVar("R")
_BOM = b"\xef\xbb\xbf"
_NEWLINE = b"\n"

log = logging.getLogger(__name__)


class Rows(Protocol):
    """Records by number. `columns`: all columns of the file where `row` gives a subset of them; else None."""

    @property
    def columns(self) -> Sequence[str] | None: ...

    def __len__(self) -> int: ...

    def row(self, index: int) -> dict[str, object]:
        """Raises `BadExample` when the record is damaged."""

    def where(self, index: int) -> str:
        """File and line (or row), for messages."""


def open_rows(path: str, columns: set[str] | None = None, *, in_order: bool = False) -> "ChainedRows":
    """The records of a file, of all data files directly inside a folder (sorted by name), or of a glob pattern.

    Args:
      columns: the columns to read (Parquet only); None: all.
      in_order: for records that are read one after another: Parquet is then read in batches, not held in memory.

    Raises:
      ValueError: no such file, an unknown format, or an empty or damaged file.
    """
    return ChainedRows([_open_file(file, columns, in_order) for file in find_files(path)])


def open_parallel(path: str, targets: str) -> "ParallelRows":
    """The lines of two text files: {"instruction": line n of `path`, "output": line n of `targets`}.

    Raises:
      ValueError: a file is missing or empty, or the line counts differ.
    """
    if not (Path(targets).expanduser().is_file() and Path(path).expanduser().is_file()):
        raise ValueError(f"path {path} with targets {targets}: both must be text files.")
    return ParallelRows(*(_reading(Path(name).expanduser(), TextRows) for name in (path, targets)))


def find_files(path: str) -> list[Path]:
    place = Path(path).expanduser()
    if not path or "\x00" in path:
        raise ValueError(f"path {path!r}: name a data file, a folder or a pattern such as data/*.jsonl.")
    if place.is_file():
        return [place]
    kinds = f"{', '.join(SUFFIXES)}, each optionally with .gz"
    if place.is_dir():
        if any((place / name).exists() for name in ("dataset_info.json", "dataset_dict.json")):
            raise ValueError(f"folder {path}: written by the `datasets` library; read it with `kind: datasets`.")
        files = sorted(file for file in place.iterdir() if file.is_file() and _suffix(file) in SUFFIXES)
        files = [file for file in files if not file.name.startswith(".")]
        if not files:
            found = sorted(file.name for file in place.iterdir())
            listed = ", ".join(found[:10]) + (", ..." if len(found) > 10 else "") if found else "nothing"
            message = f"folder {path}: no data files directly inside it ({kinds}); it holds {listed}."
            raise ValueError(f"{message} For files in subfolders, use a pattern: {path}/**/*.jsonl.")
        return files
    matches = sorted(glob.glob(str(place), recursive=True)) if glob.has_magic(path) else []
    files = [Path(match) for match in matches if Path(match).is_file()]
    if not files:
        here = "" if place.is_absolute() else f" (looked in {Path.cwd()})"
        raise ValueError(f"file {path}: there is no such file, folder or matching file{here}.{_meant(path)}")
    return files


def _meant(path: str) -> str:
    """What somebody who wrote a path that does not exist probably meant."""
    several = path.replace(",", " ").split()
    if "://" in path:
        return " Download it first."
    if len(several) > 1 and any(Path(part).expanduser().exists() for part in several):
        return f" Name several files as a list: [{', '.join(several)}]."
    if path.count("/") == 1 and not Path(path).suffix and not path.startswith(("/", ".", "~")):
        return " Set kind: datasets for a data set of the HuggingFace hub."
    return ""


def _suffix(file: Path) -> str:
    name = file.name.lower()
    return Path(name.removesuffix(".gz")).suffix


def _open_file(file: Path, columns: set[str] | None, in_order: bool) -> Rows:
    suffix = _suffix(file)
    if suffix not in SUFFIXES:
        message = f"file {file}: unknown format {suffix or '(no suffix)'}; expected {', '.join(SUFFIXES)}"
        raise ValueError(f"{message}, each optionally followed by .gz.")
    if suffix == ".parquet" and in_order:
        return _reading(file, ParquetBatches)
    if suffix == ".parquet":
        return _reading(file, partial(ParquetRows, columns=columns))
    if suffix == ".json":
        return _reading(file, JsonRows)
    return _reading(file, partial(TextRows, kind=suffix))


def _reading(file: Path, make: Callable[[Path, bytes | None], R]) -> R:
    """make(file, unzipped content of a .gz or None), with errors that name the file."""
    memory = _unzip(file) if file.name.lower().endswith(".gz") else None
    try:
        size = file.stat().st_size if memory is None else len(memory)
        if size == 0:
            raise ValueError(f"file {file}: it is empty; remove it from the sources or fill it.")
        return make(file, memory)
    except OSError as error:
        raise ValueError(f"file {file}: cannot be read ({error}).") from error


def _unzip(file: Path) -> bytes:
    try:
        with gzip.open(file) as stream:
            return stream.read()
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"file {file}: cannot be unzipped ({error}); the file is damaged or incomplete.") from error


class ChainedRows:
    """The rows of several files, one file after another."""

    def __init__(self, parts: Sequence[Rows]) -> None:
        self.parts = parts
        self.ends = np.cumsum([len(part) for part in parts])
        named = [part.columns for part in parts]
        self.columns = named[0] if len(parts) == 1 else None

    def __len__(self) -> int:
        return int(self.ends[-1])

    def _find(self, index: int) -> tuple[Rows, int]:
        part = int(np.searchsorted(self.ends, index, side="right"))
        return self.parts[part], index - (int(self.ends[part - 1]) if part else 0)

    def row(self, index: int) -> dict[str, object]:
        part, inside = self._find(index)
        return part.row(inside)

    def where(self, index: int) -> str:
        part, inside = self._find(index)
        return part.where(inside)


class TextRows:
    """JSONL, CSV, TSV or lines of text. Holds the byte offsets of the records, and a gzipped file's content.

    The first record of CSV and TSV names the columns. CSV follows RFC 4180: a cell with commas, quotes or line breaks
    is in double quotes. An unclosed quote makes only its own line a bad record; the number of records over several
    lines is logged. TSV has no quoting: a record is a line, and a quotation mark is text.

    Args:
      kind: ".jsonl", ".csv", ".tsv", or "" for plain lines, read by `text`.
    """

    columns = None

    def __init__(self, file: Path, memory: bytes | None, kind: str = "") -> None:
        self.file, self.memory, self.kind = file, memory, kind
        self.handle: BinaryIO | None = None
        with io.BytesIO(memory) if memory is not None else open(file, "rb") as stream:
            start = len(_BOM) if stream.read(len(_BOM)) == _BOM else 0
            stream.seek(0)
            head = stream.read(64)
            encoding = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16", b"\x1f\x8b": "gzip"}.get(head[:2])
            if encoding is None and head.count(0) > len(head) / 3:
                encoding = "UTF-16"  # without a byte-order mark
            if encoding:
                hint = "name it .gz" if encoding == "gzip" else "save it as UTF-8"
                raise ValueError(f"file {file}: holds {encoding}, not UTF-8 text: {hint}.")
            stream.seek(start)
            find = _csv_spans(stream, start) if kind == ".csv" else _line_spans(stream, start)
            spans = np.fromiter(find, np.dtype((np.int64, 3)))
        self.stat = None if memory is not None else _identity(os.stat(file))
        while len(spans) and not self._bytes(*spans[-1, :2]).strip():
            spans = spans[:-1]  # blank lines at the end
        self.header: list[str] = []
        if kind in (".csv", ".tsv") and len(spans):
            self.header = self._header(*spans[0])
            spans = spans[1:]
        if not len(spans):
            raise ValueError(f"file {file}: it holds no records; remove it from the sources or fill it.")
        if kind == ".csv":
            self._log_long(spans)
        self.spans = spans  # int64 [records, (first byte, byte after the last, first line counted from 1)]

    def __len__(self) -> int:
        return len(self.spans)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "handle": None}

    def where(self, index: int) -> str:
        return f"{self.file}, line {self.spans[index, 2]}"

    def text(self, index: int) -> str:
        start, end, line = (int(number) for number in self.spans[index])
        return self._text(start, end, line)

    def row(self, index: int) -> dict[str, object]:
        text = self.text(index)
        if not text.strip():
            raise BadExample("", "malformed line", "the line is blank: remove it.")
        return self._parse_cells(text) if self.header else _parse_json(text)

    def _log_long(self, spans: np.ndarray) -> None:
        """Warns of CSV records over several lines: a quotation mark meant as text causes them, too."""
        last = spans[-1, 2] + self._bytes(*spans[-1, :2]).rstrip(b"\r\n").count(_NEWLINE) + 1
        lines = np.diff(spans[:, 2], append=last)
        if many := int((lines > 1).sum()):
            first, longest = spans[np.argmax(lines > 1), 2], lines.max()
            log.warning(
                "file %s: %d of %d records span several lines, the first at line %d, the longest over %d. If the "
                "quotation marks there are text, double them and put the cell in quotes, or save the file as .tsv.",
                *(self.file, many, len(spans), first, longest),
            )

    def _bytes(self, start: int, end: int) -> bytes:
        if self.memory is not None:
            return self.memory[start:end]
        if self.handle is None:
            self.handle = open(self.file, "rb", buffering=0)
        if _identity(os.fstat(self.handle.fileno())) != self.stat:
            raise ValueError(f"file {self.file}: it changed while in use; start again.")
        if hasattr(os, "pread"):  # safe when threads share the file
            data = os.pread(self.handle.fileno(), end - start, start)
        else:
            with open(self.file, "rb") as stream:
                stream.seek(start)
                data = stream.read(end - start)
        if len(data) != end - start:
            raise ValueError(f"file {self.file}: read only {len(data)} of {end - start} bytes; start again.")
        return data

    def _text(self, start: int, end: int, line: int) -> str:
        data = self._bytes(int(start), int(end))
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            before = data[: error.start]
            byte = f"byte 0x{data[error.start]:02x} at place {error.start - before.rfind(_NEWLINE)}"
            detail = (
                f"{byte} of line {line + before.count(_NEWLINE)} is not UTF-8: save the file as UTF-8 "
                "(it may be Latin-1, Windows-1252 or GBK)."
            )
            raise BadExample("", "not UTF-8", detail) from None

    def _header(self, start: int, end: int, line: int) -> list[str]:
        try:
            names = self._cells(self._text(start, end, line))
        except BadExample as error:
            raise ValueError(f"file {self.file}, line {line} (column names): {error.detail}") from None
        if not any(names):
            raise ValueError(f"file {self.file}, line {line}: blank; it must name the columns.")
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            found = f"found {', '.join(names)}; give each a distinct name."
            raise ValueError(f"file {self.file}, line {line}: two columns are named {twice[0]!r}; {found}")
        return names

    def _cells(self, text: str) -> list[str]:
        return _csv_cells(text) if self.kind == ".csv" else text.rstrip("\r\n").split("\t")

    def _parse_cells(self, text: str) -> dict[str, object]:
        cells = self._cells(text)
        if len(cells) != len(self.header):
            columns = ", ".join(self.header)[:200]
            rule = "put a cell with a comma or a line break in double quotes, and double the quotes inside it."
            if separators := [mark for mark in ";\t|" if len(self.header) == 1 and mark in self.header[0]]:
                rule = f"the cells seem to be separated by {separators[0]!r}: separate them by commas, or name a "
                rule += "file with tabs .tsv."
            if self.kind == ".tsv":
                rule = "a cell of a .tsv cannot hold a tab or a line break, nor be quoted: use .csv for such texts."
            detail = f"{len(cells)} cells, but {len(self.header)} columns ({columns}): {rule}"
            raise BadExample("", "malformed line", detail)
        return dict(zip(self.header, cells, strict=True))


class ParallelRows:
    """Two text files: line n of `targets` is the output for line n of `sources`."""

    columns = None

    def __init__(self, sources: TextRows, targets: TextRows) -> None:
        self.sources, self.targets = sources, targets
        if len(sources) != len(targets):
            raise ValueError(
                f"files {sources.file} and {targets.file}: {len(sources):,} and {len(targets):,} lines. Line n of one "
                "must be the output for line n of the other: align the files."
            )

    def __len__(self) -> int:
        return len(self.sources)

    def row(self, index: int) -> dict[str, object]:
        found = {"instruction": self.sources.text(index).strip(), "output": self.targets.text(index).strip()}
        for field, text in found.items():
            if not text:
                raise BadExample(field, "empty text", "the line is blank.")
        return {**found}

    def where(self, index: int) -> str:
        return f"{self.sources.where(index)} ({self.targets.where(index)})"


def _identity(stat: os.stat_result) -> tuple[int, int]:
    return stat.st_size, stat.st_mtime_ns


def _line_spans(stream: BinaryIO, start: int) -> Iterator[tuple[int, int, int]]:
    for number, line in enumerate(stream, 1):
        yield start, start + len(line), number
        start += len(line)


def _csv_spans(stream: BinaryIO, start: int) -> Iterator[tuple[int, int, int]]:
    """(first byte, byte after the last, first line) of each record; a malformed record is one line."""
    line = 1
    with _long_cells():
        while True:
            stream.seek(start)
            edges = [start]  # of the lines of this record
            try:
                for _ in csv.reader(_characters(stream, edges), strict=True):
                    yield start, edges[-1], line
                    line += len(edges) - 1
                    start = edges[-1]
                    edges[:] = [start]
                return
            except csv.Error:  # its first line is the bad record; continue with the next line
                yield start, edges[1], line
                start, line = edges[1], line + 1


def _characters(stream: BinaryIO, edges: list[int]) -> Iterator[str]:
    for data in stream:
        edges.append(edges[-1] + len(data))
        yield data.decode("latin-1")  # one character per byte, so offsets of separators and quotes are byte offsets


class _long_cells:
    """Lifts the csv module's limit on the length of a cell (a global of the process)."""

    def __enter__(self) -> None:
        self.limit = csv.field_size_limit(2**31 - 1)

    def __exit__(self, *_: object) -> None:
        csv.field_size_limit(self.limit)


def _csv_cells(text: str) -> list[str]:
    try:
        with _long_cells():
            records = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except csv.Error as error:
        detail = f"{error}: close the double quotes of the cell, and double the quotes inside it."
        raise BadExample("", "malformed line", detail) from None
    if len(records) != 1:
        hint = "a carriage return (\\r) stands outside of quotes: end lines with \\n or \\r\\n" if "\r" in text else ""
        raise BadExample("", "malformed line", f"expected one record, found {len(records)}{hint and f'; {hint}'}.")
    return records[0]


def _parse_json(text: str) -> dict[str, object]:
    try:
        return _object(json_value(text))
    except BadExample:
        raise
    except ValueError as error:
        detail = f"invalid JSON ({error}): each line of a JSONL file must be one complete JSON object."
        raise BadExample("", "malformed line", detail) from None


def _object(record: object) -> dict[str, object]:
    if not isinstance(record, dict):
        raise BadExample("", "wrong type", f"expected an object with named fields, found {show(record)}.")
    return record


class JsonRows:
    """A JSON file with one array of objects, held in memory; prefer JSONL for large data."""

    columns = None

    def __init__(self, file: Path, memory: bytes | None) -> None:
        self.file = file
        data = memory if memory is not None else file.read_bytes()
        hint = "expected one array of objects, [{...}, {...}]; one object on each line makes a .jsonl file."
        try:
            records = json_value(data.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            line = data[: error.start].count(b"\n") + 1
            byte = f"byte 0x{data[error.start]:02x}"
            raise ValueError(f"file {file}, line {line}: {byte} is not UTF-8; save the file as UTF-8.") from None
        except ValueError as error:
            raise ValueError(f"file {file}: invalid JSON ({error}); {hint}") from None
        if not isinstance(records, list):
            raise ValueError(f"file {file}: found {show(records)}; {hint}")
        if not records:
            raise ValueError(f"file {file}: it holds no records; remove it from the sources or fill it.")
        self.records = records

    def __len__(self) -> int:
        return len(self.records)

    def row(self, index: int) -> dict[str, object]:
        return _object(self.records[index])

    def where(self, index: int) -> str:
        return f"{self.file}, record {index + 1}"
