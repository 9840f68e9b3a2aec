"""Data files read row by row in order, one file open at a time, from any saved position."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from instructrec_jax.data.example import BadExample
from instructrec_jax.data.rows import open_rows

Position: TypeAlias = Mapping[str, Any]
"""Where reading a stream is, as JSON; each kind of stream has fields of its own."""


@dataclass(frozen=True)
class PlacedRow:
    """A row with its place in a file; `error` in place of a row that cannot be read.

    `columns`: see `data.rows.Rows`.
    """

    where: str
    row: Mapping[str, object]
    columns: Sequence[str] | None = None
    error: BadExample | None = None


class FileStream:
    """The rows of files, with the methods of a HuggingFace `IterableDataset` that `StreamSource` uses.

    Args:
      columns: the columns to read (Parquet only).

    Raises ValueError, while it is read, for a file that cannot be opened.
    """

    features = None

    def __init__(self, files: Sequence[Path], columns: set[str] | None = None) -> None:
        self.files, self.columns = files, columns
        self._state = {"file": 0, "row": 0}

    def state_dict(self) -> dict[str, int]:
        return dict(self._state)

    def load_state_dict(self, state: Position) -> None:
        self._state = {"file": int(state["file"]), "row": int(state["row"])}

    def __iter__(self) -> Iterator[PlacedRow]:
        first, row = self._state["file"], self._state["row"]
        for number in range(first, len(self.files)):
            rows = open_rows(str(self.files[number]), self.columns)
            for index in range(row if number == first else 0, len(rows)):
                self._state = {"file": number, "row": index + 1}
                try:
                    yield PlacedRow(rows.where(index), rows.row(index), rows.columns)
                except BadExample as error:
                    yield PlacedRow(rows.where(index), {}, error=error)
        self._state = {"file": 0, "row": 0}
