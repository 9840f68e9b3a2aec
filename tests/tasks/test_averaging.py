"""Averages of outputs against NumPy in float64, and the weights and temperatures that validation cases give."""

import numpy as np
import pytest
import scipy

from instructrec_jax.tasks.averaging import (
    Judged,
    Mixture,
    check_average,
    fit,
    fit_temperature,
    log_loss,
    mixed,
    padded,
)

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(3, 5, 4)) * 3


def softmax(z: np.ndarray, axis: int = -1) -> np.ndarray:
    shares = np.exp(z - z.max(axis, keepdims=True))
    return shares / shares.sum(axis, keepdims=True)


def test_probabilities_are_averaged() -> None:
    mixture = Mixture("probability", (0.5, 0.2, 0.3), (1.0, 2.0, 0.5))
    wanted = 0.5 * softmax(LOGITS[0]) + 0.2 * softmax(LOGITS[1] / 2) + 0.3 * softmax(LOGITS[2] / 0.5)
    np.testing.assert_allclose(softmax(mixed("labels", LOGITS, mixture)), wanted, rtol=1e-12)


def test_places_are_shares_of_the_tokens() -> None:
    mean = mixed("places", LOGITS, Mixture.equal("probability", 3))
    np.testing.assert_allclose(softmax(mean, 0), softmax(LOGITS, 1).mean(0), rtol=1e-12)


def test_decisions_are_averaged_one_by_one() -> None:
    mean = mixed("decisions", LOGITS, Mixture.equal("probability", 3))
    np.testing.assert_allclose(scipy.special.expit(mean), scipy.special.expit(LOGITS).mean(0), rtol=1e-12)


@pytest.mark.parametrize("average", ["probability", "logit"])
def test_numbers_and_logits_are_means(average: str) -> None:
    mixture = Mixture(average, (0.5, 0.25, 0.25), (1.0, 1.0, 1.0))
    mean = np.average(LOGITS, 0, mixture.weights)
    np.testing.assert_allclose(mixed("numbers", LOGITS, mixture), mean, rtol=1e-12)
    np.testing.assert_allclose(mixed("labels", LOGITS, Mixture("logit", *list(vars(mixture).values())[1:])), mean)


