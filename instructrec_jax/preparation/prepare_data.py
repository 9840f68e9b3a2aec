"""Converts raw recommendation data to the layout of prepared data: read, filter, split, write."""

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np

from instructrec_jax.data.example import Example
from instructrec_jax.data.listed import check_type
from instructrec_jax.files import write_text
from instructrec_jax.preparation import train_settings
from instructrec_jax.preparation.interaction_rows import KIND, why_not_on_demand
from instructrec_jax.preparation.readers import BadLines
from instructrec_jax.preparation.splits import (
    at_least,
    check_split,
    cut_times,
    first_per_item,
    k_core,
    most_recent,
    split,
    unseen,
)
from instructrec_jax.preparation.wording.grammar import (
    GrammarConfig,
    check_grammar,
    example_counts,
    generate_examples,
)
from instructrec_jax.preparation.wording.teacher import Teacher, rewrite_with_teacher
from instructrec_jax.ranking.candidates import check_drawn, write_candidates
from instructrec_jax.ranking.catalogue import SPLITS, Catalogue, Interactions, Splits, save_prepared

T = TypeVar("T")
MOST_EXAMPLES, MOST_INTERACTIONS = 1_000_000, 5_000_000  # written to files, with `instructions: auto`


@dataclass(kw_only=True)
class PrepareConfig(GrammarConfig):
    """Settings for converting raw interactions to a catalogue, splits and examples. `formats.py` has one per format."""

    source: str
    """folder with the raw data"""
    out: str
    """folder to write; must not exist"""
    overwrite: bool = False
    """replace `out` if it holds prepared data"""
    k_core: int = 5
    """keep users and items with at least N interactions (0: all)"""
    min_rating: float | None = None
    """drop ratings below this value; by default every rating is an interaction"""
    sequence_limit: int | None = None
    """keep only the last N interactions of each user (null: all); applied after the k-core"""
    split: str = "leave_one_out"
    """leave_one_out: each user's last item is test, the one before it validation; ratio: the last shares of each user's
    items are test and validation; global_time: all users are split at the same two points in time"""
    validation: float = 0.1
    """for ratio and global_time: share of the interactions for validation"""
    test: float = 0.1
    """for ratio and global_time: share of the interactions for test"""
    candidates: list[str] = field(default_factory=list)
    """evaluation protocols whose candidates are drawn and saved in candidates/: uni9, uni99, pop99, hard9"""
    teacher: str | None = None
    """run directory or HuggingFace folder of a language model that rephrases the requests of training examples;
    validation and test keep the generated requests"""
    instructions: str = "auto"
    """files: write instructions/*.jsonl, a line per example; interactions: write none, training makes the examples from
    interactions.parquet (`kind: interactions`); auto: files up to a million examples and five million interactions"""
    on_bad_line: str = "error"
    """error: stop at the first bad line; skip: leave bad lines out, count and list them"""

    def read(self, bad: BadLines) -> tuple[Catalogue, Interactions]:
        """The raw data of `source`; bad lines go to `bad`."""
        raise TypeError(f"{type(self).__name__} has no read(): choose one of the formats in formats.py.")


@dataclass(frozen=True)
class _Filtered:
    """The interactions that stay, and how many there were after each step of the filter."""

    left: Interactions
    counts: dict[str, int]


def prepare(config: PrepareConfig, teacher: Teacher | None = None) -> dict[str, object]:
    """Reads, filters, splits and writes data with instructions; returns the card of the folder.

    The folder is written completely or not at all.

    Args:
      teacher: the opened language model of `config.teacher`.

    Raises:
      ValueError: invalid settings, invalid data, or an existing `out`.
    """
    check_type(config, "config", (PrepareConfig,), "settings of a format, such as TableConfig(source=..., out=...)")
    out = Path(config.out).absolute()
    check_target(out, config.overwrite)
    _check_settings(config)

    # --- read ---
    bad = BadLines(skip=config.on_bad_line == "skip")
    catalogue, raw = config.read(bad)

    # --- filter ---
    catalogue, filtered = _filter(config, catalogue, raw)
    del raw

    # --- split ---
    splits = split(filtered.left, config.split, config.validation, config.test)
    if not any(map(len, splits.test)):
        raise ValueError(
            f"split {config.split} needs three interactions of a user, but no user in {config.source} has."
        )

    # --- write ---
    notes = _counts(config, filtered, splits, bad)
    counted = _counted(config, filtered.left, splits)
    made: dict[str, Iterable[Example] | int]
    if counted is None:
        made = {name: _made(config, catalogue, splits, name, teacher, notes) for name in SPLITS}
    else:
        made = {**counted}
        notes["instructions"] = KIND

    def write(folder: Path) -> dict[str, object]:
        if bad.skipped:
            text = "\n".join(bad.skipped) + "\n"
            (folder / "bad_lines.txt").write_text(text, encoding="utf-8", errors="backslashreplace")
        card = save_prepared(
            folder,
            catalogue,
            filtered.left,
            splits,
            made,
            source=Path(config.source).absolute().name,
            settings=_settings(config),
            notes=notes,
        )
        write_candidates(folder, catalogue, splits, config.candidates, config.seed)
        write_text(folder / train_settings.FILE, train_settings.train_settings(card, config.out, out.name))
        return card

    return whole_or_nothing(out, write)


