"""The rows of data files, and a profile of each column."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from typing import Literal, TypeVar

from tqdm import tqdm

from instructrec_jax.data.example import BadExample, show
from instructrec_jax.data.rows import open_rows

Kind = Literal["empty", "text", "number", "bool", "list", "object", "messages", "mixed"]
Row = Mapping[str, object]
T = TypeVar("T")


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
      values: of all rows; None for blank cells (empty texts, NaN).
    """

    name: str
    values: Sequence[object]

    @cached_property
    def filled(self) -> list[object]:
        return [value for value in self.values if value is not None]

    @property
    def missing(self) -> int:
        """Number of blank cells."""
        return len(self.values) - len(self.filled)

    @cached_property
    def kind(self) -> Kind:
        kinds = {_kind(value) for value in self.filled}
        if not kinds:
            return "empty"
        if kinds <= {"text", "number"} and all(number(value) is not None for value in self.filled):
            return "number"
        return kinds.pop() if len(kinds) == 1 else "mixed"

    @cached_property
    def texts(self) -> list[str]:
        """The filled cells as texts."""
        return [value if isinstance(value, str) else str(value) for value in self.filled]

    @cached_property
    def distinct(self) -> list[str]:
        """The different texts, sorted."""
        return sorted(set(self.texts))

    @cached_property
    def words(self) -> float:
        """Mean number of words of a cell; a character of a script without spaces counts as half a word."""
        some = self.texts[:: max(1, len(self.texts) // 5_000)]
        return sum(map(_words, some)) / max(1, len(some))

    @cached_property
    def numbers(self) -> list[float]:
        return [found for value in self.filled if (found := number(value)) is not None]


def read_rows(files: Sequence[str]) -> tuple[list[Row], list[str]]:
    """(the rows of all files, the file of each row).

    Raises ValueError for files that cannot be read, a damaged row, or files with different columns.
    """
    rows: list[Row] = []
    names: list[str] = []
    for file in files:
        opened = open_rows(file)
        for index in steps(range(len(opened)), f"reading {file}"):
            try:
                rows.append({name: _cell(value) for name, value in opened.row(index).items()})
            except BadExample as error:
                raise error.at(opened.where(index)) from None
            names.append(file)
    first: dict[str, set[str]] = {}
    for row, file in zip(rows, names, strict=True):
        first.setdefault(file, set()).update(row)
    for file in files[1:]:
        if first[file] != first[files[0]]:
            odd = ", ".join(sorted(first[file] ^ first[files[0]])[:10])
            raise ValueError(
                f"{files[0]} and {file} have different columns ({odd}): inspect them one by one. For a table of "
                "interactions and one of items, use `prepare table`."
            )
    return rows, names


def steps(rows: Sequence[T], what: str) -> Iterable[T]:
    """The rows, with a progress bar if there are many."""
    return tqdm(rows, desc=what, unit="row", disable=len(rows) < 50_000, leave=False)


def profile(rows: Sequence[Row]) -> dict[str, Column]:
    """The columns by name."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: Column(name, [_filled(row.get(name)) for row in rows]) for name in names}


def number(value: object) -> float | None:
    """The number of a cell, or None. 007 and 1_000 are not numbers."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, str) or "_" in value:
        return None
    text = value.strip()
    digits = text.lstrip("+-")
    if len(digits) > 1 and digits[0] == "0" and digits[1].isdigit():
        return None
    try:
        found = float(text)
    except ValueError:
        return None
    return found if math.isfinite(found) else None


def _cell(value: object) -> object:
    """A value that JSON can hold."""
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(name): _cell(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_cell(item) for item in value]
    if value is None or isinstance(value, str | int | float):
        return value
    return show(value) if isinstance(value, bytes) else str(value)  # dates and times


def _filled(value: object) -> object:
    """The value, or None for a blank cell."""
    return None if isinstance(value, str) and value.strip().lower() in ("", "nan") else value


def _kind(value: object) -> Kind:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, str):
        return "text"
    if isinstance(value, int | float):
        return "number"
    if isinstance(value, Mapping):
        return "object"
    assert isinstance(value, list | tuple)
    turns = [turn for turn in value if isinstance(turn, Mapping) and ("role" in turn or "from" in turn)]
    if turns and len(turns) == len(value):
        return "messages"
    return "object" if any(isinstance(each, Mapping) for each in value) else "list"


def _words(text: str) -> float:
    return len(text.split()) + sum("\u3040" <= character <= "\u9fff" for character in text) / 2
