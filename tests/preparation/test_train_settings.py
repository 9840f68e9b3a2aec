"""train.yaml of a prepared folder: settings that training reads, in proportion to the data."""

from pathlib import Path
from typing import Any

import pytest

from instructrec_jax.preparation.train_settings import FILE, train_settings
from instructrec_jax.runs.config import Config, load


def settings(folder: Path, train: int, validation: int = 1, test: int = 1, out: str = "data/shop") -> Config:
    card = {"items": 100, "examples": {"train": train, "validation": validation, "test": test}}
    (folder / FILE).write_text(train_settings(card, out, Path(out).name), encoding="utf-8")
    return load(folder / FILE)


@pytest.mark.parametrize(
    ("train", "batch", "steps"),
    [(1, 8, 20), (40, 10, 20), (400, 64, 20), (6400, 64, 200), (10**6, 64, 5000)],
)
def test_two_epochs_within_bounds(train: int, batch: int, steps: int, tmp_path: Path) -> None:
    config = settings(tmp_path, train)
    assert (config.data.batch_size, config.steps) == (batch, steps)
    every = config.evaluation.every
    assert every == config.checkpoint.every and steps // every == 5  # five evaluations


def test_splits_without_examples_are_left_out(tmp_path: Path) -> None:
    data = settings(tmp_path, 100, validation=0, test=5).data
    assert [source.path for source in data.train] == ["data/shop/instructions/train.jsonl"]
    assert data.validation == [] and [source.path for source in data.test] == ["data/shop/instructions/test.jsonl"]


def test_examples_that_are_made_from_the_interactions_are_a_source_of_that_kind(tmp_path: Path) -> None:
    card = {"items": 100, "examples": {"train": 9, "validation": 0, "test": 3}, "instructions": "interactions"}
    (tmp_path / FILE).write_text(train_settings(card, "data/shop", "shop"), encoding="utf-8")
    data = load(tmp_path / FILE).data
    named = [[(source.path, source.kind, source.split) for source in part] for part in (data.train, data.test)]
    assert named == [[("data/shop", "interactions", "train")], [("data/shop", "interactions", "test")]]


@pytest.mark.parametrize("name", ["my shop", "a: b", "#1", "null", "007", "电影 🎬", "it's", "{x}", "- y", "true"])
def test_any_name_of_a_folder_is_read_back(name: str, tmp_path: Path) -> None:
    config: Any = settings(tmp_path, 100, out=name)
    assert config.task.catalogue == name and config.run_dir == f"runs/{name}"
    assert config.data.train[0].path == f"{name}/instructions/train.jsonl"


def test_a_damaged_card_is_named() -> None:
    with pytest.raises(ValueError, match="card.json, examples"):
        train_settings({"items": 1, "examples": {"train": "many"}}, "out", "run")
