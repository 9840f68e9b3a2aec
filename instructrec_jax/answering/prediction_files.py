"""Predictions for files of any size: rows are read, answered and written in windows.

While it runs, the answers are in OUT.partial (JSON lines) and what is done in OUT.partial.json. The same command
resumes after the last window; windows have fixed rows, so the result does not depend on interruptions. The last step
writes OUT in its own format.
"""

import csv
import io
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO, TypedDict

from tqdm import tqdm

from instructrec_jax.answering.records import blocks
from instructrec_jax.data.example import BadExample, Example
from instructrec_jax.data.rows import ChainedRows, find_files, open_rows
from instructrec_jax.data.skipped import SkippedRow
from instructrec_jax.files import explain, read_json, replacing, try_lock, write_json
from instructrec_jax.parsing import json_lines
from instructrec_jax.runs.predictions import Asker, joined

WINDOW = 4096  # rows read, answered and written together
CHUNK = 16384  # rows of a row group in Parquet
Row = tuple[str, dict[str, object] | BadExample]  # (place, the row or what is wrong with it)
FORMATS = (".jsonl", ".csv", ".tsv", ".parquet")


class Done(TypedDict):
    """OUT.partial.json: what was asked, and what is in the partial files."""

    asked: dict[str, object]
    rows: int
    bytes: int
    rejected: int
    rejected_bytes: int


@dataclass(frozen=True)
class Counts:
    """Rows of a file that were answered, and rows that could not be."""

    answered: int
    rejected: int


def predict_file(asker: Asker, source: Path, out: Path, *, asked: dict[str, object], skip: bool = False) -> Counts:
    """Answers the rows of a file; all their columns are kept beside the predictions.

    Args:
      out: .jsonl, .csv, .tsv or .parquet. It must not exist. In CSV and TSV, lists and objects are JSON texts.
      asked: JSON that identifies run and options; an interrupted call is resumed by one with the same.
      skip: list rows that cannot be answered in OUT.rejected.jsonl, with the reason; otherwise the first one stops.

    Raises:
      BadExample (a ValueError): a row that cannot be answered. Earlier windows are kept.
      ValueError: OUT exists, has another ending, or belongs to the input; the input changed since an interruption.
    """
    check_out(source, out)
    rows = open_rows(str(source))
    files = [(str(file), (stat := file.stat()).st_size, stat.st_mtime_ns) for file in find_files(str(source))]
    with Partial.open(out, asked | {"files": [list(file) for file in files], "skip": skip}) as partial:
        for start in counted(range(partial.done["rows"], len(rows), WINDOW), partial.done["rows"], len(rows)):
            block = range(start, min(start + WINDOW, len(rows)))
            records, rejected = answer_rows(asker, file_rows(rows, block), rows.columns, skip=skip)
            partial.add(records, rejected, block.stop)
        partial.finish()
        return Counts(partial.done["rows"] - partial.done["rejected"], partial.done["rejected"])


def predict_stream(asker: Asker, source: Path, out: BinaryIO, *, skip: bool = False) -> Counts:
    """Answers the rows of a file, or the JSON lines of stdin ("-") as they arrive, as JSON lines.

    Arguments as in `predict_file`; rejected rows are printed on stderr.
    """
    columns = None
    if str(source) == "-":
        found = blocks(_line_rows(sys.stdin.buffer), WINDOW, live=True)
    else:
        rows = open_rows(str(source))
        columns, found = rows.columns, blocks(file_rows(rows, range(len(rows))), WINDOW)
    answered = rejected = 0
    for block in found:
        records, bad = answer_rows(asker, block, columns, skip=skip)
        for record in records:
            out.write(line(record))
        out.flush()
        for row in bad:
            print(f"rejected: {BadExample(row.field, row.reason, row.detail, row.where)}", file=sys.stderr)
        answered, rejected = answered + len(records), rejected + len(bad)
    return Counts(answered, rejected)


