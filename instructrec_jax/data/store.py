"""Rows kept on disk in parts: written once, in parallel, and memory-mapped afterwards.

    FOLDER/KEY/part-00000.arrow ...   Arrow files of one record batch each
    FOLDER/KEY/index.json             written last: a store without it is incomplete

The key is a fingerprint of everything that the rows depend on, so a store is complete and right, or not there. A part
is written to a temporary file and moved into place; a writer that was killed leaves whole parts, and the next one
writes the missing ones only. Several processes of one program write every n-th part each. Where the folder cannot be
written, or for few rows, the parts stay in memory.

Why Arrow and not ArrayRecord: a read is a slice of mapped memory, 2 to 3 µs a record in any order against some 600 µs,
and the files are a little smaller (`python scripts/benchmark.py store`).
"""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

import jax
import numpy as np
import pyarrow as pa

from instructrec_jax.distributed.launch import barrier, is_first, say
from instructrec_jax.files import check_type, read_json, replacing, sweep, try_lock, write_json, write_text

FORMAT = 1  # version of the files
INDEX = "index.json"
PART_ROWS = 4096

log = logging.getLogger(__name__)

Meta = dict[str, object]  # of one part: JSON


@dataclass(frozen=True)
class Part:
    """Consecutive rows of a store, and what else is known of them."""

    rows: pa.RecordBatch
    meta: Meta


class Index(TypedDict):
    """index.json. `rows`: of each part; `bytes`: of each part's file; `summary`: see `StorePlan.summarize`."""

    format: int
    rows: list[int]
    bytes: list[int]
    summary: dict[str, object]


@dataclass(frozen=True)
class StorePlan:
    """A store to open, or to write.

    Attributes:
      folder: of all stores of a source; None: in memory.
      key: everything that the rows depend on, as JSON.
      rows: the number of things that become rows, such as records of a file. Asked only where the store is not there.
      make: ranges of these -> a part of each, in this order.
      summarize: all parts -> JSON about the store, kept in its index. Called once, after the last part.
      kept_from: fewer rows stay in memory.
      part_rows: rows of a part.
    """

    folder: Path | None
    key: object
    rows: Callable[[], int]
    make: Callable[[Sequence[range]], Iterator[Part]]
    summarize: Callable[[Sequence[Part]], dict[str, object]]
    kept_from: int = 0
    part_rows: int = PART_ROWS

    @property
    def name(self) -> str:
        said = json.dumps([FORMAT, self.key], sort_keys=True, default=str)
        return hashlib.sha256(said.encode()).hexdigest()[:32]

    def blocks(self) -> list[range]:
        """The rows of each part."""
        rows = self.rows()
        return [range(first, min(first + self.part_rows, rows)) for first in range(0, rows, self.part_rows)]


@dataclass(frozen=True)
class Store:
    """The rows of all parts.

    Attributes:
      place: its folder; None: in memory.
      reused: whether it was there, complete.
      ends: int64 [parts], rows up to the end of each part.
    """

    parts: Sequence[Part]
    summary: dict[str, object]
    place: Path | None
    reused: bool
    ends: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "ends", np.cumsum([part.rows.num_rows for part in self.parts], dtype=np.int64))

    def __reduce__(self) -> tuple[object, ...]:
        """A worker opens the files instead of receiving their content."""
        if self.place is None:
            return Store, (self.parts, self.summary, None, self.reused)
        return _reopened, (self.place,)

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def find(self, row: int) -> tuple[pa.RecordBatch, int]:
        """The part that holds a row, and the row's place in it."""
        part = int(np.searchsorted(self.ends, row, side="right"))
        return self.parts[part].rows, row - (int(self.ends[part - 1]) if part else 0)

    def numbers(self, column: str) -> np.ndarray:
        """A column of numbers, [rows]."""
        return np.concatenate([part.rows.column(column).to_numpy() for part in self.parts])


def open_store(plan: StorePlan) -> Store:
    """The store of a plan: the one on disk if it is complete, else written now.

    Raises what `plan.make` raises; the parts that it made stay for the next try.
    """
    place = None if plan.folder is None else plan.folder / plan.name
    found = None if place is None else _complete(place)
    if place is not None and found is None and plan.rows() < plan.kept_from:
        place = None
    if jax.process_count() > 1:
        return _open_together(plan, place, found)
    if found is not None:
        return found
    if place is None:
        return _written(plan, None)
    with _alone(place):
        return _complete(place) or _written(plan, place)


