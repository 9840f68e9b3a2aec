"""Records of a Parquet file by number, with one batch of a row group in memory."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from instructrec_jax.data.example import BadExample
from instructrec_jax.data.unpacked import PlainFile
from instructrec_jax.parsing import open_parquet

BATCH = 1024  # rows; a batch is one in memory
_PAGES = 1 << 20  # bytes of a column that are read at once: a row group of gigabytes stays on disk


class ParquetRows:
    """A Parquet file. Rows after one another are cheap; a jump reads from the start of the row's row group.

    Args:
      columns: to read; None: all.

    Raises ValueError for a file that is not Parquet or holds no records, and later for a damaged row group.
    """

    def __init__(self, plain: PlainFile, columns: set[str] | None) -> None:
        self.plain, self.file = plain, plain.file
        parquet = self._open()
        self.columns: list[str] = parquet.schema_arrow.names
        self.needed = [name for name in self.columns if columns is None or name in columns]
        groups = parquet.metadata
        counts = [groups.row_group(number).num_rows for number in range(groups.num_row_groups)]
        self.edges: np.ndarray = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)  # first row of each group
        if not self.edges[-1]:
            raise ValueError(f"file {self.file}: it holds no records; remove it from the sources or fill it.")
        self.close()

    def _open(self) -> pq.ParquetFile:
        return open_parquet(self.file, self.plain.path, buffer_size=_PAGES)

    def close(self) -> None:
        """Forgets the batch and closes the file until a row is read again."""
        self._parquet: pq.ParquetFile | None = None
        self._group, self._first = -1, 0
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._columns: dict[str, pa.Array] = {}
        self._size = 0

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if not name.startswith("_")}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self.close()

    def __len__(self) -> int:
        return int(self.edges[-1])

    def where(self, index: int) -> str:
        return f"{self.file}, row {index + 1}"

    def row(self, index: int) -> dict[str, object]:
        if not self._first <= index < self._first + self._size:
            self._seek(index)
        place = index - self._first
        name = ""
        try:
            row = {}
            for name, column in self._columns.items():
                row[name] = column[place].as_py()
            return row
        except UnicodeDecodeError as error:
            raise BadExample(name, "not UTF-8", f"{error}; write the text as UTF-8.") from None
        except (ValueError, OverflowError, pa.ArrowException) as error:
            detail = f"{error}; write the column as text or as numbers."
            raise BadExample(name, "unreadable value", detail) from None

    def _seek(self, index: int) -> None:
        """Reads on to the batch with a row, from the start of its row group unless it lies ahead in the current one."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        group = int(np.searchsorted(self.edges, index, side="right")) - 1
        try:
            if group != self._group or index < self._first:
                self._parquet = self._parquet or self._open()
                self._group, self._first, self._size = group, int(self.edges[group]), 0
                self._batches = self._parquet.iter_batches(BATCH, row_groups=[group], columns=self.needed)
            while index >= self._first + self._size:
                self._first += self._size
                batch = next(self._batches)
                self._size = batch.num_rows
                self._columns = dict(zip(batch.schema.names, batch.columns, strict=True))
        except (pa.ArrowException, OSError, StopIteration) as error:
            self.close()
            rows = f"rows {self.edges[group] + 1:,} to {self.edges[group + 1]:,}"
            message = f"unreadable Parquet in row group {group + 1} ({rows}): {str(error) or 'rows are missing'}"
            raise ValueError(f"file {self.file}: {message}; write the file again.") from None