@pytest.mark.parametrize("kind", ["labels", "decisions", "places", "numbers", "scores"])
@pytest.mark.parametrize("average", ["probability", "logit"])
def test_three_times_one_model_is_that_model(kind: str, average: str) -> None:
    same = np.stack([LOGITS[0]] * 3)
    np.testing.assert_allclose(mixed(kind, same, Mixture.equal(average, 3)), LOGITS[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("average", ["probability", "logit", "rank"])
def test_the_order_of_members_has_no_effect(average: str) -> None:
    weights = np.array([0.1, 0.6, 0.3])
    one = mixed("scores", LOGITS, Mixture(average, tuple(weights), (1.0, 2.0, 3.0)))
    other = mixed("scores", LOGITS[::-1], Mixture(average, tuple(weights[::-1]), (3.0, 2.0, 1.0)))
    np.testing.assert_allclose(one, other, rtol=1e-12)


def test_ranks_are_reciprocal() -> None:
    scores = [[3.0, 1, 2, -np.inf], [0, 5, 5, -np.inf]]
    mean = mixed("scores", scores, Mixture.equal("rank", 2))
    assert mean.tolist()[:3] == pytest.approx([(1 / 61 + 1 / 63) / 2, (1 / 63 + 1 / 61.5) / 2, (1 / 62 + 1 / 61.5) / 2])
    assert np.isneginf(mean[3])


def test_what_does_not_compete_stays_out() -> None:
    scores = np.where(np.arange(4) == 2, -np.inf, LOGITS)
    for average in ("probability", "logit"):
        mean = mixed("scores", scores, Mixture(average, (1.0, 0.0, 0.0), (1.0, 1.0, 1.0)))
        np.testing.assert_allclose(mean, scores[0])


def test_the_temperature_divides_the_average() -> None:
    cold = mixed("labels", LOGITS, Mixture("logit", (1.0, 0.0, 0.0), (2.0, 1.0, 1.0), 4.0))
    np.testing.assert_allclose(cold, LOGITS[0] / 8)


@pytest.mark.parametrize(
    ("kind", "average", "message"),
    [
        (None, "probability", "no common form"),
        ("labels", "rank", "choose probability or logit"),
        ("numbers", "rank", "--average rank is not for the task t"),
    ],
)
def test_averages_that_a_task_lacks(kind: str, average: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_average("t", kind, average)


@pytest.mark.parametrize(
    ("weights", "temperatures"),
    [((0.5, 0.4), (1.0, 1.0)), ((1.5, -0.5), (1.0, 1.0)), ((1.0,), (0.0,)), ((0.5, 0.5), (1.0,)), ((np.nan,), (1.0,))],
)
def test_impossible_mixtures(weights: tuple[float, ...], temperatures: tuple[float, ...]) -> None:
    with pytest.raises(ValueError):
        Mixture("probability", weights, temperatures)


# ---------------------------------------------------------------- tuning


def drawn(cases: int = 4000) -> Judged:
    """Labels drawn from the first member's distribution; the second knows less, the third nothing."""
    truth = RNG.normal(size=(cases, 4)) * 2
    right = np.array([RNG.choice(4, p=p) for p in softmax(truth)])
    noise = [0 * truth, RNG.normal(size=truth.shape), RNG.normal(size=truth.shape) * 3]
    return Judged(np.stack([truth + noise[0], truth + noise[1], noise[2]]), right)


def test_the_temperature_is_found() -> None:
    judged = drawn()
    assert fit_temperature(Judged(judged.outputs[0] * 3, judged.right)) == pytest.approx(3, rel=0.06)


@pytest.mark.parametrize("average", ["probability", "logit"])
def test_weights_are_the_best_of_a_grid(average: str) -> None:
    judged = drawn(500)
    found = fit(judged, average, tuned=True, calibrate=False)
    assert found.temperatures == (1, 1, 1) and sum(found.weights) == pytest.approx(1)
    best = log_loss(Judged(mixed("labels", judged.outputs, found), judged.right))
    for a in np.linspace(0, 1, 11):
        for b in np.linspace(0, 1 - a, 6):
            other = Mixture(average, (a, b, 1 - a - b), (1.0, 1.0, 1.0))
            assert best <= log_loss(Judged(mixed("labels", judged.outputs, other), judged.right)) + 1e-6


def test_calibration_lowers_the_log_loss() -> None:
    judged = drawn(500)
    loud = Judged(judged.outputs * np.array([4, 1, 2])[:, None, None], judged.right)
    plain = fit(loud, "probability", tuned=False, calibrate=False)
    found = fit(loud, "probability", tuned=False, calibrate=True)
    assert plain == Mixture.equal("probability", 3) and min(found.temperatures) > 0
    losses = [log_loss(Judged(mixed("labels", loud.outputs, each), loud.right)) for each in (plain, found)]
    assert losses[1] < losses[0]


def test_numbers_have_weights_of_least_squares() -> None:
    right = RNG.normal(size=200)
    found = fit(Judged(np.stack([right + 1, right - 3]), right), "probability", tuned=True, calibrate=False)
    assert found.weights == pytest.approx((0.75, 0.25), abs=1e-3)
    with pytest.raises(ValueError, match="no temperature"):
        fit(Judged(np.stack([right, right]), right), "probability", tuned=True, calibrate=True)


def test_ranks_are_not_tuned() -> None:
    with pytest.raises(ValueError, match="rank average"):
        fit(drawn(10), "rank", tuned=True, calibrate=False)


def test_cases_of_different_sizes_are_padded() -> None:
    judged = padded([np.array([1.0, 2.0]), np.array([0.0])], [1, 0])
    assert judged.outputs.tolist() == [[1, 2], [0, -np.inf]]
    assert log_loss(judged) == pytest.approx(np.log1p(np.exp(-1)) / 2)