def _line_rows(lines: Iterable[bytes]) -> Iterator[Row]:
    for number, record in json_lines(lines):
        broken = BadExample("record", "broken line", str(record)) if isinstance(record, ValueError) else record
        yield f"stdin, line {number}", broken


def check_out(source: Path, out: Path, formats: Sequence[str] = FORMATS) -> None:
    if out.suffix not in formats:
        raise ValueError(f"--out {out} should end with {', '.join(formats[:-1])} or {formats[-1]}.")
    if out.exists():
        same = " (it is the input)" if source.exists() and out.samefile(source) else ""
        raise ValueError(f"{out} exists already{same}: choose another --out.")


def answer_rows(
    asker: Asker, rows: Iterable[Row], columns: Sequence[str] | None = None, *, skip: bool = False
) -> tuple[list[dict[str, object]], list[SkippedRow]]:
    """(the rows with their predictions, the rows that cannot be answered), each in the order of the rows.

    Args:
      columns: all columns of the file, where rows hold a part of them.
    """
    kept: list[dict[str, object]] = []
    examples: list[Example] = []
    rejected: list[SkippedRow] = []
    for where, row in rows:
        try:
            if isinstance(row, BadExample):
                raise row.at(where)
            examples.append(asker.example(row, where, columns))
            kept.append(row)
        except BadExample as error:
            if not skip:
                raise
            rejected.append(SkippedRow(where, error.field, error.reason, error.detail))
    answers, unusable = asker.answers(examples, skip=skip)
    records = [joined(row, answer) for row, answer in zip(kept, answers, strict=True) if answer is not None]
    return records, [*rejected, *unusable]


def file_rows(rows: ChainedRows, block: range) -> Iterator[Row]:
    for index in block:
        try:
            yield rows.where(index), rows.row(index)
        except BadExample as error:
            yield rows.where(index), error


def counted(blocks: Iterable[int], done: int, total: int) -> Iterator[int]:
    """`blocks` with a progress bar over rows or, away from a terminal, a line every ten seconds."""
    if sys.stderr.isatty():
        with tqdm(total=total, initial=done, unit=" rows") as bar:
            for block in blocks:
                bar.update(block - bar.n)
                yield block
            bar.update(total - bar.n)
        return
    began = told = time.monotonic()
    first = done
    for block in blocks:
        if block > first and time.monotonic() - told >= 10:
            told = time.monotonic()
            rate = (block - first) / (told - began)
            left = (total - block) / rate
            print(f"{block:,} of {total:,} rows, {rate:,.0f} rows/s, {left:,.0f} s left", file=sys.stderr)
        yield block