def _filter(config: PrepareConfig, catalogue: Catalogue, raw: Interactions) -> tuple[Catalogue, _Filtered]:
    """The items and interactions that stay. Only one step's interactions are in memory beside the raw ones."""
    rated = at_least(raw, config.min_rating)
    counts = {"interactions_read": len(raw), "below_min_rating": len(raw) - len(rated)}
    left = first_per_item(rated)
    counts["repeats"] = len(rated) - len(left)
    del rated
    before = len(left)
    catalogue, left = k_core(catalogue, left, config.k_core)
    counts["outside_k_core"] = before - len(left)
    before = len(left)
    left = most_recent(left, config.sequence_limit)
    counts["beyond_sequence_limit"] = before - len(left)
    return catalogue, _Filtered(left, counts)


def _check_settings(config: PrepareConfig) -> None:
    """Raises ValueError for an invalid setting, before any data are read."""
    if config.on_bad_line not in ("error", "skip"):
        raise ValueError(f"on_bad_line must be error or skip, got {config.on_bad_line!r}.")
    check_split(config.split, config.validation, config.test)
    check_grammar(config)
    if config.instructions not in ("auto", "files", "interactions"):
        raise ValueError(f"instructions must be auto, files or interactions, got {config.instructions!r}.")
    if config.instructions == "interactions" and (why := why_not_on_demand(config, config.teacher is not None)):
        raise ValueError(f"instructions cannot be made from the interactions: {why}. Set `--instructions files`.")
    check_drawn(config.candidates)


def _counted(config: PrepareConfig, left: Interactions, splits: Splits) -> dict[str, int] | None:
    """The number of examples of each split, if they are made when they are read; None: they are written."""
    if config.instructions == "files" or why_not_on_demand(config, config.teacher is not None):
        return None
    parts = (splits.train, splits.validation, splits.test)
    train, validation, test = (np.array([len(items) for items in part]) for part in parts)
    counts = {name: int(example_counts(train, validation, test, name, config).sum()) for name in SPLITS}
    few = sum(counts.values()) <= MOST_EXAMPLES and len(left) <= MOST_INTERACTIONS
    return None if few and config.instructions == "auto" else counts


def _made(
    config: PrepareConfig,
    catalogue: Catalogue,
    splits: Splits,
    name: str,
    teacher: Teacher | None,
    notes: dict[str, int | float | str],
) -> Iterable[Example]:
    """The examples of a split; those of train in the teacher's words, if there is one, with a note of how many."""
    made = examples_of(config, catalogue, splits, name)
    if teacher is None or name != "train":
        return made
    reworded, counts = rewrite_with_teacher(list(made), teacher, catalogue, Path(str(config.teacher)).name)
    notes["reworded_by_teacher"] = counts["rewritten"]
    return reworded


def examples_of(config: PrepareConfig, catalogue: Catalogue, splits: Splits, name: str) -> Iterator[Example]:
    """The instruction examples of one split."""
    return generate_examples(catalogue, splits, name, config)


def _counts(config: PrepareConfig, filtered: _Filtered, splits: Splits, bad: BadLines) -> dict[str, int | float | str]:
    """Counts for the card: interactions dropped by each filter, sizes of the splits, new users and items."""
    counts: dict[str, int | float | str] = {
        "interactions_read": filtered.counts["interactions_read"],
        "bad_lines": len(bad.skipped),
        **filtered.counts,
        **{f"{name}_interactions": sum(map(len, getattr(splits, name))) for name in SPLITS},
        "users_only_in_train": sum(not len(v) + len(t) for v, t in zip(splits.validation, splits.test, strict=True)),
        **unseen(splits),
        "has_timestamps": int(filtered.left.timestamp is not None),
    }
    if config.split == "global_time":
        cuts = cut_times(filtered.left, config.validation, config.test)
        counts |= dict(zip(("validation_from", "test_from"), cuts, strict=True))
    return counts


def _settings(config: PrepareConfig) -> dict[str, object]:
    """The settings that shape the data, without paths of this machine."""
    settings = {k: v for k, v in asdict(config).items() if k not in ("source", "out", "overwrite", "instructions")}
    for name in ("items", "templates", "teacher"):
        if settings.get(name):
            settings[name] = Path(settings[name]).name
    return settings


def check_target(out: Path, overwrite: bool) -> None:
    """Raises ValueError if `out` exists, unless it holds prepared data and `overwrite` is set."""
    if not out.exists():
        return
    if not overwrite:
        raise ValueError(f"{out} already exists. Choose another --out, or replace it with `--overwrite true`.")
    if not (out / "card.json").is_file():
        raise ValueError(f"{out} is not a folder of prepared data (no card.json), so it is not overwritten.")


def whole_or_nothing(out: Path, write: Callable[[Path], T]) -> T:
    """Lets `write` fill a temporary folder beside `out`, then moves it into place; returns the result of `write`."""
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    old = out.with_name(f".{out.name}.old-{os.getpid()}")
    partial.mkdir()
    try:
        card = write(partial)
        if out.exists():
            out.rename(old)
        partial.rename(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        if old.exists() and not out.exists():
            old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)
    return card
