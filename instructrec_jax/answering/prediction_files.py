"""Predictions for files of any size: rows are read, answered and written in windows.

Windows have fixed rows, so the result does not depend on interruptions; see `partial_files`.
"""

import fnmatch
import glob
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tqdm import tqdm

from instructrec_jax.answering.output_formats import line, writable
from instructrec_jax.answering.partial_files import Partial, Share, check_other_parts, index_of, paths, write_index
from instructrec_jax.answering.records import blocks, stdin
from instructrec_jax.data.example import BadExample, Example
from instructrec_jax.data.media.picture_references import NO_FOLDERS, PictureFolder, PictureFolders, folders_of
from instructrec_jax.data.rows import ChainedRows, find_files, open_rows
from instructrec_jax.data.skipped import SkippedRow
from instructrec_jax.parsing import json_lines
from instructrec_jax.remote import shown
from instructrec_jax.runs.predictions import Asker, joined
from instructrec_jax.tasks.answers import Answer

WINDOW = 4096  # rows read, answered and written together,
WRITING_WINDOW = 256  # where text is generated, since an interruption costs a window
Row = tuple[str, dict[str, object] | BadExample]  # (place, the row or what is wrong with it)
FORMATS = (".jsonl", ".csv", ".tsv", ".parquet")
ALONE = Share()
# (rows, all columns of the file or None) -> (rows with answers, rows that cannot be answered)
AnswerRows = Callable[[Iterable[Row], Sequence[str] | None], tuple[list[dict[str, object]], list[SkippedRow]]]


@dataclass(frozen=True)
class Counts:
    """Rows of a file that were answered, and rows that could not be."""

    answered: int
    rejected: int


def predict_file(
    asker: Asker, source: Path, out: Path, *, asked: dict[str, object], skip: bool = False, share: Share = ALONE
) -> Counts:
    """Answers the rows of a file; all their columns are kept beside the predictions.

    Args:
      out: .jsonl, .csv, .tsv or .parquet. It must not exist. In CSV and TSV, lists and objects are JSON texts.
      asked: JSON that identifies run and options; an interrupted call is resumed by one with the same.
      skip: list rows that cannot be answered in OUT.rejected.jsonl, with the reason; otherwise the first one stops.
      share: the rows to answer, where several processes share them.

    Raises:
      BadExample (a ValueError): a row that cannot be answered. Earlier windows are kept.
      ValueError: OUT exists, has another ending, or belongs to the input; the input changed since an interruption.
    """

    check_out(source, out)
    pictures = pictures_of(source, asker.images)

    def answer(rows: Iterable[Row], columns: Sequence[str] | None) -> tuple[list[dict[str, object]], list[SkippedRow]]:
        return answer_rows(asker, rows, columns, ending=out.suffix, skip=skip, pictures=pictures)

    return process_file(answer, source, out, asked=asked | {"skip": skip}, share=share, window=_window(asker))


def pictures_of(source: Path, images: str) -> PictureFolders:
    """Where the pictures of an input lie; those that stdin names, below the current folder. images: another folder."""
    if str(source) == "-":
        return PictureFolders(("stdin",), (PictureFolder(Path(images) if images else Path()),))
    files = find_files(str(source))
    return PictureFolders(tuple(map(shown, files)), folders_of(files, images))


def _window(asker: Asker) -> int:
    return min(WINDOW, WRITING_WINDOW) if asker.task.writes else WINDOW


def process_file(
    answer: AnswerRows,
    source: Path,
    out: Path,
    *,
    asked: dict[str, object],
    share: Share = ALONE,
    window: int,
    vectors: bool = False,
) -> Counts:
    """Writes what `answer` gives for the rows of a file; arguments and errors as of `predict_file`.

    Args:
      window: rows that are read, answered and written together.
      vectors: see `output_formats.convert`.
    """
    rows = open_rows(str(source))
    files = [(str(file), (stat := file.stat()).st_size, stat.st_mtime_ns) for file in find_files(str(source))]
    asked = asked | {"files": [list(file) for file in files], "part": [share.number, share.count], "window": window}
    mine, several, target = share.rows(len(rows)), share.count > 1, share.file(out)
    _check_apart(source, [target, *([paths(target)[2]] if asked.get("skip") else [])])
    if several:
        check_other_parts(out, share.count)
    with Partial.open(target, asked) as partial:
        if not partial.finished:
            done = partial.done["rows"]
            for start in counted(range(mine.start + done, mine.stop, window), mine.start + done, mine):
                block = range(start, min(start + window, mine.stop))
                records, rejected = answer(file_rows(rows, block), rows.columns)
                partial.add(records, rejected, block.stop - mine.start)
            partial.finish(keep_journal=several, vectors=vectors)
        counts = Counts(partial.done["rows"] - partial.done["rejected"], partial.done["rejected"])
    if several:
        write_index(out, share.count)
    return counts


