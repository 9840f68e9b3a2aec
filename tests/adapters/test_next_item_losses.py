"""Losses of sampled items against NumPy in float64."""

import jax
import numpy as np
import pytest

from instructrec_jax.adapters.next_item_losses import gbce_power, sampled_sigmoid, sampled_softmax, scores_of


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("beta", [1.0, 0.17])
def test_the_sigmoid_loss_is_its_definition(beta: float) -> None:
    scores = 3 * np.random.default_rng(0).normal(size=(2, 3, 5))
    expected = -np.log(sigmoid(scores[..., 0]) ** beta) - np.log(1 - sigmoid(scores[..., 1:])).sum(-1)
    np.testing.assert_allclose(sampled_sigmoid(scores.astype(np.float32), beta), expected, rtol=1e-5)


def test_large_scores_give_finite_losses_and_gradients() -> None:
    scores = np.array([[-400.0, 400.0, -400.0], [400.0, -400.0, 0.0]], np.float32)
    np.testing.assert_allclose(sampled_sigmoid(scores), [800, np.log(2)], rtol=1e-6)
    slopes = jax.grad(lambda x: sampled_sigmoid(x).sum())(scores)
    np.testing.assert_allclose(slopes, [[-1, 1, 0], [0, 0, 0.5]], atol=1e-6)


def test_the_sampled_softmax_is_its_definition() -> None:
    logits = np.random.default_rng(0).normal(size=(2, 3, 5))
    expected = -np.log(np.exp(logits[..., 0]) / np.exp(logits).sum(-1))
    np.testing.assert_allclose(sampled_softmax(logits.astype(np.float32)), expected, rtol=1e-5)


def test_the_power_of_gbce() -> None:
    """At its ends as the paper has them: t = 0 is the plain loss, and t = 1 gives α, the share of negatives."""
    assert gbce_power(10, 101, 0.0) == pytest.approx(1)
    assert gbce_power(10, 101, 1.0) == pytest.approx(0.1)
    assert gbce_power(10, 101, 0.75) == pytest.approx(0.1 * (0.75 * (1 - 10) + 10))
    assert gbce_power(500, 101, 0.75) == pytest.approx(1)  # more draws than items: all of them


def test_gbce_with_t_of_one_is_smallest_at_the_items_probability() -> None:
    """The paper's reason for β = α: the mean loss over draws is smallest where σ(s) is the item's probability."""
    chance, negatives, items = 0.3, 4, 21
    scores = np.linspace(-3, 3, 6001)
    share = negatives / (items - 1)
    one = np.stack([scores, np.full_like(scores, -200)], -1).astype(np.float32)
    other = one[:, ::-1]
    as_positive = np.asarray(sampled_sigmoid(one, gbce_power(negatives, items, 1.0)))
    as_negative = np.asarray(sampled_sigmoid(other, 1.0)) - np.asarray(sampled_sigmoid(other[:1, :1], 1.0))
    best = scores[np.argmin(chance * as_positive + (1 - chance) * share * as_negative)]
    assert sigmoid(best) == pytest.approx(chance, abs=1e-3)


@pytest.mark.parametrize("items", [5, 60])  # fewer and more than numbers in the candidates' vectors
@pytest.mark.parametrize("biased", [True, False])
def test_scores_of_candidates_are_inner_products(items: int, biased: bool) -> None:
    rng = np.random.default_rng(0)
    queries, table = rng.normal(size=(2, 3, 4)).astype(np.float32), rng.normal(size=(items, 4)).astype(np.float32)
    bias = rng.normal(size=items).astype(np.float32) if biased else None
    chosen = rng.integers(items, size=(2, 3, 6))
    expected = np.einsum("rlh,rlkh->rlk", queries.astype(np.float64), table[chosen])
    expected = expected if bias is None else expected + bias[chosen]
    np.testing.assert_allclose(scores_of(queries, jax.numpy.asarray(table), bias, chosen), expected, atol=1e-5)
