"""Thresholds that keep a share, and what abstention gains, compared with brute force."""

import itertools

import numpy as np
import pytest

from instructrec_jax.metrics.abstention import (
    AbstainConfig,
    check_abstain,
    keeping,
    risk_coverage_area,
    selective_metrics,
)


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9, 0.95, 1.0])
@pytest.mark.parametrize("count", [1, 2, 20, 37])
def test_the_threshold_is_the_highest_that_keeps_the_share(keep: float, count: int) -> None:
    scores = np.random.default_rng(count).normal(size=count).round(1)  # with ties
    found = keeping(scores, keep)
    assert (scores >= found).mean() >= keep - 1e-9
    higher = [t for t in scores if t > found and (scores >= t).mean() >= keep - 1e-9]
    assert all((scores >= t).sum() == (scores >= found).sum() for t in higher)
    assert not (np.abs(scores - found) < 1e-7).any()  # rounding moves no score across it


def test_without_cases_there_is_no_threshold() -> None:
    with pytest.raises(ValueError, match="abstain.keep"):
        keeping(np.zeros(0), 0.9)


def test_the_area_is_the_mean_over_all_orders_of_equal_scores() -> None:
    scores, right = np.array([3.0, 1.0, 1.0, 2.0, 1.0]), np.array([1.0, 0.0, 1.0, 0.0, 1.0])

    def area(order: tuple[int, ...]) -> float:
        return float(np.mean([np.mean(1 - right[list(order[:i])]) for i in range(1, 6)]))

    orders = [
        o for o in itertools.permutations(range(5)) if all(scores[a] >= scores[b] for a, b in itertools.pairwise(o))
    ]
    assert len(orders) == 6
    assert risk_coverage_area(scores, right) == pytest.approx(np.mean([area(order) for order in orders]))


def test_what_abstention_gains() -> None:
    scores, right = np.array([0.9, 0.8, 0.2, 0.1]), np.array([1.0, 1.0, 0.0, 1.0])
    found = selective_metrics(scores, right, 0.5)
    assert (found["answered"], found["accuracy_answered"], found["accuracy"]) == (0.5, 1.0, 0.75)
    assert found["aurc"] == pytest.approx((0 + 0 + 1 / 3 + 1 / 4) / 4)
    assert found["aurc_of_errors_last"] == pytest.approx(1 / 16)
    assert selective_metrics(scores, right, 2.0)["accuracy_answered"] is None


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"keep": 0.9}, "abstain.score is not"),
        ({"threshold": 0.9}, "abstain.score is not"),
        ({"score": "knn"}, "set one of them"),
        ({"score": "knn", "keep": 0.9, "threshold": 1.0}, "set one of them"),
        ({"score": "knn", "keep": 0.0}, "abstain.keep"),
        ({"score": "knn", "keep": 1.5}, "abstain.keep"),
        ({"score": "knn", "keep": float("nan")}, "abstain.keep"),
        ({"score": "knn", "threshold": float("inf")}, "finite"),
    ],
)
def test_settings_in_conflict_are_named(settings: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        check_abstain(AbstainConfig(**settings))


def test_settings_that_fit_together() -> None:
    for settings in ({}, {"score": "knn", "keep": 1.0}, {"score": "negative_energy", "threshold": -3.0}):
        check_abstain(AbstainConfig(**settings))
