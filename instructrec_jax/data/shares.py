"""Stores without a shared disk: each process keeps a share of the parts, and of the others the columns all need.

A row of another process's part is made again, from the source, where it is asked for: `data.loader` asks for the rows
of the process's own devices only. So an epoch costs each of n processes at most 1/n of the work, and nothing but the
small columns (lengths, digests) travels between them.
"""

import json
import threading
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache
from pathlib import Path

import jax
import numpy as np
import pyarrow as pa

from instructrec_jax.data.parts import Part
from instructrec_jax.distributed.launch import barrier, exchange, is_first, say
from instructrec_jax.files import check_type, write_text

SOURCE_ROW = "row"  # the column, int64 and ascending, with the number of the source's row that a row is made of


class Elsewhere:
    """The parts that other processes keep.

    Args:
      blocks: number of a part -> the source's rows that it is made of.
      make: some of the source's rows, ascending -> their part. Picklable, and called by one thread at a time.
    """

    def __init__(self, blocks: Mapping[int, range], make: Callable[[Sequence[int]], Part]) -> None:
        self.blocks, self.make = blocks, make
        self._lock = threading.Lock()
        self._covered: Collection[int] = ()  # rows of the source that were made last
        self._made: pa.RecordBatch | None = None

    def __reduce__(self) -> tuple[object, ...]:
        return Elsewhere, (self.blocks, self.make)

    def expect(self, rows: Sequence[int]) -> None:
        """Makes some of the source's rows together, because they are asked for next."""
        with self._lock:
            self._cover(sorted(set(rows)))

    def _cover(self, rows: Sequence[int]) -> None:
        self._made = self.make(rows).rows
        self._covered = rows if isinstance(rows, range) else set(rows)

    def find(self, number: int, known: pa.RecordBatch, place: int, sweep: bool) -> tuple[pa.RecordBatch, int]:
        """A record batch with the row at a place of a part, and its place there.

        Args:
          known: the columns of the part that every process keeps.
          sweep: whether the part's other rows are asked for next, so that all are made together.

        Raises ValueError where the source gives other rows than the process that keeps the part has read.
        """
        row = known.column(SOURCE_ROW)[place].as_py()
        with self._lock:
            if self._made is None or row not in self._covered:
                self._cover(self.blocks[number] if sweep else [row])
            made = self._made
        assert made is not None
        (first, after), (there, end) = (_places(batch, row) for batch in (known, made))
        if not made.select(known.schema.names).slice(there, end - there).equals(known.slice(first, after - first)):
            raise ValueError(
                f"the data of process {jax.process_index()} differ from those of the process that keeps row {row + 1}: "
                "all machines need the same files, unchanged while in use."
            )
        return made, there + place - first


def _places(batch: pa.RecordBatch, row: int) -> tuple[int, int]:
    """The first row that is made of a row of the source, and the one after the last."""
    first, after = np.searchsorted(batch.column(SOURCE_ROW).to_numpy(), [row, row + 1])
    return int(first), int(after)


def exchanged(mine: Mapping[int, Part], columns: Sequence[str], failure: Exception | None) -> dict[int, Part]:
    """The parts of all processes, by number, with some of their columns.

    Args:
      mine: the parts of this process, at least one unless it failed.
      failure: why they could not be made. All processes raise the first one's.
    """
    for number, said in enumerate(exchange(b"" if failure is None else (str(failure) or repr(failure)).encode())):
        if said and number == jax.process_index():
            raise failure  # type: ignore[misc]
        if said:
            raise ValueError(said.decode())
    found: dict[int, Part] = {}
    for share in exchange(_packed(mine, columns)):
        reader = pa.ipc.open_stream(share)
        metas = check_type(json.loads(reader.schema.metadata[b"metas"]), dict[str, dict[str, object]], "a share")
        for (name, meta), batch in zip(metas.items(), reader, strict=True):
            found[int(name)] = Part(batch.replace_schema_metadata(None), meta)
    return found


def _packed(parts: Mapping[int, Part], columns: Sequence[str]) -> bytes:
    chosen = [part.rows.select(columns).replace_schema_metadata(None) for part in parts.values()]
    metas = json.dumps({str(number): part.meta for number, part in parts.items()}).encode()
    schema = chosen[0].schema.with_metadata({b"metas": metas})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        for batch in chosen:
            writer.write_batch(batch.replace_schema_metadata({b"metas": metas}))
    return sink.getvalue().to_pybytes()


def on_shared_disk(folder: Path | None) -> bool:
    """Whether all processes see what the first one writes to the folder of the stores. All of them ask alike.

    A wrong answer costs time and nothing else.
    """
    count = jax.process_count()
    name = exchange(f".seen-{uuid.uuid4().hex}".encode())[0].decode()
    if folder is not None and is_first():
        try:
            write_text(folder / name, "")
        except OSError:
            pass  # then nobody sees it
    barrier("store: token written")
    seen = all(exchange(b"yes" if folder is not None and (folder / name).exists() else b""))
    if folder is not None and is_first():
        (folder / name).unlink(missing_ok=True)
        _tell(folder, seen, count)
    return seen


@cache
def _tell(folder: Path, seen: bool, count: int) -> None:
    """Once for all stores of a folder."""
    how = "is shared by all" if seen else "is not shared: each process keeps its share. Found by"
    say(f"prepared data: {folder} {how} {count} processes")
