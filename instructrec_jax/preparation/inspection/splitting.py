"""Training, validation and test rows, by seed: equal inputs together, labels in proportion, or by time."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from instructrec_jax.data.fields import look_up
from instructrec_jax.preparation.inspection.columns import Row
from instructrec_jax.preparation.inspection.table import Guess

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
HELD_OUT: tuple[Split, ...] = ("test", "validation")
_NAMED = re.compile(r"(?:^|[^a-z])(train|training|valid|validation|val|dev|eval|test)(?:[^a-z]|$)")
_MEANING: dict[str, Split] = {"train": "train", "training": "train", "test": "test"}


LEFT_OUT = -1  # in `Parts.split`


@dataclass(frozen=True)
class Parts:
    """Attributes:
    split: number of each row's split in `SPLITS`, int8 [rows]; LEFT_OUT for none.
    why: how they were chosen.
    """

    split: np.ndarray
    why: str

    @property
    def counts(self) -> dict[Split, int]:
        return {name: int((self.split == number).sum()) for number, name in enumerate(SPLITS)}

    @property
    def left_out(self) -> int:
        """Number of training rows whose input also lies in a validation or test file."""
        return int((self.split == LEFT_OUT).sum())


class Rows:
    """What is kept of each row for the splits.

    Attributes:
      keys: uint64 [rows, 2]: equal for rows with one input, in a random order that depends on seed and input alone.
      labels: int32 [rows], into `label_sets`.
      label_sets: each different set of labels once.
      files: int16 [rows], the number of the file.
      times: float64 [rows], or None.
    """

    def __init__(self, count: int, seed: int, guess: Guess) -> None:
        self.seed, self.guess = seed, guess
        self.keys: np.ndarray = np.zeros((count, 2), np.uint64)
        self.labels: np.ndarray = np.zeros(count, np.int32)
        self.files: np.ndarray = np.zeros(count, np.int16)
        self.times: np.ndarray | None = None
        self.label_sets: list[frozenset[str]] = []
        self._numbers: dict[frozenset[str], int] = {}
        self.length = 0

    def add(self, row: Row, file: int) -> None:
        key = key_of(row, self.guess.inputs)
        digest = hashlib.sha256(f"{self.seed}\n{key}".encode("utf-8", "surrogatepass")).digest()
        self.keys[self.length] = np.frombuffer(digest[:16], ">u8")
        self.labels[self.length] = self.number_of(frozenset(labels_of(row, self.guess)))
        self.files[self.length] = file
        self.length += 1

    def finish(self, times: np.ndarray | None) -> None:
        """Ends adding rows. times: of each row."""
        self.keys, self.labels = self.keys[: self.length], self.labels[: self.length]
        self.files, self.times = self.files[: self.length], times

    def number_of(self, labels: frozenset[str]) -> int:
        if labels not in self._numbers:
            self._numbers[labels] = len(self.label_sets)
            self.label_sets.append(labels)
        return self._numbers[labels]

    def labels_in(self, rows: np.ndarray) -> set[str]:
        """The labels of the rows that a mask selects."""
        return {label for number in np.unique(self.labels[rows]) for label in self.label_sets[number]}


@dataclass(frozen=True)
class _Groups:
    """Rows with one input, in random order. of_row: int64 [rows]. labels: int64 [groups]. times: of the latest row."""

    of_row: np.ndarray
    labels: np.ndarray
    times: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


def split_of(file: str) -> Split | None:
    """The split that a file's name says it is, or None."""
    found = _NAMED.search(Path(file).name.lower())
    return None if found is None else _MEANING.get(found[1], "validation")


def divide(rows: Rows, *, files: Sequence[str], validation: float, test: float) -> Parts:
    """Splits rows. Files whose names say train, validation or test keep their rows.

    Args:
      files: names, by number.

    Raises ValueError for fewer than three different inputs.
    """
    groups = _groups(rows)
    if len(groups) < 3:
        raise ValueError(f"{len(groups)} different inputs are too few to train, validate and test on: add rows.")
    given = [split_of(file) for file in files]
    trains = any(split in (None, "train") for split in given)
    fixed: set[Split] = {split for split in given if split not in (None, "train")} if trains else set()
    own = np.array([SPLITS.index(name) if name in fixed and name is not None else 0 for name in given])[rows.files]
    split = np.zeros(rows.length, np.int8)
    taken = np.zeros(len(groups), bool)
    for name in HELD_OUT:  # a group with rows in a test file has no others in validation or training
        number = SPLITS.index(name)
        has = np.bincount(groups.of_row[own == number], minlength=len(groups)).astype(bool) & ~taken
        there = has[groups.of_row]
        split[there] = np.where(own[there] == number, number, LEFT_OUT)
        taken |= has
    shares: dict[Split, float] = {"validation": validation, "test": test}
    shares = {name: 0.0 if name in fixed else share for name, share in shares.items()}
    free = np.flatnonzero(~taken).tolist()
    drawn = _by_time(groups, free, shares) if rows.times is not None else _by_seed(rows, groups, free, shares)
    of_group = np.zeros(len(groups), np.int8)
    for name, numbers in drawn.items():
        of_group[numbers] = SPLITS.index(name)
    split = np.where(taken[groups.of_row], split, of_group[groups.of_row]).astype(np.int8)
    return Parts(split, _why(rows, fixed, shares))


