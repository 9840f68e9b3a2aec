"""Records of JSONL, JSON, CSV, TSV and plain text files by number: their places in memory, their texts in the file."""

import csv
import io
import logging

import numpy as np

from instructrec_jax.data.example import BadExample, show
from instructrec_jax.data.spans import NoArray, array_spans, csv_spans, line_spans, long_cells
from instructrec_jax.data.unpacked import BOM, PlainFile
from instructrec_jax.parsing import json_value

_NEWLINE = b"\n"

log = logging.getLogger(__name__)


class TextRows:
    """JSONL, JSON, CSV, TSV or lines of text. Holds the byte offsets of the records: 24 bytes a record.

    A .json file is one array of objects. The first record of CSV and TSV names the columns. CSV follows RFC 4180: a
    cell with commas, quotes or line breaks is in double quotes. An unclosed quote makes only its own line a bad record;
    the number of records over several lines is logged. TSV has no quoting: a record is a line, and a quotation mark is
    text.

    Args:
      kind: ".jsonl", ".json", ".csv", ".tsv", or "" for plain lines, read by `text`.
    """

    columns = None

    def __init__(self, plain: PlainFile, kind: str = "") -> None:
        self.plain, self.file, self.kind = plain, plain.file, kind
        head = plain.read(0, min(64, plain.size))
        if head.count(0) > len(head) / 3:
            raise ValueError(f"file {self.file}: holds UTF-16 without a byte-order mark, or no text: save it as UTF-8.")
        spans = self._spans(len(BOM) if head.startswith(BOM) else 0)
        while len(spans) and self._is_blank(*spans[-1, :2].tolist()):
            if kind == ".json" and len(spans) > 1:
                break  # a comma before the closing bracket: a bad record
            spans = spans[:-1]  # blank lines at the end
        self.header: list[str] = []
        if kind in (".csv", ".tsv") and len(spans):
            self.header = self._header(*spans[0].tolist())
            spans = spans[1:]
        if not len(spans):
            raise ValueError(f"file {self.file}: it holds no records; remove it from the sources or fill it.")
        if kind == ".csv":
            self._log_long(spans)
        self.spans = spans  # int64 [records, (first byte, byte after the last, first line counted from 1)]

    def _spans(self, start: int) -> np.ndarray:
        with self.plain.open() as stream:
            if self.kind == ".csv":
                return csv_spans(stream, start)
            if self.kind != ".json":
                return line_spans(stream, start)
            try:
                return array_spans(stream, start)
            except NoArray as error:
                hint = "one array of objects, [{...}, {...}]; one object on each line makes a .jsonl file"
                message = f"no JSON array: {error.problem}; expected {hint}."
                raise ValueError(f"file {self.file}, line {error.line}: {message}") from None

    def _is_blank(self, start: int, end: int) -> bool:
        few = min(end, start + 1000)
        return not self.plain.read(start, few).strip() and (few == end or not self.plain.read(few, end).strip())

    def __len__(self) -> int:
        return len(self.spans)

    def where(self, index: int) -> str:
        return (
            f"{self.file}, record {index + 1}" if self.kind == ".json" else f"{self.file}, line {self.spans[index, 2]}"
        )

    def text(self, index: int) -> str:
        return self._text(*self.spans[index].tolist())

    def row(self, index: int) -> dict[str, object]:
        text = self.text(index)
        if self.header and text.strip():
            return self._parse_cells(text)
        if self.kind == ".json":
            return self._parse_element(text, int(self.spans[index, 2]))
        if not text.strip():
            raise BadExample("", "malformed line", "the line is blank: remove it.")
        return _parse_line(text)

    def _log_long(self, spans: np.ndarray) -> None:
        """Warns of CSV records over several lines: a quotation mark meant as text causes them, too."""
        last = spans[-1, 2] + self.plain.read(*spans[-1, :2].tolist()).rstrip(b"\r\n").count(_NEWLINE) + 1
        lines = np.diff(spans[:, 2], append=last)
        if many := int((lines > 1).sum()):
            first, longest = spans[np.argmax(lines > 1), 2], lines.max()
            log.warning(
                "file %s: %d of %d records span several lines, the first at line %d, the longest over %d. If the "
                "quotation marks there are text, double them and put the cell in quotes, or save the file as .tsv.",
                *(self.file, many, len(spans), first, longest),
            )

    def _text(self, start: int, end: int, line: int) -> str:
        data = self.plain.read(start, end)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            before = data[: error.start]
            place, line = error.start - before.rfind(_NEWLINE), line + before.count(_NEWLINE)
            detail = (
                f"byte 0x{data[error.start]:02x} at place {place} of line {line} is not UTF-8: save the file as UTF-8 "
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

    def _parse_element(self, text: str, line: int) -> dict[str, object]:
        """An element of a JSON array, with the white space around it, which starts in this line."""
        if not text.strip():
            raise BadExample("", "malformed line", f"line {line}: no value beside a comma: remove the comma.")
        try:
            return _object(json_value(text.strip()))
        except BadExample:
            raise
        except ValueError as error:
            line += text[: len(text) - len(text.lstrip())].count("\n")
            detail = f"invalid JSON in the element that starts at line {line} ({error}): repair or remove it."
            raise BadExample("", "malformed line", detail) from None


def _csv_cells(text: str) -> list[str]:
    try:
        with long_cells():
            records = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except csv.Error as error:
        detail = f"{error}: close the double quotes of the cell, and double the quotes inside it."
        raise BadExample("", "malformed line", detail) from None
    if len(records) != 1:
        hint = "a carriage return (\\r) stands outside of quotes: end lines with \\n or \\r\\n" if "\r" in text else ""
        raise BadExample("", "malformed line", f"expected one record, found {len(records)}{hint and f'; {hint}'}.")
    return records[0]


def _parse_line(text: str) -> dict[str, object]:
    try:
        return _object(json_value(text))
    except BadExample:
        raise
    except ValueError as error:
        detail = f"invalid JSON ({error}): each line of a JSONL file must be one complete JSON object."
        raise BadExample("", "malformed line", detail) from None


def _object(record: object) -> dict[str, object]:
    if not isinstance(record, dict):
        hint = "; name a file with one array of objects .json" if isinstance(record, list) else ""
        raise BadExample("", "wrong type", f"expected an object with named fields, found {show(record)}{hint}.")
    return record


class ParallelRows:
    """Two text files: line n of `targets` is the output for line n of `sources`."""

    columns = None

    def __init__(self, inputs: TextRows, targets: TextRows) -> None:
        self.inputs, self.targets = inputs, targets
        if len(inputs) != len(targets):
            raise ValueError(
                f"files {inputs.file} and {targets.file}: {len(inputs):,} and {len(targets):,} lines. Line n of one "
                "must be the output for line n of the other: align the files."
            )

    def __len__(self) -> int:
        return len(self.inputs)

    def row(self, index: int) -> dict[str, object]:
        found = {"instruction": self.inputs.text(index).strip(), "output": self.targets.text(index).strip()}
        for field, text in found.items():
            if not text:
                raise BadExample(field, "empty text", "the line is blank.")
        return {**found}

    def where(self, index: int) -> str:
        return f"{self.inputs.where(index)} ({self.targets.where(index)})"
