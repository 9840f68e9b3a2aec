"""From a public data folder to the project's own layout, in one pass that reads top to bottom."""

import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from instructrec_jax.recommendation.catalogue import SPLITS, Catalogue, Interactions, save_prepared
from instructrec_jax.recommendation.instructions import history_examples
from instructrec_jax.recommendation.readers import BadLines, read_movielens, read_recbole
from instructrec_jax.recommendation.splits import at_least, first_per_item, k_core, leave_one_out


@dataclass(kw_only=True)
class PrepareConfig:
    """How raw interactions become a catalogue, leave-one-out splits and instruction examples."""

    source: str
    """folder with the raw data"""
    out: str
    """folder to write; must not exist yet"""
    overwrite: bool = False
    """replace `out` if it holds prepared data"""
    k_core: int = 5
    """keep users and items with at least this many interactions (0: all)"""
    min_rating: float | None = None
    """drop ratings below this; by default every rating is an interaction"""
    titles_in_prompt: int = 10
    """how many of the last titles an instruction names"""
    history_limit: int = 50
    """how many past items a training example keeps; validation and test keep all, to mask seen items"""
    examples_per_user: int | None = 50
    """training examples per user, drawn at random from all positions (null: every position)"""
    wording: str = "item"
    """which instruction templates: film or item"""
    on_bad_line: str = "error"
    """error: stop at the first line that cannot be used; skip: leave such lines out, count and list them"""
    seed: int = 0
    """draws templates and training positions"""


@dataclass(kw_only=True)
class MovieLensConfig(PrepareConfig):
    """Read a MovieLens folder: ml-latest-small, ml-25m (csv), ml-1m, ml-10m (dat) or ml-100k."""

    wording: str = "film"
    """which instruction templates: film or item"""

    def read(self, bad: BadLines) -> tuple[Catalogue, Interactions]:
        return read_movielens(self.source, bad)


@dataclass(kw_only=True)
class RecBoleConfig(PrepareConfig):
    """Read a folder of RecBole atomic files: NAME.inter and NAME.item."""

    title_column: str | None = None
    """column of the item file that names an item; by default title, name, *_title or *_name"""
    text_columns: list[str] | None = None
    """columns that join the title in an item's text; by default genres, categories and brand"""

    def read(self, bad: BadLines) -> tuple[Catalogue, Interactions]:
        return read_recbole(self.source, bad, title_column=self.title_column, text_columns=self.text_columns)


def prepare(config: MovieLensConfig | RecBoleConfig) -> dict[str, Any]:
    """Read, filter, split, write instructions; returns the card of the folder written.

    The folder appears whole or not at all. Bad settings, unusable data and an existing `out` are ValueErrors.
    """
    out = Path(config.out).absolute()
    _check_target(out, config.overwrite)
    if config.on_bad_line not in ("error", "skip"):
        raise ValueError(f"on_bad_line must be error or skip, got {config.on_bad_line!r}.")

    # --- read ---
    bad = BadLines(skip=config.on_bad_line == "skip")
    catalogue, raw = config.read(bad)

    # --- filter ---
    rated = at_least(raw, config.min_rating)
    first = first_per_item(rated)
    catalogue, interactions = k_core(catalogue, first, config.k_core)

    # --- split ---
    splits = leave_one_out(interactions)
    if not any(map(len, splits.test)):
        raise ValueError(f"no user in {config.source} has the three interactions that leave-one-out needs.")

    # --- write ---
    notes = {
        "interactions_read": len(raw),
        "bad_lines": len(bad.skipped),
        "below_min_rating": len(raw) - len(rated),
        "repeats": len(rated) - len(first),
        "outside_k_core": len(first) - len(interactions),
        "users_only_in_train": sum(not len(items) for items in splits.test),
        "has_timestamps": int(raw.timestamp is not None),
    }
    settings = {k: v for k, v in asdict(config).items() if k not in ("source", "out", "overwrite")}
    examples = {
        split: history_examples(
            catalogue,
            splits,
            split,
            wording=config.wording,
            titles_in_prompt=config.titles_in_prompt,
            history_limit=config.history_limit,
            examples_per_user=config.examples_per_user,
            seed=config.seed,
        )
        for split in SPLITS
    }

    def write(folder: Path) -> dict[str, Any]:
        if bad.skipped:
            (folder / "bad_lines.txt").write_text("\n".join(bad.skipped) + "\n", encoding="utf-8")
        source = Path(config.source).absolute().name
        return save_prepared(
            folder, catalogue, interactions, splits, examples, source=source, settings=settings, notes=notes
        )

    return whole_or_nothing(out, write)


def _check_target(out: Path, overwrite: bool) -> None:
    if not out.exists():
        return
    if not overwrite:
        raise ValueError(f"{out} exists already. Choose another --out, or replace it with `--overwrite true`.")
    if not (out / "card.json").is_file():
        raise ValueError(f"{out} is not a folder of prepared data (no card.json): it will not be overwritten.")


def whole_or_nothing(out: Path, write: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """Let `write` fill a folder beside `out`, then move it into place."""
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
