"""Prediction sets compared with brute force, and their coverage on exchangeable data."""

import math

import numpy as np
import pytest
import scipy

from instructrec_jax.metrics.conformal import (
    ConformalSets,
    SetKind,
    clopper_pearson,
    set_metrics,
    set_scores,
    threshold_of,
    uniform_of,
)


def drawn(cases: int, labels: int = 6, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities, u, and labels that do not follow these probabilities."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(cases, labels)) * 2
    truth = (z + rng.gumbel(size=z.shape) * 3).argmax(-1)
    return scipy.special.softmax(z, -1), rng.random(cases), truth


def test_scores_are_those_of_the_formulas() -> None:
    shares, u, _ = drawn(20)
    np.testing.assert_array_equal(set_scores("lac", shares, u), 1 - shares)
    found = set_scores("aps", shares, u)
    for case, label in np.ndindex(*shares.shape):
        own = shares[case, label]
        wanted = sum(p for p in shares[case] if p > own) + u[case] * own
        assert found[case, label] == pytest.approx(wanted, abs=1e-12)


def test_equal_probabilities_are_taken_one_after_another() -> None:
    found = set_scores("aps", np.array([[0.25, 0.5, 0.25]]), np.array([0.5]))
    np.testing.assert_allclose(found, [[0.625, 0.25, 0.875]])


@pytest.mark.parametrize("count", [9, 10, 19, 99])
@pytest.mark.parametrize("coverage", [0.1, 0.5, 0.8, 0.9])
def test_the_threshold_is_the_finite_sample_quantile(count: int, coverage: float) -> None:
    scores = np.random.default_rng(count).random(count)
    found = threshold_of(scores, coverage)
    rank = next(k for k in range(1, count + 2) if k >= (count + 1) * coverage - 1e-9)
    assert found == sorted(scores)[rank - 1]
    assert (scores <= found).sum() / (count + 1) >= coverage - 1e-9


@pytest.mark.parametrize(("coverage", "least"), [(0.9, 9), (0.5, 1), (0.99, 99), (0.95, 19)])
def test_too_few_cases_are_named(coverage: float, least: int) -> None:
    threshold_of(np.zeros(least), coverage)
    with pytest.raises(ValueError, match=f"needs at least {least} cases"):
        threshold_of(np.zeros(least - 1), coverage)


@pytest.mark.parametrize("coverage", [0.0, 1.0, -1.0, 2.0, math.nan])
def test_a_coverage_out_of_range_is_named(coverage: float) -> None:
    with pytest.raises(ValueError, match="--coverage"):
        threshold_of(np.zeros(100), coverage)


def test_scores_that_are_not_finite_are_named() -> None:
    with pytest.raises(ValueError, match="not finite"):
        threshold_of(np.array([0.5] * 30 + [np.nan]), 0.9)


@pytest.mark.parametrize("kind", ["lac", "aps"])
@pytest.mark.parametrize("coverage", [0.7, 0.9])
def test_sets_have_their_coverage_on_exchangeable_cases(kind: SetKind, coverage: float) -> None:
    """Over many splits the mean coverage lies within [coverage, coverage + 1 / (n + 1)], up to its standard error."""
    found, validation, test = [], 39, 100
    for seed in range(300):
        shares, u, truth = drawn(validation + test, seed=seed)
        sets = ConformalSets.fit(kind, coverage, shares[:validation], u[:validation], truth[:validation])
        found.append(sets(shares[validation:], u[validation:])[np.arange(test), truth[validation:]].mean())
    error = 4 * np.std(found) / np.sqrt(len(found))
    assert coverage - error < np.mean(found) < coverage + 1 / (validation + 1) + error


def test_a_higher_coverage_has_larger_sets() -> None:
    shares, u, truth = drawn(200)
    for kind in ("lac", "aps"):
        small, large = (ConformalSets.fit(kind, c, shares, u, truth)(shares, u) for c in (0.6, 0.9))
        assert (small <= large).all() and small.sum() < large.sum()


def test_the_interval_is_the_exact_one() -> None:
    for hits, cases in ((0, 10), (3, 10), (10, 10), (90, 100)):
        low, high = clopper_pearson(hits, cases)
        wanted = scipy.stats.binomtest(hits, cases).proportion_ci(0.95, "exact")
        assert (low, high) == pytest.approx((wanted.low, wanted.high))
    with pytest.raises(ValueError, match="0 of 0"):
        clopper_pearson(0, 0)


def test_metrics_of_sets() -> None:
    sets = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 0], [0, 1, 1]], bool)
    found = set_metrics(sets, np.array([0, 0, 0, 2]), ["a", "b", "ç"])
    assert (found["cases"], found["covered"], found["mean_size"]) == (4, 0.75, 1.25)
    assert (found["singletons"], found["empty"]) == (0.25, 0.25)
    assert found["labels"] == {
        "a": {"cases": 3, "covered": pytest.approx(2 / 3), "mean_size": 1.0},
        "ç": {"cases": 1, "covered": 1.0, "mean_size": 2.0},
    }


def test_the_number_of_a_text_is_always_the_same() -> None:
    assert uniform_of("where is my card?") == uniform_of("where is my card?") != uniform_of("where is my card")
    values = [uniform_of(f"text {number} 你好 \ud800") for number in range(2000)]
    assert 0 <= min(values) and max(values) < 1 and scipy.stats.kstest(values, "uniform").pvalue > 0.01
