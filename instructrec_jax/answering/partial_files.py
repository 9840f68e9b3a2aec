"""The files of an output that is written window by window, and resumed after an interruption.

Until the end, the rows are in OUT.partial (JSON lines) and what is done in OUT.partial.json; the last step writes OUT
in its own format. Rows that cannot be answered are in OUT.rejected.jsonl.

Several processes share the rows of an input and need no connection: process p of n writes consecutive rows to
OUT-0000p-of-0000n. Whichever sees all parts finished writes OUT.index.json, which lists them; so the same command, run
once more in any of them, also writes an index that is missing.
"""

import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypedDict

from instructrec_jax.answering.output_formats import convert, line
from instructrec_jax.data.skipped import SkippedRow
from instructrec_jax.files import explain, read_json, try_lock, write_json


class Done(TypedDict):
    """OUT.partial.json: what was asked, and what is in the partial files."""

    asked: dict[str, object]
    rows: int
    bytes: int
    rejected: int
    rejected_bytes: int


class Part(TypedDict):
    """An entry of OUT.index.json: rows of the input from `first_row` (counted from 0), in its order."""

    file: str
    first_row: int
    rows: int
    rejected: int
    bytes: int


class Index(TypedDict):
    """OUT.index.json."""

    rows: int
    rejected: int
    parts: list[Part]


