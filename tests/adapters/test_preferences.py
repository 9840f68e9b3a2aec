"""The losses against formulas in float64, written as their papers and TRL have them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from instructrec_jax.adapters.preferences import LOSSES, has_reference, preference_losses

RNG = np.random.default_rng(0)
TOKENS = RNG.integers(1, 9, (6, 4))
SUMS = -RNG.gamma(2.0, 1.0, (6, 4)) * TOKENS
REFERENCE = -RNG.gamma(2.0, 1.0, (6, 4)) * TOKENS
PRESENT = np.arange(4) < np.array([2, 3, 4, 2, 4, 3])[:, None]


def log_sigmoid(x: np.ndarray) -> np.ndarray:
    return -np.logaddexp(0, -x)


def expected(kind: str, beta: float) -> np.ndarray:
    found = []
    for sums, tokens, reference, present in zip(SUMS, TOKENS, REFERENCE, PRESENT, strict=True):
        others = range(1, present.sum())
        if kind == "dpo":
            margins = [beta * ((sums[o] - reference[o]) - (sums[0] - reference[0])) for o in others]
            found.append(-log_sigmoid(-np.log(np.sum(np.exp(margins)))))
        elif kind == "ipo":  # trl.DPOTrainer: log-probabilities are means over tokens
            ratio, base = sums / tokens, reference / tokens
            each = [((ratio[0] - ratio[o]) - (base[0] - base[o]) - 1 / (2 * beta)) ** 2 for o in others]
            found.append(np.mean(each))
        else:  # trl.ORPOTrainer.odds_ratio_loss
            mean = sums / tokens
            odds = [mean[0] - mean[o] - (np.log1p(-np.exp(mean[0])) - np.log1p(-np.exp(mean[o]))) for o in others]
            found.append(-mean[0] - beta * np.mean(log_sigmoid(np.array(odds))))
    return np.array(found)


@pytest.mark.parametrize("beta", [0.1, 0.7])
@pytest.mark.parametrize("kind", LOSSES)
def test_the_formulas(kind: str, beta: float) -> None:
    reference = REFERENCE if has_reference(kind) else None  # type: ignore[arg-type]
    found = preference_losses(kind, SUMS, TOKENS, reference, PRESENT, beta)  # type: ignore[arg-type]
    np.testing.assert_allclose(found, expected(kind, beta), rtol=2e-5)


def test_one_other_answer_is_the_loss_of_dpo() -> None:
    """−log σ(β (log π(w)/ρ(w) − log π(l)/ρ(l)))."""
    ratios = SUMS[:, :2] - REFERENCE[:, :2]
    found = preference_losses("dpo", SUMS[:, :2], TOKENS[:, :2], REFERENCE[:, :2], PRESENT[:, :2], 0.1)
    np.testing.assert_allclose(found, -log_sigmoid(0.1 * (ratios[:, 0] - ratios[:, 1])), rtol=1e-5)


def test_a_network_that_is_its_reference_has_the_loss_of_chance() -> None:
    found = preference_losses("dpo", SUMS, TOKENS, SUMS, PRESENT, 0.1)
    np.testing.assert_allclose(found, np.log(PRESENT.sum(1)), rtol=1e-6)  # log 2 for a pair


@pytest.mark.parametrize("kind", LOSSES)
def test_answers_that_are_not_there_have_no_gradient(kind: str) -> None:
    reference = REFERENCE if has_reference(kind) else None  # type: ignore[arg-type]

    def total(sums: jax.Array) -> jax.Array:
        return preference_losses(kind, sums, TOKENS, reference, PRESENT, 0.5).sum()  # type: ignore[arg-type]

    slopes = jax.grad(total)(jnp.asarray(SUMS))
    assert np.isfinite(slopes).all() and (np.asarray(slopes) != 0).sum() == PRESENT.sum()
    assert (np.asarray(slopes)[:, 0] < 0).all() or kind == "ipo"  # a likelier preferred answer costs less


def test_a_certain_answer_has_finite_odds() -> None:
    zeros = np.zeros((1, 2))
    found = preference_losses("orpo", zeros, np.ones((1, 2)), None, np.ones((1, 2), bool), 0.1)
    assert np.isfinite(found).all()
