"""Rows kept on disk in parts: written once, in parallel, and memory-mapped afterwards.

    FOLDER/KEY/part-00000.arrow ...   Arrow files of one record batch each
    FOLDER/KEY/index.json             written last: a store without it is incomplete

The key is a fingerprint of everything that the rows depend on, so a store is complete and right, or not there. A part
is written to a temporary file and moved into place; a writer that was killed leaves whole parts, and the next one
writes the missing ones only. Several processes of one program write every n-th part each; without a shared disk each
keeps these only (`data.shares`), and there is no index. Where the folder cannot be written, or for few rows, the parts
stay in memory.

Why Arrow and not ArrayRecord: a read is a slice of mapped memory, 2 to 3 µs a record in any order against some 600 µs,
and the files are a little smaller (`python scripts/benchmark.py store`).
"""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

import jax
import numpy as np
import pyarrow as pa

from instructrec_jax.data.parts import Part, mapped_part, part_path, readable_part, write_part
from instructrec_jax.data.shares import SOURCE_ROW, Elsewhere, exchanged, on_shared_disk
from instructrec_jax.distributed.launch import barrier, exchange, is_first, say
from instructrec_jax.files import read_json, sweep, try_lock, write_json, write_text

FORMAT = 1  # version of the files
INDEX = "index.json"
PART_ROWS = 4096

log = logging.getLogger(__name__)


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
      shared: columns of all rows that every process keeps where the disk is not shared, with `shares.SOURCE_ROW`, and
        all that `summarize` reads; (): every process keeps all rows.
      remake: () -> a function that makes some of the rows again, see `shares.Elsewhere`.
    """

    folder: Path | None
    key: object
    rows: Callable[[], int]
    make: Callable[[Sequence[range]], Iterator[Part]]
    summarize: Callable[[Sequence[Part]], dict[str, object]]
    kept_from: int = 0
    part_rows: int = PART_ROWS
    shared: Sequence[str] = ()
    remake: Callable[[], Callable[[Sequence[int]], Part]] | None = None

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
      elsewhere: the parts that other processes keep, of which `parts` have the shared columns; None: none.
      ends: int64 [parts], rows up to the end of each part.
    """

    parts: Sequence[Part]
    summary: dict[str, object]
    place: Path | None
    reused: bool
    elsewhere: Elsewhere | None = None
    ends: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "ends", np.cumsum([part.rows.num_rows for part in self.parts], dtype=np.int64))

    def __reduce__(self) -> tuple[object, ...]:
        """A worker opens the files instead of receiving their content."""
        if self.place is None:
            return Store, (self.parts, self.summary, None, self.reused, self.elsewhere)
        if self.elsewhere is None:
            return _reopened, (self.place,)
        known = {number: self.parts[number] for number in self.elsewhere.blocks}
        return _reopened_share, (self.place, len(self.parts), known, self.summary, self.elsewhere)

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def find(self, row: int, sweep: bool = False) -> tuple[pa.RecordBatch, int]:
        """The part that holds a row, and the row's place in it. sweep: whether the rows after it are read, too."""
        part, place = self._place(row)
        rows = self.parts[part].rows
        if self.elsewhere is None or part not in self.elsewhere.blocks:
            return rows, place
        return self.elsewhere.find(part, rows, place, sweep)

    def _place(self, row: int) -> tuple[int, int]:
        part = int(np.searchsorted(self.ends, row, side="right"))
        return part, row - (int(self.ends[part - 1]) if part else 0)

    def expect(self, rows: Sequence[int]) -> None:
        """Makes those of some rows together that other processes keep; `find` is asked for them next."""
        if self.elsewhere is None:
            return
        places = [(part, place) for part, place in map(self._place, rows) if part in self.elsewhere.blocks]
        if places:
            self.elsewhere.expect([self.parts[part].rows.column(SOURCE_ROW)[place].as_py() for part, place in places])

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

    What a process does not see then, it makes itself. All processes pass the same barriers, whatever each of them
    finds; an error in one share is met again by the others.
    """
    answers = [json.loads(each) for each in exchange(json.dumps([plan.name, found is not None]).encode())]
    if other := [number for number, (name, _) in enumerate(answers) if name != plan.name]:
        raise ValueError(
            f"processes {', '.join(map(str, other))} read other data, settings or code than process "
            f"{jax.process_index()}: all machines need the same files, settings and versions."
        )
    if all(there for _, there in answers) and found is not None:
        return found
    folder = None if place is None else place.parent
    if plan.shared and len(plan.blocks()) >= jax.process_count() and not on_shared_disk(folder):
        return _open_share(plan, place)
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


def _open_share(plan: StorePlan, place: Path | None) -> Store:
    """Each process makes every n-th part and keeps it; of the others it keeps the shared columns."""
    first, step = jax.process_index(), jax.process_count()
    blocks = plan.blocks()
    assert plan.remake is not None

    def there(numbers: Iterable[int]) -> dict[int, Part]:
        found = {n: None if place is None else readable_part(part_path(place, n)) for n in numbers}
        return {number: part for number, part in found.items() if part is not None}

    mine = range(first, len(blocks), step)
    before, made, failure = there(mine), dict[int, Part](), None
    try:
        made = _make_missing(plan, place, first, step)
    except Exception as error:  # told to the others, which wait for this share, and raised by all
        failure = error
    known = exchanged({**there(mine), **made}, plan.shared, failure)
    here = {**there(range(len(blocks))), **made}
    away = Elsewhere({n: block for n, block in enumerate(blocks) if n not in here}, plan.remake())
    known = dict(sorted(known.items()))
    summary = plan.summarize(list(known.values()))
    parts = [here.get(number, part) for number, part in known.items()]
    return Store(parts, summary, place, len(before) == len(mine), away if away.blocks else None)


def _reopened_share(
    place: Path, count: int, known: dict[int, Part], summary: dict[str, object], elsewhere: Elsewhere
) -> Store:
    parts = [known[number] if number in known else mapped_part(part_path(place, number)) for number in range(count)]
    return Store(parts, summary, place, True, elsewhere)


def _written(plan: StorePlan, place: Path | None) -> Store:
    """All parts, those that are missing made now, and the index."""
    made = _make_missing(plan, place)
    parts = [made.get(number) or mapped_part(part_path(place, number)) for number in range(len(plan.blocks()))]
    summary = plan.summarize(parts)
    if place is None or made:
        return Store(parts, summary, None, reused=False)
    rows = [part.rows.num_rows for part in parts]
    sizes = [part_path(place, number).stat().st_size for number in range(len(parts))]
    try:
        write_json(place / INDEX, Index(format=FORMAT, rows=rows, bytes=sizes, summary=summary))
    except OSError as error:
        _unwritten(place, error)
    return Store(parts, summary, place, reused=False)


def _make_missing(plan: StorePlan, place: Path | None, first: int = 0, step: int = 1) -> dict[int, Part]:
    """Makes the missing parts first, first + step, ...; returns those that stay in memory."""
    blocks = plan.blocks()
    missing = [
        n for n in range(first, len(blocks), step) if place is None or readable_part(part_path(place, n)) is None
    ]
    kept: dict[int, Part] = {}
    if place is not None:
        sweep(place)
    for number, part in zip(missing, plan.make([blocks[number] for number in missing]), strict=True):
        if place is not None:
            try:
                write_part(part_path(place, number), part)
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
        path = part_path(place, number)
        part = readable_part(path)
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
