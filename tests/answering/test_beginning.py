"""`init_from`: a run that starts from another run's parameters."""

from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import SUBJECTS
from tiny_runs import changed, tiny_run

from instructrec_jax.answering.beginning import begun_from
from instructrec_jax.runs.config import Config
from instructrec_jax.runs.run import Run
from instructrec_jax.tasks import ClassificationConfig
from instructrec_jax.train import train


@pytest.fixture(scope="module", params=["full", "lora"])
def first(request: pytest.FixtureRequest, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A trained run; with LoRA, its matrices are merged."""
    changes = {"lora__rank": 2} if request.param == "lora" else {}
    folder = tmp_path_factory.mktemp(f"first-{request.param}")
    config = tiny_run("classification", checkpoint, folder, steps=3, optimizer__learning_rate=3e-2, **changes)
    train(config)
    return config


def after(config: Config, name: str, **changes: object) -> Config:
    run_dir = str(Path(config.run_dir).with_name(name))
    return changed(replace(config, run_dir=run_dir, init_from=config.run_dir), backbone__path="", **changes)


def test_the_new_run_begins_with_the_outputs_of_the_first(first: Config) -> None:
    config = after(first, "second", lora__rank=0, optimizer__learning_rate=1e-30, optimizer__weight_decay=0.0, steps=1)
    train(config)
    before, now = Run.open(first.run_dir), Run.open(config.run_dir)
    texts = [f"a film about {subject}" for subject in SUBJECTS]
    for old, new in zip(before.predict(texts), now.predict(texts), strict=True):
        assert new.to_record()["probabilities"] == pytest.approx(old.to_record()["probabilities"], abs=1e-5)
    assert (Path(config.run_dir).with_name("second.initial") / "model.safetensors").is_file()


def test_frozen_parameters_are_those_of_the_first_run_after_a_resume_too(first: Config) -> None:
    config = after(first, "third", lora__rank=2, steps=2)  # LoRA freezes the backbone
    train(config)
    train(replace(config, steps=4))
    old, new = (Run.open(c.run_dir).model.params["backbone"] for c in (first, config))
    old_table, new_table = (jax.device_get(each["word_embeddings"]["table"]) for each in (old, new))
    np.testing.assert_allclose(old_table, new_table, atol=1e-6)


def test_other_labels_give_a_new_head(first: Config) -> None:
    config = after(first, "fourth", steps=1)
    config.task = ClassificationConfig(labels=[*SUBJECTS, "another"])
    run = Run.open(train(config))
    assert run.model.params["head"]["output"]["kernel"].shape[-1] == len(SUBJECTS) + 1


def test_what_cannot_be_is_named(first: Config, checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="init_from"):
        begun_from(replace(first, init_from=first.run_dir))
    with pytest.raises(ValueError, match="not a run directory"):
        begun_from(replace(first, run_dir=str(tmp_path / "new"), init_from=str(checkpoint)))
    other = after(first, "fifth")
    begun_from(other)
    with pytest.raises(ValueError, match=r"fifth\.initial"):
        begun_from(replace(other, init_from=str(tmp_path)))
    (Path(other.run_dir).with_name("fifth.initial") / "init_from.json").unlink()  # as if interrupted
    with pytest.raises(ValueError, match=r"fifth\.initial.*remove"):
        begun_from(other)
    with pytest.raises(ValueError, match="init_from"):  # the refusal of changed settings names both ways
        train(changed(first, optimizer__learning_rate=0.5))