def predict_stream(asker: Asker, source: Path, out: BinaryIO, *, skip: bool = False) -> Counts:
    """Answers the rows of a file, or the JSON lines of stdin ("-") as they arrive, as JSON lines.

    Arguments as in `predict_file`; rejected rows are printed on stderr.
    """
    columns, pictures = None, pictures_of(source, asker.images)
    if str(source) == "-":
        found = blocks(_line_rows(stdin()), _window(asker), live=True)
    else:
        rows = open_rows(str(source))
        columns, found = rows.columns, blocks(file_rows(rows, range(len(rows))), _window(asker))
    answered = rejected = 0
    for block in found:
        records, bad = answer_rows(asker, block, columns, skip=skip, pictures=pictures)
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
    """Raises ValueError for an input that is missing, or an output that exists or has another ending."""
    find_files(str(source))
    if out.suffix not in formats:
        raise ValueError(f"--out {out} should end with {', '.join(formats[:-1])} or {formats[-1]}.")
    for path in (out, index_of(out)):
        if path.exists():
            same = " (it is the input)" if source.exists() and path.samefile(source) else ""
            raise ValueError(f"{path} exists already{same}: choose another --out.")


def _check_apart(source: Path, outputs: Sequence[Path]) -> None:
    """Raises ValueError for an output that would be among the input's files."""
    for out in outputs:
        inside = source.is_dir() and out.parent.exists() and out.parent.samefile(source)
        named = glob.has_magic(str(source)) and fnmatch.fnmatch(os.path.abspath(out), os.path.abspath(source))
        if inside or named:
            raise ValueError(f"{out} would be one of the files of --input {source}: choose another folder.")


def answer_rows(
    asker: Asker,
    rows: Iterable[Row],
    columns: Sequence[str] | None = None,
    *,
    ending: str = ".jsonl",
    skip: bool = False,
    pictures: PictureFolders = NO_FOLDERS,
) -> tuple[list[dict[str, object]], list[SkippedRow]]:
    """(the rows with their predictions, the rows that cannot be answered), each in the order of the rows.

    Args:
      columns: all columns of the file, where rows hold a part of them.
      ending: of the output, see `output_formats.writable`.
      pictures: where the files lie that the rows name.
    """
    kept: list[tuple[str, dict[str, object]]] = []
    examples: list[Example] = []

    def read(where: str, row: dict[str, object]) -> None:
        examples.append(asker.example(row, where, columns, pictures.of(where)))
        kept.append((where, row))

    rejected = each_row(read, rows, skip=skip)
    answers, unusable = asker.answers(examples, skip=skip)
    records, unwritable = joined_rows(kept, answers, ending, skip=skip)
    return records, [*rejected, *unusable, *unwritable]


def each_row(read: Callable[[str, dict[str, object]], None], rows: Iterable[Row], *, skip: bool) -> list[SkippedRow]:
    """Calls read(place, row) for each row; returns the rows where it raises BadExample if `skip`, else raises."""
    rejected = []
    for where, row in rows:
        try:
            if isinstance(row, BadExample):
                raise row
            read(where, row)
        except BadExample as error:
            if not skip:
                raise error.at(where) from None
            rejected.append(SkippedRow(where, error.field, error.reason, error.detail))
    return rejected


def joined_rows(
    rows: Sequence[tuple[str, dict[str, object]]], answers: Sequence[Answer | None], ending: str, *, skip: bool
) -> tuple[list[dict[str, object]], list[SkippedRow]]:
    """(the rows with their answers, the rows that cannot be written); rows without an answer are left out."""
    records = []
    answered = [
        (where, joined(row, said)) for (where, row), said in zip(rows, answers, strict=True) if said is not None
    ]

    def keep(_: str, record: dict[str, object]) -> None:
        records.append(writable(record, ending))

    rejected = each_row(keep, answered, skip=skip)
    return records, rejected


def file_rows(rows: ChainedRows, block: range) -> Iterator[Row]:
    for index in block:
        try:
            yield rows.where(index), rows.row(index)
        except BadExample as error:
            yield rows.where(index), error


def counted(blocks: Iterable[int], done: int, rows: range) -> Iterator[int]:
    """`blocks` (first rows) with a progress bar over `rows` or, away from a terminal, a line every ten seconds.

    Args:
      done: the first row that is not done.
    """
    total, done = len(rows), done - rows.start
    if sys.stderr.isatty():
        with tqdm(total=total, initial=done, unit=" rows") as bar:
            for block in blocks:
                bar.update(block - rows.start - bar.n)
                yield block
            bar.update(total - bar.n)
        return
    began = told = time.monotonic()
    for block in blocks:
        now = block - rows.start
        if now > done and time.monotonic() - told >= 10:
            told = time.monotonic()
            rate = (now - done) / (told - began)
            left = (total - now) / rate
            print(f"{now:,} of {total:,} rows, {rate:,.0f} rows/s, {left:,.0f} s left", file=sys.stderr)
        yield block
