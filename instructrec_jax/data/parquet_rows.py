"""Records of Parquet files, by number: held in memory, or in batches."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from instructrec_jax.data.example import BadExample
from instructrec_jax.parsing import open_parquet, read_parquet


class ParquetRows:
    """A Parquet file, its needed columns held in memory as an Arrow table."""

    def __init__(self, file: Path, memory: bytes | None, columns: set[str] | None) -> None:
        self.file = file
        parquet = open_parquet(file, memory)
        self.columns: list[str] = parquet.schema_arrow.names
        needed = [name for name in self.columns if columns is None or name in columns]
        self.table = read_parquet(file, needed, memory)
        if not parquet.metadata.num_rows:
            raise ValueError(f"file {file}: it holds no records; remove it from the sources or fill it.")
        self.length = parquet.metadata.num_rows

    def __len__(self) -> int:
        return self.length

    def row(self, index: int) -> dict[str, object]:
        try:
            return {name: self.table.column(name)[index].as_py() for name in self.table.column_names}
        except (UnicodeDecodeError, OverflowError) as error:
            raise BadExample("", "not UTF-8", f"{error}; write the text as UTF-8.") from None

    def where(self, index: int) -> str:
        return f"{self.file}, row {index + 1}"


class ParquetBatches:
    """A Parquet file whose rows are read in order; one batch is in memory. A row before it starts the file again."""

    columns = None
    BATCH = 1024

    def __init__(self, file: Path, memory: bytes | None) -> None:
        self.file, self.memory = file, memory
        self.length = open_parquet(file, memory).metadata.num_rows
        if not self.length:
            raise ValueError(f"file {file}: it holds no records; remove it from the sources or fill it.")
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._first, self._batch = self.length, pa.record_batch({})

    def __len__(self) -> int:
        return self.length

    def row(self, index: int) -> dict[str, object]:
        if index < self._first:
            self._batches = open_parquet(self.file, self.memory).iter_batches(self.BATCH)
            self._first, self._batch = 0, pa.record_batch({})
        try:
            while index >= self._first + self._batch.num_rows:
                self._first += self._batch.num_rows
                self._batch = next(self._batches)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"file {self.file}: unreadable Parquet ({error}); write it again.") from None
        place = index - self._first
        try:
            return {name: self._batch.column(name)[place].as_py() for name in self._batch.schema.names}
        except (UnicodeDecodeError, OverflowError) as error:
            raise BadExample("", "not UTF-8", f"{error}; write the text as UTF-8.") from None

    def where(self, index: int) -> str:
        return f"{self.file}, row {index + 1}"
