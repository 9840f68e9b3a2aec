"""The parts of a store: Arrow files of one record batch each, memory-mapped when they are read."""

import json
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from instructrec_jax.files import check_type, replacing

Meta = dict[str, object]  # of one part: JSON


@dataclass(frozen=True)
class Part:
    """Consecutive rows of a store, and what else is known of them."""

    rows: pa.RecordBatch
    meta: Meta


def part_path(place: Path | None, number: int) -> Path:
    assert place is not None
    return place / f"part-{number:05d}.arrow"


def write_part(path: Path, part: Part) -> None:
    meta = json.dumps(part.meta).encode()
    schema = part.rows.schema.with_metadata({b"meta": meta})
    with replacing(path) as file, pa.ipc.new_file(file, schema) as writer:
        writer.write_batch(part.rows.replace_schema_metadata({b"meta": meta}))


def mapped_part(path: Path) -> Part:
    """A part on disk, memory-mapped. Raises ArrowException or OSError for a file that is not one."""
    reader = pa.ipc.open_file(pa.memory_map(str(path)))
    meta = json.loads(reader.schema.metadata[b"meta"])
    return Part(reader.get_batch(0), check_type(meta, dict[str, object], str(path)))


def readable_part(path: Path) -> Part | None:
    """The same; None for a file that is missing or damaged."""
    try:
        return mapped_part(path)
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError):
        return None
