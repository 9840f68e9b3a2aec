"""SetFit: pairs and loss are those of NumPy, the head is scikit-learn's, and it is the one that answers."""

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import SUBJECTS, Setup, assert_close
from sklearn.linear_model import LogisticRegression
from tiny_runs import changed, final_parameters, tiny_run, train_until

from instructrec_jax.adapters.vector_classifier import VectorClassifier
from instructrec_jax.answering.classifier import Classifier
from instructrec_jax.backbones.sentence_vectors import write_sentence_modules
from instructrec_jax.data.loader import pack
from instructrec_jax.data.source_config import SourceConfig
from instructrec_jax.evaluation.predictor import make_predict
from instructrec_jax.files import read_json, read_jsonl, write_jsonl
from instructrec_jax.runs.config import Config
from instructrec_jax.runs.data import RunData, buckets
from instructrec_jax.runs.fitted_head import head_fitter
from instructrec_jax.runs.run import Run
from instructrec_jax.tasks import SetFitConfig
from instructrec_jax.tasks.base import LossInputs
from instructrec_jax.tasks.logistic import STRENGTH, logistic_head
from instructrec_jax.train import train
from instructrec_jax.training.checkpoint import Checkpoints


@pytest.fixture(scope="module")
def setup(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Setup:
    return Setup("setfit", checkpoint, tmp_path_factory.mktemp("setup"))


def pooled(graphdef: Any, params: Any, mesh: Any, lengths: Any, texts: Any) -> np.ndarray:
    """float64 [texts, width]: mean token vectors (the family's pooling of the tiny network), of length 1."""
    hidden = jax.jit(lambda params, batch: nnx.merge(graphdef, params).hidden(batch))
    tokens = make_predict(hidden, params, mesh=mesh, buckets=lengths, per_token=True)(texts)
    means = np.stack([each.astype(np.float64).mean(0) for each in tokens])
    return means / np.linalg.norm(means, axis=1, keepdims=True)


def test_loss_equals_numpy(setup: Setup) -> None:
    task, graphdef = setup.task, setup.model.graphdef
    parts = task.gather(setup.encoded[:9], np.random.default_rng(0))
    vectors = pooled(graphdef, setup.model.params, setup.mesh, setup.buckets, parts.texts)
    cosines = (vectors[parts.own.firsts] * vectors[parts.own.seconds]).sum(-1)
    expected = np.square(cosines - parts.own.alike).sum()
    loss = jax.jit(lambda params, batch: task.loss(nnx.merge(graphdef, params), batch, LossInputs()))
    total, weight = loss(setup.model.params, pack(parts, setup.buckets, 1).batch)
    assert float(weight) == 9 and 0 < parts.own.alike.sum() < 9
    np.testing.assert_allclose(float(total), expected, rtol=1e-5)


def test_half_of_the_partners_have_the_same_label(setup: Setup) -> None:
    """Each other example of the label is as probable, and each of the others; never the text itself."""
    texts = {e.text.tokens.tobytes(): e for e in setup.encoded}
    anchor = setup.encoded[0]
    drawn: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
    for seed in range(600):
        parts = setup.task.gather([anchor, setup.encoded[1]], np.random.default_rng([seed, 3]))
        assert parts.own.alike.sum() == 1
        partner = texts[parts.texts[2].tokens.tobytes()].example
        same = partner.output == anchor.example.output
        assert same == bool(parts.own.alike[0])
        drawn[same][partner.id] += 1
    with_label = [e.example.id for e in setup.encoded if e.example.output == anchor.example.output]
    assert set(drawn[True]) == {*with_label} - {anchor.example.id}
    assert set(drawn[False]) == {e.example.id for e in setup.encoded} - {*with_label}
    assert 240 < drawn[True].total() < 360
    for counts in drawn.values():
        mean = counts.total() / len(counts)
        assert all(abs(count - mean) < 5 * np.sqrt(mean) for count in counts.values())
    again = [setup.task.gather(setup.encoded[:8], np.random.default_rng(5)) for _ in range(2)]
    assert all(np.array_equal(a.tokens, b.tokens) for a, b in zip(again[0].texts, again[1].texts, strict=True))


def test_one_example_of_a_label_is_its_own_partner(setup: Setup) -> None:
    """As in SetFit; its vectors differ by dropout. Without a training set (a step's plan), a batch is all there is."""
    one_each = [next(e for e in setup.encoded if e.example.output == name) for name in SUBJECTS]
    task = replace(setup.config.task).build(setup.task.context)
    for part in ([one_each[0]], one_each):
        gathered = task.gather(part, np.random.default_rng(1))
        for number, alike in enumerate(gathered.own.alike):
            own = np.array_equal(gathered.texts[number].tokens, gathered.texts[len(part) + number].tokens)
            assert own == bool(alike)


def test_vectors_and_logits_equal_numpy() -> None:
    """Two texts in a row, and a row without a second one."""
    head = VectorClassifier(6, 3, pooling="mean", rngs=nnx.Rngs(0))
    head.output.bias[...] = jnp.arange(3.0)
    hidden = np.random.default_rng(0).normal(size=(2, 5, 6)).astype(np.float32)
    segments = np.array([[1, 1, 2, 2, 2], [1, 1, 1, 0, 0]], np.int32)
    means = np.stack([hidden[0, :2].mean(0), hidden[0, 2:].mean(0), hidden[1, :3].mean(0)]).astype(np.float64)
    units = means / np.linalg.norm(means, axis=1, keepdims=True)
    vectors, logits = (np.asarray(f(jnp.asarray(hidden), segments, 2)) for f in (head.vectors, head))
    np.testing.assert_allclose(vectors.reshape(4, 6)[:3], units, atol=1e-6)
    assert not vectors[1, 1].any()
    np.testing.assert_allclose(
        logits.reshape(4, 3)[:3], units @ np.asarray(head.output.kernel) + np.arange(3), atol=1e-6
    )


def test_the_fitted_head_is_placed_like_the_old_one(setup: Setup, checkpoint: Path, tmp_path: Path) -> None:
    model, params = setup.model, setup.model.params
    fitted = head_fitter(setup.task, model, setup.mesh, setup.buckets)(params, setup.encoded)
    vectors = pooled(model.graphdef, params, setup.mesh, setup.buckets, [e.text for e in setup.encoded])
    kernel, bias = logistic_head(vectors, setup.task.truth(setup.encoded), len(SUBJECTS))
    assert_close(fitted, {"head": {"output": {"kernel": kernel, "bias": bias}}}, atol=2e-3)
    for new, old in zip(jax.tree.leaves(fitted), jax.tree.leaves(params["head"]), strict=True):
        assert new.sharding == old.sharding and new.shape == old.shape and new.dtype == old.dtype
    learned = Setup("classification", checkpoint, tmp_path)
    assert head_fitter(learned.task, learned.model, learned.mesh, learned.buckets)(learned.model.params, []) == {}


# ---------------------------------------------------------------- a run


def setfit_run(checkpoint: Path, folder: Path, **changes: Any) -> Config:
    return tiny_run("classification", checkpoint, folder, task=SetFitConfig(SUBJECTS), **changes)


@pytest.fixture(scope="module")
def tuned(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Without validation cases, so that the last checkpoint is the best."""
    folder = tmp_path_factory.mktemp("tuned")
    config = setfit_run(checkpoint, folder, data__validation=[])
    train(config)
    return config


@pytest.mark.slow
def test_a_head_on_vectors_tuned_by_lora_in_micro_batches(checkpoint: Path, tmp_path: Path) -> None:
    """What is frozen is no part of the checkpoint, and the head is."""
    config = setfit_run(
        checkpoint, tmp_path, data__validation=[], lora__rank=2, accumulation=2, mesh__fsdp=2, mesh__tensor=2
    )
    train(config)
    assert_head_is_fitted(config)


def test_what_is_measured_is_the_head_fitted_on_the_tuned_vectors(tuned: Config) -> None:
    assert_head_is_fitted(tuned)


def assert_head_is_fitted(tuned: Config) -> None:
    run = Run.open(tuned.run_dir)
    model, task, data = run.model, run.task, RunData(run.config)
    given, asked = (task.encode(list(data.examples(split))) for split in ("train", "test"))
    vectors = [
        pooled(model.graphdef, model.params, run.mesh, buckets(run.config), [e.text for e in some])
        for some in (given, asked)
    ]
    head = LogisticRegression(max_iter=1000, C=STRENGTH).fit(vectors[0], task.truth(given))
    expected = head.predict_proba(vectors[1])
    written = read_jsonl(Path(tuned.run_dir) / "predictions.jsonl")
    for row, shares in zip(written, expected, strict=True):
        assert row["probabilities"] == pytest.approx(dict(zip(SUBJECTS, shares.tolist(), strict=True)), abs=2e-4)
    answers = run.predict([e.example for e in asked])
    for answer, row in zip(answers, written, strict=True):
        assert answer.probabilities == pytest.approx(row["probabilities"], abs=1e-5)
    texts = [e.example.instruction for e in given]
    np.testing.assert_allclose(
        run.encode(texts), vectors[0] * np.linalg.norm(run.encode(texts), axis=1)[:, None], atol=1e-5
    )


def test_a_desks_classifier_answers_with_it(tuned: Config) -> None:
    run = Run.open(tuned.run_dir)
    classifier = Classifier(tuned.run_dir)
    encoded = [classifier.encode("a dull film about war", "line 1")]
    (answer,) = run.predict("a dull film about war")
    logits = classifier.logits(encoded)[0, 0].astype(np.float64)
    shares = np.exp(logits) / np.exp(logits).sum()
    assert answer.probabilities == pytest.approx(dict(zip(SUBJECTS, shares.tolist(), strict=True)), abs=1e-5)


def test_before_tuning_is_a_logistic_head_on_frozen_vectors(tuned: Config, checkpoint: Path) -> None:
    config = changed(tuned, run_dir="unused")
    run = Run.open(checkpoint, config)
    given, asked = (run.task.encode(list(run.data.examples(split))) for split in ("train", "test"))
    vectors = [
        pooled(run.model.graphdef, run.model.params, run.mesh, buckets(config), [e.text for e in some])
        for some in (given, asked)
    ]
    guess = LogisticRegression(max_iter=1000, C=STRENGTH).fit(vectors[0], run.task.truth(given)).predict(vectors[1])
    written: Any = read_json(Path(tuned.run_dir) / "evaluation.json")
    before = next(row for row in written["rows"] if row["name"] == "before tuning")
    assert before["values"]["accuracy"] == pytest.approx(float((guess == run.task.truth(asked)).mean()))


def test_a_run_that_was_stopped_ends_with_the_same_head(
    tuned: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = changed(tuned, run_dir=str(tmp_path / "run"))
    train_until(config, 3, monkeypatch)
    assert Checkpoints(tmp_path / "run").steps()[-1] == 3
    train(config)
    assert_close(final_parameters(config.run_dir, 6), final_parameters(tuned.run_dir, 6), atol=0)


def test_what_cannot_be_fitted_is_named(checkpoint: Path, tmp_path: Path) -> None:
    config = setfit_run(checkpoint, tmp_path)
    with pytest.raises(ValueError, match="no example of unheard: task.type setfit"):
        train(changed(config, task=SetFitConfig([*SUBJECTS, "unheard"])))
    one = tmp_path / "one.jsonl"
    write_jsonl(one, [row for row in read_jsonl(config.data.train[0].path) if row["output"] == SUBJECTS[0]])
    with pytest.raises(ValueError, match="at least two different label names"):
        train(changed(config, task=SetFitConfig(), data__train=[SourceConfig(path=str(one))]))
    with pytest.raises(ValueError, match="setfit fits its head on all training examples .* streaming"):
        train(changed(config, data__train=[replace(config.data.train[0], streaming=True)]))
    with pytest.raises(ValueError, match="the task setfit compares .* set data.batch_size instead"):
        train(changed(config, data__batch_rows=8, data__batch_size=None))
    with pytest.raises(ValueError, match="all of the backbone is frozen"):
        train(changed(config, backbone__freeze=["^backbone/"]))
    with pytest.raises(ValueError, match="freezes the head, which this task fits"):
        train(changed(config, backbone__freeze=["^head/"]))
    assert not Path(config.run_dir).joinpath("config.yaml").exists()


def test_a_teacher_is_refused(finished: Config, checkpoint: Path, tmp_path: Path) -> None:
    config = setfit_run(checkpoint, tmp_path, distil__teachers=[finished.run_dir])
    with pytest.raises(ValueError, match="distil.teachers"):
        train(config)


def test_a_checkpoints_projection_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "projected"
    shutil.copytree(checkpoint, folder)
    projection = np.eye(32, 16, dtype=np.float32)
    write_sentence_modules(
        folder, hidden_size=32, pooling="mean", projection=projection, max_length=32, lower_case=False
    )
    with pytest.raises(ValueError, match="is a projection, which task.type setfit does not tune"):
        train(setfit_run(folder, tmp_path))
