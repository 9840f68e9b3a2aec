"""Predictions with dropout: the forward pass of training, whatever shares a row with a text."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import Setup

from instructrec_jax.data.batch import Batch
from instructrec_jax.data.loader import to_devices
from instructrec_jax.evaluation import predictor as module
from instructrec_jax.evaluation.predictor import predictor
from instructrec_jax.tasks.base import LossInputs
from instructrec_jax.tasks.prediction import Predict
from instructrec_jax.training.step import batch_dropout_keys


@pytest.fixture(scope="module")
def setup(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Setup:
    return Setup("classification", checkpoint, tmp_path_factory.mktemp("draws"))


@pytest.fixture(scope="module")
def predict(setup: Setup) -> Predict:
    return predictor(setup.task, setup.model.graphdef, setup.mesh, setup.buckets)(setup.model.params)


def test_a_draw_is_the_forward_pass_of_a_training_step(setup: Setup, predict: Predict) -> None:
    """The training step packs its batch by itself, and its loss is that of the drawn outputs."""
    texts, targets = [e.text for e in setup.encoded], [e.target.label for e in setup.encoded]
    seed = np.uint32(77)
    batch = to_devices(setup.batch(), setup.mesh)

    @jax.jit
    def loss(params: object, batch: dict[str, jax.Array]) -> jax.Array:
        keys = batch_dropout_keys(jnp.asarray(seed), batch)
        total, weight = setup.task.loss(nnx.merge(setup.model.graphdef, params), batch, LossInputs(keys))
        return total / weight

    drawn, plain = np.stack(predict.draw(texts, 77)), np.stack(predict(texts))

    def mean_loss(logits: np.ndarray) -> float:
        return float(-jax.nn.log_softmax(logits)[np.arange(len(targets)), targets].mean())

    expected = float(loss(setup.model.params, batch))
    assert mean_loss(drawn) == pytest.approx(expected, abs=2e-6)
    assert abs(mean_loss(plain) - expected) > 2e-4


def test_draws_hang_on_seed_and_number_alone(setup: Setup, predict: Predict, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [e.text for e in setup.encoded]
    first = np.stack(predict.draw(texts, 5))
    np.testing.assert_array_equal(first, np.stack(predict.draw(texts, 5)))
    assert np.abs(first - np.stack(predict.draw(texts, 6))).max() > 1e-2
    order = np.random.default_rng(0).permutation(len(texts))
    shuffled = predict.draw([texts[i] for i in order], 5, order)
    np.testing.assert_allclose(np.stack(shuffled), first[order], atol=1e-5)
    np.testing.assert_allclose(predict.draw([texts[9]], 5, [9])[0], first[9], atol=1e-5)
    assert np.abs(predict.draw([texts[9]], 5, [8])[0] - first[9]).max() > 1e-3
    monkeypatch.setattr(module, "TOKENS_PER_BATCH", 128)  # many small batches
    np.testing.assert_allclose(np.stack(predict.draw(texts, 5)), first, atol=1e-5)


def test_draws_leave_plain_predictions_alone_and_scatter_around_them(setup: Setup, predict: Predict) -> None:
    texts = [e.text for e in setup.encoded][:8]
    plain = np.stack(predict(texts))
    draws = np.stack([np.stack(predict.draw(texts, seed)) for seed in range(64)])
    np.testing.assert_array_equal(np.stack(predict(texts)), plain)
    assert (draws.std(0) > 0).all()
    # the mean of many draws is near the plain output: much nearer than a single one
    assert np.abs(draws.mean(0) - plain).mean() < 0.5 * np.abs(draws - plain).mean()


def test_draws_pass_through_what_remembers_predictions(setup: Setup, predict: Predict) -> None:
    texts = [e.text for e in setup.encoded][:4]
    once = predict.remember()
    once(texts)
    np.testing.assert_array_equal(np.stack(once.draw(texts, 3)), np.stack(predict.draw(texts, 3)))


def test_few_texts_share_shapes(setup: Setup, predict: Predict, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = set()
    whole = module.lay_out

    def noted(*args: Any) -> Batch:
        batch = whole(*args)
        shapes.add(batch.texts.tokens.shape)
        return batch

    monkeypatch.setattr(module, "lay_out", noted)
    short = [e.text for e in setup.encoded if len(e.text.tokens) <= 32]
    for count in range(1, len(short)):
        predict(short[:count])
    assert all(rows & (rows - 1) == 0 for rows, _ in shapes) and len(shapes) <= 5


def test_a_task_without_draws_says_so(checkpoint: Path, tmp_path: Path) -> None:
    setup = Setup("masked_lm", checkpoint, tmp_path)
    predict = predictor(setup.task, setup.model.graphdef, setup.mesh, setup.buckets)(setup.model.params)
    with pytest.raises(TypeError, match="draw"):
        predict.draw([e.text for e in setup.encoded][:2], 0)