@dataclass
class Partial:
    """The files of an unfinished output."""

    out: Path
    done: Done

    @staticmethod
    def paths(out: Path) -> tuple[Path, Path, Path, Path]:
        """(answers, what is done, rejected rows, lock)"""
        return (
            out.with_name(f"{out.name}.partial"),
            out.with_name(f"{out.name}.partial.json"),
            out.with_suffix(".rejected.jsonl"),
            out.with_name(f".{out.name}.lock"),
        )

    @classmethod
    @contextmanager
    def open(cls, out: Path, asked: dict[str, object]) -> Iterator["Partial"]:
        """New files, or those of an interrupted call, cut back to its last window."""
        answers, journal, rejected, lock = cls.paths(out)
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            with open(lock, "a+b") as held:
                if not try_lock(held):
                    raise ValueError(f"another process writes {out} at the moment: choose another --out.")
                yield cls(out, cls._begun(answers, journal, rejected, asked))
                lock.unlink(missing_ok=True)
        except OSError as error:
            explain(error, out)

    @staticmethod
    def _begun(answers: Path, journal: Path, rejected: Path, asked: dict[str, object]) -> Done:
        if journal.exists() and answers.exists():  # without answers, the output was finished or the file removed
            done = read_json(journal, Done)
            if done["asked"] != json.loads(json.dumps(asked)):
                raise ValueError(
                    f"{answers} is of another call (another run, input or options, or the input changed since): remove "
                    f"it and {journal.name} to begin again, or choose another --out."
                )
            print(f"resuming after {done['rows']:,} rows", file=sys.stderr)
        else:
            if rejected.exists():
                raise ValueError(f"{rejected} exists already: remove it, or choose another --out.")
            done = Done(asked=asked, rows=0, bytes=0, rejected=0, rejected_bytes=0)
        for path, size in ((answers, done["bytes"]), (rejected, done["rejected_bytes"])):
            if size or path.exists():
                os.truncate(path, size)
        return done

    def add(self, records: Sequence[dict[str, object]], rejected: Sequence[SkippedRow], rows: int) -> None:
        """Appends a window's answers; `rows`: rows of the input read so far."""
        answers, journal, listed, _ = self.paths(self.out)
        size = _append(answers, records)
        rejected_size = _append(listed, [asdict(row) for row in rejected]) if rejected else self.done["rejected_bytes"]
        self.done["bytes"], self.done["rejected_bytes"] = size, rejected_size
        self.done["rows"], self.done["rejected"] = rows, self.done["rejected"] + len(rejected)
        write_json(journal, self.done)

    def finish(self) -> None:
        """Writes the output in its own format, and removes the partial files."""
        answers, journal, _, _ = self.paths(self.out)
        if not answers.exists():
            _append(answers, [])
        if self.out.suffix == ".jsonl":
            os.replace(answers, self.out)
        else:
            convert(answers, self.out)
            answers.unlink()
        journal.unlink(missing_ok=True)


def _append(path: Path, records: Iterable[dict[str, object]]) -> int:
    """Appends lines, forced to disk; returns the file's size. After an error the journal still has the old size."""
    with open(path, "ab") as file:
        for record in records:
            file.write(line(record))
        file.flush()
        os.fsync(file.fileno())
        return file.tell()


def line(record: dict[str, object]) -> bytes:
    """A record as a line of JSON. Raises ValueError for NaN and infinity, which JSON does not have."""
    return json.dumps(record, ensure_ascii=False, allow_nan=False).encode("utf-8", "surrogatepass") + b"\n"


# ---------------------------------------------------------------- formats


def convert(answers: Path, out: Path) -> None:
    """JSON lines -> CSV, TSV or Parquet, in constant memory."""
    with replacing(out) as file:
        if out.suffix == ".parquet":
            _write_parquet(answers, file)
        else:
            _write_table(answers, file, "\t" if out.suffix == ".tsv" else ",")


def _read(answers: Path) -> Iterator[dict[str, object]]:
    with open(answers, "rb") as file:
        for each in file:
            yield json.loads(each)


def _write_table(answers: Path, file: BinaryIO, delimiter: str) -> None:
    columns = list(dict.fromkeys(name for record in _read(answers) for name in record))
    text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
    table = csv.writer(text, delimiter=delimiter, lineterminator="\n")
    table.writerow(columns)
    for record in _read(answers):
        table.writerow([_cell(record.get(name)) for name in columns])
    text.detach()


def _cell(value: object) -> object:
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False)
    return "" if value is None else value


def _write_parquet(answers: Path, file: object) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def chunks() -> Iterator[list[dict[str, object]]]:
        chunk: list[dict[str, object]] = []
        for record in _read(answers):
            chunk.append(record)
            if len(chunk) == CHUNK:
                yield chunk
                chunk = []
        if chunk:
            yield chunk

    schema = pa.schema([])
    for chunk in chunks():
        found = pa.Table.from_pylist(chunk).schema
        schema = pa.unify_schemas([schema, found], promote_options="permissive")
    with pq.ParquetWriter(file, schema) as writer:
        for chunk in chunks():
            writer.write_table(pa.Table.from_pylist(chunk, schema=schema))
