"""Classification from a fitted head: where it starts, what it learns, and that a resumed run does not start anew."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from helpers import SUBJECTS, Setup, assert_close
from tiny_runs import changed, final_parameters, tiny_run, train_until

from instructrec_jax.augmentation.augmenter import AugmentConfig
from instructrec_jax.data.loader import pack
from instructrec_jax.files import read_json, read_jsonl
from instructrec_jax.runs.config import Config
from instructrec_jax.runs.run import Run
from instructrec_jax.tasks import VectorClassificationConfig
from instructrec_jax.tasks.base import LossInputs
from instructrec_jax.tasks.logistic import logistic_head
from instructrec_jax.train import train


def probed(checkpoint: Path, folder: Path, **changes: Any) -> Config:
    task = VectorClassificationConfig(SUBJECTS)
    return tiny_run("classification", checkpoint, folder, task=task, data__validation=[], **changes)


@pytest.fixture(scope="module")
def tuned(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    config = probed(checkpoint, tmp_path_factory.mktemp("tuned"))
    train(config)
    return config


def test_loss_equals_numpy(checkpoint: Path, tmp_path: Path) -> None:
    """The cross-entropy of a linear layer on unit vectors, each that of its own text in a packed batch."""
    setup = Setup("vector_classification", checkpoint, tmp_path)
    task, params = setup.task, setup.model.params
    encoded = setup.encoded[:9]
    run = Run.open(checkpoint, replace(setup.config, run_dir="unused"))
    vectors = run.encode([e.example.instruction for e in encoded]).astype(np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    kernel = np.asarray(params["head"]["output"]["kernel"], np.float64)
    scores = vectors @ kernel + np.asarray(params["head"]["output"]["bias"], np.float64)
    logs = scores - np.log(np.exp(scores).sum(1, keepdims=True))
    expected = -logs[np.arange(9), task.truth(encoded)].sum()
    loss = jax.jit(lambda params, batch: task.loss(nnx.merge(setup.model.graphdef, params), batch, LossInputs()))
    batch = pack(task.gather(encoded, np.random.default_rng(0)), setup.buckets, 1).batch
    total, weight = loss(params, batch)
    assert float(weight) == 9
    np.testing.assert_allclose(float(total), expected, rtol=1e-5)


def test_the_first_step_starts_from_the_logistic_regression(checkpoint: Path, tmp_path: Path) -> None:
    """Too small a learning rate to change anything leaves it: as fitted on the frozen vectors of data.train."""
    config = probed(checkpoint, tmp_path, optimizer__learning_rate=1e-12, steps=1)
    train(config)
    run = Run.open(config.run_dir)
    given = run.task.encode(list(run.data.examples("train")))
    vectors = run.encode([e.example.instruction for e in given]).astype(np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    kernel, bias = logistic_head(vectors, run.task.truth(given), len(SUBJECTS))
    assert_close(run.model.params["head"], {"output": {"kernel": kernel, "bias": bias}}, atol=2e-3)
    written: Any = read_json(Path(config.run_dir) / "evaluation.json")
    rows = {row["name"]: row["values"] for row in written["rows"]}
    assert rows["after tuning"] == pytest.approx(rows["before tuning"])


def test_the_step_learns_the_head_and_the_backbone(tuned: Config, checkpoint: Path) -> None:
    run = Run.open(tuned.run_dir)
    given = run.task.encode(list(run.data.examples("train")))
    vectors = run.encode([e.example.instruction for e in given])
    kernel, _ = logistic_head(
        vectors / np.linalg.norm(vectors, axis=1, keepdims=True), run.task.truth(given), len(SUBJECTS)
    )
    assert np.abs(np.asarray(run.model.params["head"]["output"]["kernel"]) - kernel).max() > 1e-2  # it is not refitted
    frozen = Run.open(checkpoint, changed(tuned, run_dir="unused")).encode([given[0].example.instruction])
    assert np.abs(vectors[0] - frozen[0]).max() > 1e-3


def test_a_resumed_run_keeps_its_head(tuned: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = changed(tuned, run_dir=str(tmp_path / "run"))
    train_until(config, 3, monkeypatch)
    train(config)
    assert_close(final_parameters(config.run_dir, 6), final_parameters(tuned.run_dir, 6), atol=0)


def test_frozen_and_adapted_backbones(checkpoint: Path, tmp_path: Path) -> None:
    """A frozen backbone is a linear probe that goes on learning; with LoRA the head is trained beside the matrices."""
    for name, changes in {"probe": {"backbone__freeze": ["^backbone/"]}, "lora": {"lora__rank": 2}}.items():
        (tmp_path / name).mkdir()
        config = probed(checkpoint, tmp_path / name, **changes)
        train(config)
        written = read_jsonl(Path(config.run_dir) / "predictions.jsonl")
        answers = Run.open(config.run_dir).predict([row["input"] for row in written])
        for answer, row in zip(answers, written, strict=True):
            assert answer.probabilities == pytest.approx(row["probabilities"], abs=1e-5)


def test_what_cannot_be_fitted_is_named(checkpoint: Path, tmp_path: Path) -> None:
    config = probed(checkpoint, tmp_path)
    with pytest.raises(ValueError, match="no example of unheard: task.type vector_classification"):
        train(changed(config, task=VectorClassificationConfig([*SUBJECTS, "unheard"])))
    with pytest.raises(ValueError, match="vector_classification fits its head on all training examples .* streaming"):
        train(changed(config, data__train=[replace(config.data.train[0], streaming=True)]))
    with pytest.raises(ValueError, match="freezes the head, which this task fits"):
        train(changed(config, backbone__freeze=["^head/"]))
    assert not Path(config.run_dir).joinpath("config.yaml").exists()


def test_the_start_is_fitted_without_changed_copies(checkpoint: Path, tmp_path: Path) -> None:
    """So it is that of a run without augmentation, and takes no longer."""
    plain = probed(checkpoint, tmp_path, optimizer__learning_rate=1e-12, steps=1)
    sources = [replace(each, augment=AugmentConfig(swap=0.9, copies=2)) for each in plain.data.train]
    copied = changed(plain, data__train=sources, run_dir=str(tmp_path / "copied"))
    heads = [final_parameters(Path(train(config)), 1)["head"] for config in (plain, copied)]
    assert_close(heads[1], heads[0], atol=1e-6)


def test_processes_do_not_divide_what_the_head_is_fitted_on(checkpoint: Path, tmp_path: Path) -> None:
    assert not Setup("vector_classification", checkpoint, tmp_path).task.divides
    assert Setup("classification", checkpoint, tmp_path).task.divides
