"""The rows of data files, read in passes, and a profile of each column from bounded statistics.

Counts of cells, their kinds and the range of numbers are those of all rows. What compares cells reads a random sample
of rows, which is all of them in files of up to `SAMPLE` rows.
"""

import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from functools import cached_property
from typing import Literal

from tqdm import tqdm

from instructrec_jax.data.example import BadExample, show
from instructrec_jax.data.rows import open_rows

Kind = Literal["empty", "text", "number", "bool", "list", "object", "messages", "mixed"]
Row = Mapping[str, object]

SAMPLE = 10_000  # rows
ROOM = 50_000_000  # characters of the sampled rows, at 50 for each cell: fewer rows of long cells, or of many columns
MOST_DIFFERENT = 600  # different values that are counted
TIMES = ("timestamp", "time", "date", "datetime", "created_at", "published_at")


class RowStream:
    """The rows of all files, read again by each iteration: (name of the file, row).

    Raises ValueError for files that cannot be read, and for a damaged row.
    """

    def __init__(self, files: Sequence[str]) -> None:
        self.opened = {file: open_rows(file) for file in files}

    def __len__(self) -> int:
        return sum(map(len, self.opened.values()))

    def __iter__(self) -> Iterator[tuple[str, Row]]:
        for file, rows in self.opened.items():
            hide = len(rows) < 50_000
            for index in tqdm(range(len(rows)), desc=f"reading {file}", unit="row", disable=hide, leave=False):
                try:
                    row = rows.row(index)
                except BadExample as error:
                    raise error.at(rows.where(index)) from None
                yield file, {name: _cell(value) for name, value in row.items()}


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
      values: of the sampled rows; None for blank cells (empty texts, NaN).
      filled_rows: number of all rows whose cell is not blank.
      different: number of different values, at most `MOST_DIFFERENT` + 1.
      has_texts, has_others: whether any cell is a text, or anything else.
      low, high: of all numbers; +inf and -inf if there are none.
      has_decimals: whether any number is not whole.
      list_lengths, word_counts: equal for two columns whose lists (words) have the same number in every row.
      most_entries, most_words: of a list, of a text.
    """

    name: str
    values: Sequence[object]
    kind: Kind
    filled_rows: int
    different: int
    has_texts: bool
    has_others: bool
    low: float
    high: float
    has_decimals: bool
    list_lengths: int
    word_counts: int
    most_entries: int
    most_words: int

    @cached_property
    def filled(self) -> list[object]:
        """The sampled cells that are not blank."""
        return [value for value in self.values if value is not None]

    @cached_property
    def texts(self) -> list[str]:
        """The same as texts."""
        return [as_text(value) for value in self.filled]

    @property
    def all_different(self) -> bool:
        if self.different <= MOST_DIFFERENT:
            return self.different == self.filled_rows
        return len(set(self.texts)) == len(self.texts)

    @property
    def count(self) -> str:
        """The number of different values, as text."""
        return f"{self.different:,}" if self.different <= MOST_DIFFERENT else f"more than {MOST_DIFFERENT:,}"

    @cached_property
    def words(self) -> float:
        """Mean number of words of a cell; a character of a script without spaces counts as half a word."""
        some = self.texts[:: max(1, len(self.texts) // 5_000)]
        return sum(map(_words, some)) / max(1, len(some))

    @cached_property
    def numbers(self) -> list[float]:
        return [found for value in self.filled if (found := number(value)) is not None]


@dataclass(frozen=True)
class Profile:
    """Attributes:
    columns: by name.
    rows: number of all rows.
    sample: the sampled rows in their order, by their numbers.
    """

    columns: Mapping[str, Column]
    rows: int
    sample: Mapping[int, Row]


def profile(stream: Iterable[tuple[str, Row]], seed: int = 0) -> Profile:
    """Reads all rows once.

    Args:
      stream: (file, row) of each row.
      seed: of the sample.

    Raises ValueError for files with different columns.
    """
    counters: dict[str, _Counter] = {}
    sample = _Sample(seed)
    by_file: dict[str, set[str]] = {}
    number_of_row = -1
    for number_of_row, (file, row) in enumerate(stream):
        by_file.setdefault(file, set()).update(row)
        for name, value in row.items():
            if name not in counters:
                counters[name] = _Counter()
            counters[name].add(number_of_row, filled(value))
        sample.add(number_of_row, row)
    _check_alike(by_file)
    rows = dict(sorted(sample.rows))
    columns = {
        name: each.column(name, [filled(row.get(name)) for row in rows.values()]) for name, each in counters.items()
    }
    return Profile(columns, number_of_row + 1, rows)


def _check_alike(by_file: Mapping[str, set[str]]) -> None:
    first = next(iter(by_file), "")
    for file in by_file:
        if by_file[file] != by_file[first]:
            odd = ", ".join(sorted(by_file[file] ^ by_file[first])[:10])
            raise ValueError(
                f"{first} and {file} have different columns ({odd}): inspect them one by one. For a table of "
                "interactions and one of items, use `prepare table`."
            )


class _Sample:
    """A uniform sample of rows (Vitter's algorithm R), of fewer rows where they are large."""

    def __init__(self, seed: int) -> None:
        self.rows: list[tuple[int, Row]] = []
        self.most, self.random = SAMPLE, random.Random(seed)
        self.sizes: list[int] = []
        self.size = 0

    def add(self, number_of_row: int, row: Row) -> None:
        if len(self.rows) < self.most:
            place = len(self.rows)
            self.rows.append((number_of_row, row))
            self.sizes.append(0)
        else:
            place = self.random.randrange(number_of_row + 1)
            if place >= self.most:
                return
            self.rows[place] = (number_of_row, row)
        size = _size(row)
        self.size += size - self.sizes[place]
        self.sizes[place] = size
        while self.size > ROOM and len(self.rows) > 100:
            chosen = self.random.sample(range(len(self.rows)), len(self.rows) // 2)
            self.rows, self.sizes = [self.rows[i] for i in chosen], [self.sizes[i] for i in chosen]
            self.most, self.size = len(chosen), sum(self.sizes)


class _Counter:
    """The statistics of a column while its rows are read."""

    def __init__(self) -> None:
        self.kinds: set[Kind] = set()
        self.filled = 0
        self.numeric = True  # all cells so far
        self.decimals = self.texts = self.others = False
        self.low, self.high = math.inf, -math.inf
        self.different: set[int] = set()  # hashes of texts
        self.lists = self.words = 0  # hashes of (row, count) for all counts above 0
        self.most_entries = self.most_words = 0

    def add(self, number_of_row: int, value: object) -> None:
        if value is None:
            return
        self.filled += 1
        kind = _kind(value)
        self.kinds.add(kind)
        if len(self.different) <= MOST_DIFFERENT:
            self.different.add(hash(as_text(value)))
        if isinstance(value, list):
            self.lists = hash((self.lists, number_of_row, len(value))) if value else self.lists
            self.most_entries = max(self.most_entries, len(value))
        if isinstance(value, str):
            self.texts = True
            words = len(value.split())
            self.words = hash((self.words, number_of_row, words))
            self.most_words = max(self.most_words, words)
        else:
            self.others = True
        if self.numeric and kind in ("text", "number"):
            found = number(value)
            self.numeric = found is not None
            if found is not None:
                self.low, self.high = min(self.low, found), max(self.high, found)
                self.decimals = self.decimals or found != int(found)

    def column(self, name: str, values: Sequence[object]) -> Column:
        kind: Kind = "empty" if not self.kinds else next(iter(self.kinds)) if len(self.kinds) == 1 else "mixed"
        if self.kinds and self.kinds <= {"text", "number"} and self.numeric:
            kind = "number"
        return Column(
            name,
            values,
            kind,
            filled_rows=self.filled,
            different=len(self.different),
            has_texts=self.texts,
            has_others=self.others,
            low=self.low,
            high=self.high,
            has_decimals=self.decimals,
            list_lengths=self.lists,
            word_counts=self.words,
            most_entries=self.most_entries,
            most_words=self.most_words,
        )


def number(value: object) -> float | None:
    """The number of a cell, or None. 007 and 1_000 are not numbers."""
    try:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if not isinstance(value, str) or "_" in value:
            return None
        text = value.strip()
        digits = text.lstrip("+-")
        if len(digits) > 1 and digits[0] == "0" and digits[1].isdigit():
            return None
        found = float(text)
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def time_of(value: object) -> float | None:
    """The time of a cell as a number that orders it, or None."""
    moment = number(value)
    if moment is None and isinstance(value, str):
        try:
            parsed = datetime.fromisoformat(value.strip())
            return (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()
        except (ValueError, OverflowError):
            return None
    return moment


def as_text(value: object) -> str:
    return value if isinstance(value, str) else str(value)


def filled(value: object) -> object:
    """The value, or None for a blank cell."""
    return None if isinstance(value, str) and value.strip().lower() in ("", "nan") else value


def _size(value: object) -> int:
    if isinstance(value, Mapping):
        return 50 + sum(50 + _size(each) for each in value.values())
    if isinstance(value, list):
        return 50 + sum(map(_size, value))
    return 50 + len(value) if isinstance(value, str) else 50


def _cell(value: object) -> object:
    """A value that JSON can hold."""
    if isinstance(value, Decimal):
        value = float(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(name): _cell(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_cell(item) for item in value]
    if value is None or isinstance(value, str | int | float):
        return value
    return show(value) if isinstance(value, bytes) else str(value)  # dates and times


def _kind(value: object) -> Kind:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, str):
        return "text"
    if isinstance(value, int | float):
        return "number"
    if isinstance(value, Mapping):
        return "object"
    assert isinstance(value, list)
    turns = [turn for turn in value if isinstance(turn, Mapping) and ("role" in turn or "from" in turn)]
    if turns and len(turns) == len(value):
        return "messages"
    return "object" if any(isinstance(each, Mapping) for each in value) else "list"


def _words(text: str) -> float:
    return len(text.split()) + sum("\u3040" <= character <= "\u9fff" for character in text) / 2
