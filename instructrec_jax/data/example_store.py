"""The valid examples of a source, read once into a store: in worker processes, with flat memory.

A row of the store is an example's JSON, its digest, and its place in the source.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import pyarrow as pa
from tqdm import tqdm

from instructrec_jax.data.example import BadExample, Example
from instructrec_jax.data.fields import FieldMapper
from instructrec_jax.data.fingerprints import fingerprint_of, json_and_digest
from instructrec_jax.data.labels import check_styles
from instructrec_jax.data.masked import without_values
from instructrec_jax.data.media.picture_references import NO_FILES, PictureFolder, numbered, placed
from instructrec_jax.data.parallel import in_order
from instructrec_jax.data.parts import Part
from instructrec_jax.data.rows import Rows
from instructrec_jax.data.shares import SOURCE_ROW
from instructrec_jax.data.skipped import OnBadExample, SkippedRow, bad_rows, listing
from instructrec_jax.data.storage import Storage, code_version
from instructrec_jax.data.store import PART_ROWS, Store, StorePlan, open_store
from instructrec_jax.files import check_type

SCHEMA = pa.schema(
    [
        ("example", pa.large_binary()),
        ("digest", pa.binary(32)),  # see `data.fingerprints.digest_of_example`
        ("where", pa.string()),
        (SOURCE_ROW, pa.int64()),
    ]
)
ENOUGH = 10  # bad rows that an error lists
_NAME = "\x00{}\x00"  # in `where`, the number of the file: the same bytes at another place are the same store
BAR_FROM = 20_000  # rows


@dataclass(frozen=True)
class Origin:
    """What identifies a source.

    Attributes:
      data: the file or folder that the stores lie beside; None: no place of its own.
      key: fingerprint of its bytes and of how they are read, as JSON; None: unknown, so that nothing is kept on disk.
      names: the names in its rows' `where`.
      pictures: where the pictures of each of these are; none: rows may not name files.
    """

    data: Path | None = None
    key: object = None
    names: Sequence[str] = ()
    pictures: tuple[PictureFolder, ...] = ()


@dataclass(frozen=True)
class Opened:
    """The opened rows of a source, their mapper, and what was noted on opening them."""

    rows: Rows
    mapper: FieldMapper
    notes: Sequence[str] = ()


class StoredExamples(Sequence[Example]):
    """The examples of a store, by number; nothing but the store is in memory.

    Attributes:
      fingerprint: of all examples in order, see `data.fingerprints.fingerprint`.
      skipped: the bad rows that were left out.
      rows: number of rows in the source.
      unread: number of rows with each column that is not read.
      notes: for the log.
    """

    def __init__(self, store: Store, names: Sequence[str], pictures: tuple[PictureFolder, ...] = ()) -> None:
        self.store, self.names, self.pictures = store, names, pictures
        summary = store.summary
        self.fingerprint = check_type(summary.get("fingerprint"), str, "fingerprint of a store")
        self.rows = check_type(summary.get("rows"), int, "rows of a store")
        self.notes = check_type(summary.get("notes"), list[str], "notes of a store")
        self.unread = check_type(summary.get("unread"), dict[str, int], "unread columns of a store")

    @cached_property
    def skipped(self) -> list[SkippedRow]:
        rows = check_type(self.store.summary.get("skipped"), list[dict[str, str]], "skipped rows of a store")
        return [SkippedRow(**{**row, "where": named(row["where"], self.names)}) for row in rows]

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, index: int) -> Example:  # type: ignore[override]
        return self._read(index, sweep=False)

    def _read(self, index: int, sweep: bool) -> Example:
        batch, place = self.store.find(index, sweep)
        where = named(batch.column(2)[place].as_py(), self.names)
        example = Example.from_record(json.loads(batch.column(0)[place].as_py()), where)
        if not example.media:
            return example
        images, sounds = placed(example.images, self.pictures), placed(example.sounds, self.pictures)
        return replace(example, images=images, sounds=sounds)

    @cached_property
    def digests(self) -> pa.ChunkedArray:
        """fixed-size binary [examples]: see `data.fingerprints.digest_of_example`."""
        return pa.chunked_array([part.rows.column("digest") for part in self.store.parts], pa.binary(32))

    def digest(self, index: int) -> bytes:
        return bytes(self.digests[index].as_py())

    def __iter__(self) -> Iterator[Example]:
        return (self._read(index, sweep=True) for index in range(len(self)))


def named(where: str, names: Sequence[str]) -> str:
    """The place of a row with the names of its files in place of their numbers."""
    for number, name in enumerate(names):
        where = where.replace(_NAME.format(number), name)
    return where


def _numbered(where: str, names: Sequence[str]) -> str:
    for number, name in sorted(enumerate(names), key=lambda each: -len(each[1])):  # one name may contain another
        where = where.replace(name, _NAME.format(number))
    return where


def read_examples(
    origin: Origin, open_source: Callable[[], Opened], name: str, on_bad_example: OnBadExample, storage: Storage
) -> StoredExamples:
    """The examples of a source, from its store or read now.

    Args:
      open_source: opens the rows; not called where the store is there.
      on_bad_example: `error` raises for bad rows (the first 10), `skip` leaves them out and lists them.

    Raises:
      ValueError: bad rows, or no valid row.
    """
    opened: list[Opened] = []

    def source() -> Opened:
        if not opened:
            opened.append(open_source())
        return opened[0]

    def make(blocks: Sequence[range]) -> Iterator[Part]:
        rows = len(source().rows)
        reading = _Reading(source().rows, source().mapper, tuple(origin.names), origin.pictures)
        bad: list[SkippedRow] = []
        with tqdm(total=sum(map(len, blocks)), desc=f"reading {name}", unit=" rows", disable=rows < BAR_FROM) as bar:
            for part, block in zip(in_order(read_block, reading, blocks, storage.processes(rows)), blocks, strict=True):
                bar.update(len(block))
                bad += _skipped(part) if on_bad_example == "error" else []
                if len(bad) >= ENOUGH:
                    break
                if not bad:
                    yield part
        if bad:
            raise ValueError(bad_rows(name, [_renamed(row, origin.names) for row in bad[:ENOUGH]]))

    def summarize(parts: Sequence[Part]) -> dict[str, object]:
        summary = _summary(parts, source().notes)
        if source().rows and not any(part.rows.num_rows for part in parts):
            skipped = [_renamed(row, origin.names) for part in parts for row in _skipped(part)]
            raise ValueError(f"source {name}: none of its {len(source().rows)} rows is valid.\n{listing(skipped)}")
        check_styles(Counter(check_type(summary["styles"], dict[str, int], name)), name)
        return summary

    key = {"examples": origin.key, "on_bad_example": on_bad_example, "code": code_version("data")}
    plan = StorePlan(
        folder=None if origin.key is None else storage.folder(origin.data),
        key=key,
        rows=lambda: len(source().rows),
        make=make,
        summarize=summarize,
        kept_from=storage.kept_from,
        part_rows=PART_ROWS,
        shared=("digest", SOURCE_ROW) if storage.divided else (),
        remake=lambda: partial(
            read_block, _Reading(source().rows, source().mapper, tuple(origin.names), origin.pictures)
        ),
    )
    return StoredExamples(open_store(plan), origin.names, origin.pictures)


@dataclass(frozen=True)
class _Reading:
    """What a worker needs to read rows."""

    rows: Rows
    mapper: FieldMapper
    names: tuple[str, ...]
    pictures: tuple[PictureFolder, ...]

    def folder(self, where: str) -> PictureFolder:
        """Of the pictures of a row, by its numbered place."""
        number = where.split("\x00", 2)[1] if where.startswith("\x00") else ""
        return self.pictures[int(number)] if number and self.pictures else NO_FILES


def read_block(reading: _Reading, block: Sequence[int]) -> Part:
    """The valid examples of some rows."""
    rows, mapper = reading.rows, reading.mapper
    mapper.answer_styles.clear()
    unread, bad = Counter[str](), list[SkippedRow]()
    examples: list[tuple[bytes, bytes]] = []
    places: list[str] = []
    numbers: list[int] = []
    for index in block:
        try:
            row, where = rows.row(index), _numbered(rows.where(index), reading.names)
            example = mapper(row, rows.columns, reading.folder(where))
            unread.update(mapper.unread(row, rows.columns))
        except BadExample as found:
            error = found if mapper.mask is None else without_values(found)
            bad.append(SkippedRow(rows.where(index), error.field, error.reason, error.detail))
            continue
        if example.media:
            images, sounds = numbered(example.images, reading.pictures), numbered(example.sounds, reading.pictures)
            example = replace(example, images=images, sounds=sounds)
        examples.append(json_and_digest(example))
        places.append(where)
        numbers.append(index)
    meta: dict[str, object] = {
        "rows": len(block),
        "unread": dict(unread),
        "styles": dict(mapper.answer_styles),
        "skipped": [{**asdict(row), "where": _numbered(row.where, reading.names)} for row in bad],
    }
    columns = ([kept for kept, _ in examples], [digest for _, digest in examples], places, numbers)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)]
    return Part(pa.record_batch(arrays, schema=SCHEMA), meta)


def _skipped(part: Part) -> list[SkippedRow]:
    return [SkippedRow(**row) for row in check_type(part.meta["skipped"], list[dict[str, str]], "a store")]


def _renamed(row: SkippedRow, names: Sequence[str]) -> SkippedRow:
    return replace(row, where=named(row.where, names))


def _summary(parts: Sequence[Part], notes: Sequence[str]) -> dict[str, object]:
    unread, styles = Counter[str](), Counter[str]()
    skipped: list[object] = []
    rows = 0
    for part in parts:
        unread.update(check_type(part.meta["unread"], dict[str, int], "a store"))
        styles.update(check_type(part.meta["styles"], dict[str, int], "a store"))
        skipped += check_type(part.meta["skipped"], list[object], "a store")
        rows += check_type(part.meta["rows"], int, "a store")
    return {
        "fingerprint": fingerprint_of(d for part in parts for d in part.rows.column("digest").to_pylist()),
        "rows": rows,
        "unread": dict(unread),
        "styles": dict(styles),
        "skipped": skipped,
        "notes": list(notes),
    }