def _why(rows: Rows, fixed: set[Split], shares: Mapping[Split, float]) -> str:
    drawn = [f"{share:.0%} {name}" for name, share in shares.items() if share]
    how = "the latest rows" if rows.times is not None else f"by seed {rows.seed}"
    how += ", labels in proportion" if rows.times is None and rows.guess.trains_labels else ""
    said = f"{' and '.join(drawn)}: {how}; equal inputs stay together" if drawn else ""
    return "; ".join(part for part in ("as the files are named" if fixed else "", said) if part)


def _groups(rows: Rows) -> _Groups:
    """The rows by input, in the random order of their keys."""
    order = np.lexsort((rows.keys[:, 1], rows.keys[:, 0]))  # stable
    keys = rows.keys[order]
    begins = np.ones(rows.length, bool)
    begins[1:] = (keys[1:] != keys[:-1]).any(axis=1)
    of_row = np.empty(rows.length, np.int64)
    of_row[order] = np.cumsum(begins) - 1
    first = np.flatnonzero(begins)
    labels = rows.labels[order][first].astype(np.int64)
    for row in np.flatnonzero(rows.labels != labels[of_row]).tolist():  # the labels of all rows of an input
        both = rows.label_sets[labels[of_row[row]]] | rows.label_sets[rows.labels[row]]
        labels[of_row[row]] = rows.number_of(both)
    times = np.zeros(len(first)) if rows.times is None else np.maximum.reduceat(rows.times[order], first)
    return _Groups(of_row, labels, times)


def key_of(row: Row, inputs: Sequence[str]) -> str:
    """What identifies the input of a row: upper and lower case and spaces do not matter."""
    values = [look_up(row, name) for name in inputs]
    return json.dumps([" ".join(str(value).casefold().split()) for value in values])


def labels_of(row: Row, guess: Guess) -> list[str]:
    """The labels of a row that training has to know; none for other tasks."""
    value = look_up(row, guess.target)
    if not guess.trains_labels or value is None:
        return []
    separator = guess.fields["separator"].value if "separator" in guess.fields else None
    if isinstance(value, str) and separator is not None:
        return [part.strip() for part in value.split(str(separator)) if part.strip()]
    return [str(each) for each in value] if isinstance(value, list | tuple) else [str(value)]


def _by_time(groups: _Groups, free: Sequence[int], shares: Mapping[Split, float]) -> dict[Split, list[int]]:
    """The latest groups are test, those before them validation."""
    ordered = sorted(free, key=lambda group: groups.times[group])
    counts = {name: max(1, round(share * len(ordered))) if share else 0 for name, share in shares.items()}
    first = len(ordered) - counts["test"]
    second = first - counts["validation"]
    return {"train": ordered[:second], "validation": ordered[second:first], "test": ordered[first:]}


def _by_seed(rows: Rows, groups: _Groups, free: Sequence[int], shares: Mapping[Split, float]) -> dict[Split, list[int]]:
    """Evenly spaced groups of an order by label; the first ones that have a label stay in training."""
    train, rest = list[int](), list[int]()
    known: set[str] = set()
    for group in free:
        labels = rows.label_sets[groups.labels[group]]
        if labels <= known:
            rest.append(group)
        else:
            known |= labels
            train.append(group)
    if not known or len(rest) < sum(shares.values()) * len(free):  # no labels, or so many that few rows are left
        train, rest = list(free[:1]), list(free[1:])
    places = {
        n: place
        for place, n in enumerate(sorted(range(len(rows.label_sets)), key=lambda n: sorted(rows.label_sets[n])))
    }
    rest.sort(key=lambda group: (places[int(groups.labels[group])], group))
    found: dict[Split, list[int]] = {"train": train, "validation": [], "test": []}
    debt = {name: share / 2 for name, share in shares.items()}
    scale = len(free) / max(1, len(rest))  # the groups that have to stay in training count, too
    for group in rest:
        debt = {name: debt[name] + share * scale for name, share in shares.items()}
        due = max(debt, key=lambda name: debt[name])
        if debt[due] >= 0.5 and len(found["test"]) + len(found["validation"]) < len(rest):
            debt[due] -= 1
            found[due].append(group)
        else:
            found["train"].append(group)
    movable = set(rest)
    for name in HELD_OUT:  # few rows
        if shares[name] and not found[name] and len(found["train"]) > 1:
            last = next((group for group in reversed(found["train"]) if group in movable), None)
            if last is not None:
                found["train"].remove(last)
                found[name].append(last)
    return found
