"""Training, validation and test rows, by seed: equal inputs together, labels in proportion, or by time."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from instructrec_jax.data.fields import look_up
from instructrec_jax.preparation.inspection.columns import Row
from instructrec_jax.preparation.inspection.guessing import Guess

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
HELD_OUT: tuple[Split, ...] = ("test", "validation")
_NAMED = re.compile(r"(?:^|[^a-z])(train|training|valid|validation|val|dev|eval|test)(?:[^a-z]|$)")
_MEANING: dict[str, Split] = {"train": "train", "training": "train", "test": "test"}


@dataclass(frozen=True)
class Parts:
    """Attributes:
    rows: numbers of the rows of each split, in the order of the file.
    why: how they were chosen.
    left_out: number of training rows whose input also lies in a validation or test file.
    """

    rows: Mapping[Split, list[int]]
    why: str
    left_out: int = 0


@dataclass(frozen=True)
class _Group:
    """Rows with one input. rank: its place in the random order. time: of its latest row."""

    rows: list[int]
    labels: frozenset[str]
    rank: str
    time: float


def split_of(file: str) -> Split | None:
    """The split that a file's name says it is, or None."""
    found = _NAMED.search(Path(file).name.lower())
    return None if found is None else _MEANING.get(found[1], "validation")


def divide(
    rows: Sequence[Row],
    guess: Guess,
    *,
    files: Sequence[str],
    times: Sequence[float] | None,
    seed: int,
    validation: float,
    test: float,
) -> Parts:
    """Splits rows. Files whose names say train, validation or test keep their rows.

    Args:
      files: the file of each row.
      times: of each row; None: by seed.

    Raises ValueError for fewer than three different inputs.
    """
    groups = _groups(rows, guess, times, seed)
    if len(groups) < 3:
        raise ValueError(f"{len(groups)} different inputs are too few to train, validate and test on: add rows.")
    given = {file: split_of(file) for file in dict.fromkeys(files)}
    trains = any(split in (None, "train") for split in given.values())
    fixed: set[Split] = {split for split in given.values() if split not in (None, "train")} if trains else set()
    parts: dict[Split, list[int]] = {name: [] for name in SPLITS}
    open_groups, left_out = [], 0
    for group in groups:
        own: dict[Split, list[int]] = {}
        for row in group.rows:
            named = given[files[row]]
            own.setdefault(named if named in fixed and named is not None else "train", []).append(row)
        held = next((name for name in HELD_OUT if name in own), None)
        if held is None:
            open_groups.append(group)
            continue
        parts[held] += own[held]
        left_out += len(group.rows) - len(own[held])
    shares: dict[Split, float] = {"validation": validation, "test": test}
    shares = {name: 0.0 if name in fixed else share for name, share in shares.items()}
    drawn = _by_time(open_groups, shares) if times is not None else _by_seed(open_groups, shares)
    for name, each in drawn.items():
        parts[name] += [row for group in each for row in group.rows]
    return Parts({name: sorted(parts[name]) for name in SPLITS}, _why(guess, times, seed, fixed, shares), left_out)


def _why(
    guess: Guess, times: Sequence[float] | None, seed: int, fixed: set[Split], shares: Mapping[Split, float]
) -> str:
    drawn = [f"{share:.0%} {name}" for name, share in shares.items() if share]
    how = "the latest rows" if times is not None else f"by seed {seed}"
    how += ", labels in proportion" if times is None and guess.trains_labels else ""
    said = f"{' and '.join(drawn)}: {how}; equal inputs stay together" if drawn else ""
    return "; ".join(part for part in ("as the files are named" if fixed else "", said) if part)


def _groups(rows: Sequence[Row], guess: Guess, times: Sequence[float] | None, seed: int) -> list[_Group]:
    """The rows by input, in a random order that depends on seed and input alone."""
    by_key: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        by_key.setdefault(key_of(row, guess.inputs), []).append(number)
    groups = []
    for key, own in by_key.items():
        labels = frozenset(label for row in own for label in labels_of(rows[row], guess))
        rank = hashlib.sha256(f"{seed}\n{key}".encode("utf-8", "surrogatepass")).hexdigest()
        groups.append(_Group(own, labels, rank, max((times[row] for row in own), default=0.0) if times else 0.0))
    return sorted(groups, key=lambda group: group.rank)


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


def _by_time(groups: Sequence[_Group], shares: Mapping[Split, float]) -> dict[Split, list[_Group]]:
    """The latest groups are test, those before them validation."""
    ordered = sorted(groups, key=lambda group: group.time)
    counts = {name: max(1, round(share * len(ordered))) if share else 0 for name, share in shares.items()}
    first = len(ordered) - counts["test"]
    second = first - counts["validation"]
    return {"train": ordered[:second], "validation": ordered[second:first], "test": ordered[first:]}


def _by_seed(groups: Sequence[_Group], shares: Mapping[Split, float]) -> dict[Split, list[_Group]]:
    """Evenly spaced groups of an order by label; the first ones that have a label stay in training."""
    train, rest = list[_Group](), list[_Group]()
    known: set[str] = set()
    for group in groups:
        if group.labels <= known:
            rest.append(group)
        else:
            known |= group.labels
            train.append(group)
    if not known or len(rest) < sum(shares.values()) * len(groups):  # no labels, or so many that few rows are left
        train, rest = list(groups[:1]), list(groups[1:])
    rest.sort(key=lambda group: (sorted(group.labels), group.rank))
    found: dict[Split, list[_Group]] = {"train": train, "validation": [], "test": []}
    debt = {name: share / 2 for name, share in shares.items()}
    scale = len(groups) / max(1, len(rest))  # the groups that have to stay in training count, too
    for group in rest:
        debt = {name: debt[name] + share * scale for name, share in shares.items()}
        due = max(debt, key=lambda name: debt[name])
        if debt[due] >= 0.5 and len(found["test"]) + len(found["validation"]) < len(rest):
            debt[due] -= 1
            found[due].append(group)
        else:
            found["train"].append(group)
    for name in HELD_OUT:  # few rows
        if shares[name] and not found[name] and len(found["train"]) > 1:
            movable = [group for group in found["train"] if group in rest]
            if movable:
                found["train"].remove(movable[-1])
                found[name].append(movable[-1])
    return found