def _open_together(plan: StorePlan, place: Path | None, found: Store | None) -> Store:
    """Each process makes its share of the missing parts, and the first process the index.

    What a process does not see then (because there is no shared disk), it makes itself. All processes pass the same
    barriers, whatever each of them finds; an error in one share is met again by the others.
    """
    try:
        if place is not None and found is None:
            _make_missing(plan, place, jax.process_index(), jax.process_count())
    finally:
        barrier(f"store {plan.name}: parts")
    try:
        if is_first() and found is None:
            found = _written(plan, place)
    finally:
        barrier(f"store {plan.name}: index")
    if found is None and place is not None:
        found = _complete(place)
    return found or _written(plan, place)


def _written(plan: StorePlan, place: Path | None) -> Store:
    """All parts, those that are missing made now, and the index."""
    made = _make_missing(plan, place)
    parts = [made.get(number) or _mapped(_path(place, number)) for number in range(len(plan.blocks()))]
    summary = plan.summarize(parts)
    if place is None or made:
        return Store(parts, summary, None, reused=False)
    rows = [part.rows.num_rows for part in parts]
    sizes = [_path(place, number).stat().st_size for number in range(len(parts))]
    try:
        write_json(place / INDEX, Index(format=FORMAT, rows=rows, bytes=sizes, summary=summary))
    except OSError as error:
        _unwritten(place, error)
    return Store(parts, summary, place, reused=False)


def _make_missing(plan: StorePlan, place: Path | None, first: int = 0, step: int = 1) -> dict[int, Part]:
    """Makes the missing parts first, first + step, ...; returns those that stay in memory."""
    blocks = plan.blocks()
    missing = [n for n in range(first, len(blocks), step) if place is None or _readable(_path(place, n)) is None]
    kept: dict[int, Part] = {}
    if place is not None:
        sweep(place)
    for number, part in zip(missing, plan.make([blocks[number] for number in missing]), strict=True):
        if place is not None:
            try:
                _write(_path(place, number), part)
                continue
            except OSError as error:
                _unwritten(place, error)
                place = None
        kept[number] = part
    return kept


def _unwritten(place: Path, error: OSError) -> None:
    log.warning(
        "the prepared data cannot be kept in %s (%s): this process keeps them in memory, and the next one prepares "
        "them again. Set data.store to a folder that can be written, or to memory.",
        place.parent,
        error,
    )


def _complete(place: Path) -> Store | None:
    """The store in a folder; None unless it is complete and of this format."""
    try:
        index = read_json(place / INDEX, Index)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        log.warning("%s: ignored, and written again: %s", place / INDEX, error)
        return None
    parts = []
    for number, (rows, size) in enumerate(zip(index["rows"], index["bytes"], strict=True)):
        path = _path(place, number)
        part = _readable(path)
        if part is None or part.rows.num_rows != rows or path.stat().st_size != size:
            log.warning("%s: damaged or missing, so it is written again.", path)
            path.unlink(missing_ok=True)
            return None
        parts.append(part)
    return Store(parts, index["summary"], place, reused=True)


def _reopened(place: Path) -> Store:
    found = _complete(place)
    if found is None:
        raise ValueError(f"{place}: deleted while in use; start again.")
    return found


def _path(place: Path | None, number: int) -> Path:
    assert place is not None
    return place / f"part-{number:05d}.arrow"


def _write(path: Path, part: Part) -> None:
    meta = json.dumps(part.meta).encode()
    schema = part.rows.schema.with_metadata({b"meta": meta})
    with replacing(path) as file, pa.ipc.new_file(file, schema) as writer:
        writer.write_batch(part.rows.replace_schema_metadata({b"meta": meta}))


def _mapped(path: Path) -> Part:
    """A part on disk, memory-mapped. Raises ArrowException or OSError for a file that is not one."""
    reader = pa.ipc.open_file(pa.memory_map(str(path)))
    meta = json.loads(reader.schema.metadata[b"meta"])
    return Part(reader.get_batch(0), check_type(meta, dict[str, object], str(path)))


def _readable(path: Path) -> Part | None:
    try:
        return _mapped(path)
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError):
        return None


@contextmanager
def _alone(place: Path) -> Iterator[None]:
    """Waits until no other process of this machine writes the store. (Without locks in the file system, all write.)"""
    try:
        if not place.parent.exists():
            write_text(place.parent / ".gitignore", "*\n")  # never part of a repository that the data lie in
        place.mkdir(exist_ok=True)
        file = open(place / ".lock", "wb")
    except OSError:
        yield
        return
    with file:
        told = False
        while not _try(file):
            if not told:
                say(f"waiting for another process that prepares the same data in {place}")
            told = True
            time.sleep(0.2)
        yield


def _try(file: object) -> bool:
    try:
        return try_lock(file)  # type: ignore[arg-type]
    except OSError:
        return True
