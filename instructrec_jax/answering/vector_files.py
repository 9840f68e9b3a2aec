"""Vectors of the rows of a file, window by window."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from instructrec_jax.answering import prediction_files
from instructrec_jax.answering.prediction_files import check_out, counted, file_rows
from instructrec_jax.data.example import BadExample
from instructrec_jax.data.prompts import render
from instructrec_jax.data.rows import open_rows
from instructrec_jax.data.usual_columns import RecordMapper
from instructrec_jax.files import replacing

Encode = Callable[[Sequence[str]], np.ndarray]
Window = tuple[list[dict[str, object]], np.ndarray]  # rows and their vectors


def write_vectors(encode: Encode, mapper: RecordMapper, source: Path, out: Path) -> int:
    """Writes the float32 vectors of a file's rows: .npy [rows, width], or .parquet with the rows' columns and `vector`.

    Returns the number of rows. Raises BadExample for a row without text; then nothing is written.
    """
    check_out(source, out, (".npy", ".parquet"))
    rows = open_rows(str(source))

    def windows() -> Iterator[Window]:
        for start in counted(range(0, len(rows), prediction_files.WINDOW), 0, len(rows)):
            found = list(file_rows(rows, range(start, min(start + prediction_files.WINDOW, len(rows)))))
            kept = [row for _, row in found if not isinstance(row, BadExample)]
            if bad := [row.at(where) for where, row in found if isinstance(row, BadExample)]:
                raise bad[0]
            yield kept, encode([render(mapper(row, rows.columns)) for row in kept])

    with replacing(out) as file:
        if out.suffix == ".npy":
            _write_npy(windows(), len(rows), file)
        else:
            _write_vector_table(windows(), file)
    return len(rows)


def _write_npy(windows: Iterator[Window], count: int, file: BinaryIO) -> None:
    for number, (_, vectors) in enumerate(windows):
        if not number:
            header = {"descr": "<f4", "fortran_order": False, "shape": (count, vectors.shape[1])}
            np.lib.format.write_array_header_2_0(file, header)
        file.write(np.ascontiguousarray(vectors, "<f4").tobytes())


def _write_vector_table(windows: Iterator[Window], file: BinaryIO) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    writer = None
    try:
        for rows, vectors in windows:
            table = pa.Table.from_pylist(
                rows, schema=None if writer is None else writer.schema.remove(len(writer.schema) - 1)
            )
            column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
            table = table.append_column("vector", column)
            if writer is None:
                writer = pq.ParquetWriter(file, table.schema)
            writer.write_table(table)
    finally:
        if writer is not None:
            writer.close()  # also after an error: pyarrow would write to the closed file later
