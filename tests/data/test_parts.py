"""A part is read back as it was written, or not at all."""

from pathlib import Path

import pyarrow as pa
import pytest

from instructrec_jax.data.parts import Part, mapped_part, part_path, readable_part, write_part


def test_written_and_read(tmp_path: Path) -> None:
    part, path = Part(pa.record_batch([pa.array([1, 2])], ["n"]), {"a": [1]}), part_path(tmp_path, 7)
    assert path.name == "part-00007.arrow" and readable_part(path) is None
    write_part(path, part)
    found = mapped_part(path)
    assert found.rows.equals(part.rows) and found.meta == part.meta
    path.write_bytes(path.read_bytes()[:-9])
    assert readable_part(path) is None
    with pytest.raises((pa.ArrowException, OSError)):
        mapped_part(path)
