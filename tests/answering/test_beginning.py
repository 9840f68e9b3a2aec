"""`init_from`: a run that starts from another run's parameters."""

from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import SUBJECTS
from tiny_runs import changed, tiny_run, untrained_run

from instructrec_jax.answering.beginning import begun_from
from instructrec_jax.data.example import Example
from instructrec_jax.distributed.mesh import make_mesh
from instructrec_jax.runs.config import Config, load
from instructrec_jax.runs.initial import initial_folder
from instructrec_jax.runs.model import backbone_folder, open_task
from instructrec_jax.runs.run import Run
from instructrec_jax.runs.setup import TrainingSetup
from instructrec_jax.runs.stored import PARAMETERS
from instructrec_jax.tasks import ClassificationConfig
from instructrec_jax.train import train
from instructrec_jax.training.state import merge_params


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


@pytest.mark.parametrize("first", ["lora"], indirect=True)
def test_frozen_parameters_are_those_of_the_first_run_after_a_resume_too(first: Config) -> None:
    config = after(first, "third", lora__rank=2, steps=2)  # LoRA freezes the backbone
    train(config)
    train(replace(config, steps=4))
    old, new = (Run.open(c.run_dir).model.params["backbone"] for c in (first, config))
    old_table, new_table = (jax.device_get(each["word_embeddings"]["table"]) for each in (old, new))
    np.testing.assert_allclose(old_table, new_table, atol=1e-6)


@pytest.mark.parametrize("first", ["lora"], indirect=True)
def test_other_labels_give_a_new_head(first: Config) -> None:
    config = after(first, "fourth", steps=1)
    config.task = ClassificationConfig(labels=[*SUBJECTS, "another"])
    run = Run.open(train(config))
    assert run.model.params["head"]["output"]["kernel"].shape[-1] == len(SUBJECTS) + 1


@pytest.fixture(scope="module")
def adapted(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A run with LoRA whose matrices and head are no longer those of the beginning."""
    folder = tmp_path_factory.mktemp("adapted")
    config = tiny_run("classification", checkpoint, folder, steps=2, optimizer__learning_rate=3e-2, lora__rank=2)
    config = changed(config, data__validation=[], data__test=[])
    train(config)
    return config


def kept(config: Config, name: str, **changes: object) -> Config:
    return after(config, name, init_lora="keep", **changes)


def setup_of(config: Config) -> TrainingSetup:
    config = begun_from(config)
    folder = backbone_folder(config.backbone.path)
    return TrainingSetup.load(config, open_task(config, folder), folder, make_mesh(config.mesh))


TEXTS = [f"a film about {subject}" for subject in SUBJECTS]


def test_kept_lora_begins_with_the_outputs_of_the_first_run(adapted: Config) -> None:
    setup, first = setup_of(kept(adapted, "sixth")), Run.open(adapted.run_dir)
    new = [e.text for e in setup.task.encode([Example(instruction=text, output=SUBJECTS[0]) for text in TEXTS])]
    now = np.stack(setup.predict_with(merge_params(setup.state.params, setup.state.frozen))(new))
    np.testing.assert_allclose(now, np.stack(first.predictor(new)), atol=1e-5)
    untuned = setup_of(replace(adapted, run_dir=str(Path(adapted.run_dir).with_name("seventh"))))
    assert np.abs(np.stack(untuned.predict_with(untuned.model.params)(new)) - now).max() > 1e-3
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(setup.state.optimizer) if leaf.ndim)
    notes = "; ".join(setup.model.source.notes)
    assert f"{adapted.run_dir} at step 2" in notes and "LoRA matrices and head/" in notes and "not taken" not in notes
    assert "newly initialized" in str(setup.model.source.report) and "kernel" not in str(setup.model.source.report)


def test_kept_lora_is_trained_further_without_the_first_run(adapted: Config, tmp_path: Path) -> None:
    config = kept(adapted, "eighth", steps=1, optimizer__learning_rate=1e-30, optimizer__weight_decay=0.0)
    train(config)
    away = Path(adapted.run_dir).rename(tmp_path / "away")
    try:
        train(replace(config, steps=2))
        old, new = (Run.open(path).predict(TEXTS) for path in (away, config.run_dir))
    finally:
        away.rename(adapted.run_dir)
    for then, now in zip(old, new, strict=True):
        assert now.to_record()["probabilities"] == pytest.approx(then.to_record()["probabilities"], abs=1e-5)
    assert load(Path(config.run_dir) / "config.yaml").backbone.path == str(Path(adapted.backbone.path).absolute())


def test_a_head_for_other_labels_is_not_kept(adapted: Config) -> None:
    """Also where it has the same shape."""
    config = kept(adapted, "ninth")
    config.task = ClassificationConfig(labels=SUBJECTS[::-1])
    notes = "; ".join(setup_of(config).model.source.notes)
    assert "not taken" in notes and "head/output/kernel (another task or other labels)" in notes


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"lora__rank": 4, "lora__alpha": 8.0}, "lora.rank is 4, but 2 in .*; lora.alpha is 8.0"),
        ({"lora__targets": ["query"]}, "lora.targets"),
        ({"backbone__quantize": "int8"}, "backbone.quantize"),
        ({"init_from": None}, "init_lora.*init_from"),
        ({"backbone__freeze": ["layers/.*/lora"]}, "init_lora.*backbone.freeze"),
    ],
)
def test_kept_lora_needs_the_same_settings(changes: dict[str, object], named: str, adapted: Config) -> None:
    config = kept(adapted, "tenth-" + "-".join(changes), **changes)
    with pytest.raises(ValueError, match=named):
        setup_of(config)


def test_what_cannot_be_kept_is_named(adapted: Config, checkpoint: Path, tmp_path: Path) -> None:
    plain = untrained_run(tmp_path / "plain", ClassificationConfig(labels=SUBJECTS), checkpoint, 32)
    with pytest.raises(ValueError, match="init_lora.*without LoRA"):
        begun_from(replace(kept(adapted, "eleventh"), init_from=str(plain)))
    assert not Path(adapted.run_dir).with_name("eleventh.initial").exists()
    begun_from(kept(adapted, "twelfth"))
    with pytest.raises(ValueError, match=r"twelfth\.initial.*init_lora"):
        begun_from(after(adapted, "twelfth"))
    (initial_folder(kept(adapted, "twelfth")) / PARAMETERS).write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"parameters\.safetensors"):
        setup_of(kept(adapted, "twelfth"))


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