@dataclass(frozen=True)
class Share:
    """The rows of one of `count` processes; `number` is counted from 0."""

    number: int = 0
    count: int = 1

    def rows(self, total: int) -> range:
        """Its rows of `total`: consecutive, and as many as those of the others but for one."""
        return range(total * self.number // self.count, total * (self.number + 1) // self.count)

    def file(self, out: Path) -> Path:
        """The file that it writes: `out` for a single process."""
        if self.count == 1:
            return out
        return out.with_name(f"{out.stem}-{self.number + 1:05d}-of-{self.count:05d}{out.suffix}")


def paths(out: Path) -> tuple[Path, Path, Path, Path]:
    """(rows, what is done, rejected rows, lock)"""
    return (
        out.with_name(f"{out.name}.partial"),
        out.with_name(f"{out.name}.partial.json"),
        out.with_suffix(".rejected.jsonl"),
        out.with_name(f".{out.name}.lock"),
    )


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        explain(error, path)


@dataclass
class Partial:
    """The files of an unfinished output, see `open`."""

    out: Path
    done: Done

    @classmethod
    @contextmanager
    def open(cls, out: Path, asked: dict[str, object]) -> Iterator["Partial"]:
        """New files, or those of an interrupted call, cut back to its last window.

        Args:
          asked: JSON that identifies the call. An `out` that exists is its finished part.

        Raises:
          ValueError: another process writes `out`, or the files are of another call or no part of one.
        """
        lock = paths(out)[3]
        with _writing(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            held = open(lock, "a+b")
        with held:
            with _writing(out):
                if not try_lock(held):
                    raise ValueError(f"another process writes {out} at the moment: choose another --out.")
                partial = cls(out, cls._begun(out, asked))
            try:
                yield partial
            except Exception:
                if not partial.done["rows"]:  # nothing is lost, and the next call may be another
                    for path in paths(out):
                        path.unlink(missing_ok=True)
                raise
            lock.unlink(missing_ok=True)

    @property
    def finished(self) -> bool:
        return self.out.exists()

    @staticmethod
    def _begun(out: Path, asked: dict[str, object]) -> Done:
        answers, journal, rejected, _ = paths(out)
        asked = json.loads(json.dumps(asked))
        known = read_json(journal, Done) if journal.exists() else None
        begun = known is not None and known["rows"] > 0  # else a kill came before the first window
        if known is not None and known["asked"] != asked and (out.exists() or (begun and answers.exists())):
            raise ValueError(
                f"{answers} is of another call (another run, input or options, or the input changed since): remove "
                f"it and {journal.name} to begin again, or choose another --out."
            )
        if known is not None and out.exists():
            return known
        if known is not None and known["asked"] == asked and answers.exists():
            print(f"resuming after {known['rows']:,} rows", file=sys.stderr)
            done = known
        else:  # a journal without answers: the output was finished, and then removed
            foreign = (out, answers, rejected) if known is None else (rejected,) if begun else ()
            for path in foreign:
                if path.exists():
                    raise ValueError(f"{path} exists already: remove it, or choose another --out.")
            done = Done(asked=asked, rows=0, bytes=0, rejected=0, rejected_bytes=0)
            write_json(journal, done)
            answers.touch()
        for path, size in ((answers, done["bytes"]), (rejected, done["rejected_bytes"])):
            if size or path.exists():
                os.truncate(path, size)
        return done

    def add(self, records: Sequence[dict[str, object]], rejected: Sequence[SkippedRow], rows: int) -> None:
        """Appends the rows of a window; `rows`: rows of the input read so far."""
        answers, journal, listed, _ = paths(self.out)
        with _writing(self.out):
            size = _append(answers, records)
            rejected_size = self.done["rejected_bytes"]
            if rejected:
                rejected_size = _append(listed, [asdict(row) for row in rejected])
            new = self.done | {"bytes": size, "rejected_bytes": rejected_size, "rows": rows}
            new["rejected"] = self.done["rejected"] + len(rejected)
            write_json(journal, new)
        self.done = new

    def finish(self, *, keep_journal: bool, vectors: bool) -> None:
        """Writes the output in its own format, and removes the partial files.

        Args:
          keep_journal: for the index, see `write_index`.
          vectors: see `output_formats.convert`.
        """
        answers, journal, _, _ = paths(self.out)
        with _writing(self.out):
            if self.out.suffix == ".jsonl":
                os.replace(answers, self.out)
            else:
                convert(answers, self.out, vectors=vectors)
                answers.unlink()
            if not keep_journal:
                journal.unlink(missing_ok=True)


def _append(path: Path, records: Iterable[dict[str, object]]) -> int:
    """Appends lines, forced to disk; returns the file's size. After an error the journal still has the old size."""
    with open(path, "ab") as file:
        for record in records:
            file.write(line(record))
        file.flush()
        os.fsync(file.fileno())
        return file.tell()


# ---------------------------------------------------------------- parts


def index_of(out: Path) -> Path:
    return out.with_name(f"{out.name}.index.json")


def check_other_parts(out: Path, count: int) -> None:
    """Raises ValueError for parts of another number of processes."""
    name = re.compile(rf"{re.escape(out.stem)}-\d{{5}}-of-(\d{{5}}){re.escape(out.suffix)}(\.partial)?")
    for path in sorted(out.parent.iterdir()) if out.parent.is_dir() else []:
        if (found := name.fullmatch(path.name)) and int(found[1]) != count:
            raise ValueError(
                f"{path} is a part of {int(found[1])} processes, but now there are {count}: start {int(found[1])} to "
                "go on, remove it, or choose another --out."
            )


def write_index(out: Path, count: int) -> bool:
    """Writes OUT.index.json if all parts are finished; returns whether it is there.

    Raises ValueError where the parts are of different calls.
    """
    parts: list[Part] = []
    asked: list[object] = []
    for number in range(count):
        part = Share(number, count).file(out)
        try:
            done, size = read_json(paths(part)[1], Done), part.stat().st_size
        except FileNotFoundError:  # unfinished; or another process has just written the index
            return index_of(out).exists()
        asked.append({name: value for name, value in done["asked"].items() if name != "part"})
        first = sum(each["rows"] for each in parts)
        parts.append(Part(file=part.name, first_row=first, rows=done["rows"], rejected=done["rejected"], bytes=size))
        if asked[number] != asked[0]:
            raise ValueError(
                f"{part} and {parts[0]['file']} are of different calls (another run, input or options): remove the "
                "wrong ones and begin again."
            )
    index = Index(rows=sum(p["rows"] for p in parts), rejected=sum(p["rejected"] for p in parts), parts=parts)
    write_json(index_of(out), index)
    for each in parts:
        paths(out.with_name(each["file"]))[1].unlink(missing_ok=True)
    return True
