"""Simulated learning curves: their areas, the labels saved, the stopping rule and their intervals."""

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import cohen_kappa_score

from instructrec_jax.labeling.simulate import (
    Curve,
    Plan,
    Texts,
    compare,
    first_labels,
    interval,
    kappa,
    learning_curve,
)
from instructrec_jax.labeling.strategies import STRATEGIES


def made(count: int, seed: int) -> Texts:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    return Texts((rng.normal(size=(count, 5)) + 2 * np.eye(3, 5)[labels]).astype(np.float32), labels)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_curve(strategy: str) -> None:
    pool, test, plan = made(60, 0), made(90, 1), Plan(first=6, batch=9, rounds=3, seeds=1)
    curve = learning_curve(strategy, pool, test, 3, plan, 0)  # type: ignore[arg-type]
    assert curve.labels.tolist() == [6, 15, 24, 33] and len(curve.kappa) == 3
    assert curve.accuracy[-1] > 0.7 and np.isfinite(curve.accuracy).all()
    again = learning_curve(strategy, pool, test, 3, plan, 0)  # type: ignore[arg-type]
    assert np.array_equal(curve.accuracy, again.accuracy)


def test_a_curve_ends_with_the_pool() -> None:
    curve = learning_curve("entropy", made(20, 0), made(30, 1), 3, Plan(first=6, batch=9, rounds=30, seeds=1), 0)
    assert curve.labels.tolist() == [6, 15, 20]


def test_numbers_of_a_curve() -> None:
    curve = Curve(np.array([10, 20, 40]), np.array([0.5, 0.7, 0.8]), np.array([0.9, 0.99]))
    assert curve.area == pytest.approx((10 * 0.6 + 20 * 0.75) / 30)
    assert curve.reached(0.6) == pytest.approx(15) and curve.reached(0.5) == 10 and curve.reached(0.9) is None
    assert curve.stop() is None
    steady = Curve(np.arange(6), np.linspace(0.5, 0.6, 6), np.array([0.9, 0.985, 0.99, 1.0, 1.0]))
    assert steady.stop() == 4  # (.985 + .99 + 1) / 3 is the first mean of three that is .99 or more


def test_strategies_are_compared_in_pairs() -> None:
    labels = np.array([10, 20, 30])
    flat = [Curve(labels, np.array([0.5, 0.6, 0.7]) + shift) for shift in (0.0, 0.02)]
    better = [Curve(labels, np.array([0.5, 0.7, 0.8]) + shift) for shift in (0.0, 0.04)]
    best, base = compare({"random": flat, "entropy": better}, 0.65)
    assert best.strategy == "entropy" and base.gain is None and base.stopped is None
    gains = [b.area - a.area for a, b in zip(flat, better, strict=True)]
    assert best.gain == pytest.approx(interval(gains))
    needed = [[25, 23], [17.5, (0.65 - 0.54) / 0.2 * 10 + 10]]
    assert best.reached == pytest.approx(np.mean(needed[1])) and base.reached == pytest.approx(24)
    assert best.saved is not None and best.saved[0] == pytest.approx(np.mean(np.subtract(*needed)))
    assert compare({"random": flat, "entropy": better}, 0.71)[0].saved is None  # random does not always get there


def test_the_interval_is_students() -> None:
    sample = np.random.default_rng(0).normal(size=5)
    wanted = stats.ttest_1samp(sample, 0).confidence_interval(0.95)
    assert interval(sample.tolist())[1:] == pytest.approx((wanted.low, wanted.high))


def test_kappa() -> None:
    one, other = np.random.default_rng(0).integers(0, 3, (2, 50))
    assert kappa(one, other, 3) == pytest.approx(cohen_kappa_score(one, other))
    assert kappa(np.zeros(4, int), np.zeros(4, int), 3) == 1


def test_first_labels_have_two_kinds() -> None:
    labels = np.array([0] * 99 + [1])
    assert set(labels[first_labels(labels, 3, 0)]) == {0, 1} and len(first_labels(labels, 3, 0)) == 3
    with pytest.raises(ValueError, match="same label"):
        first_labels(np.zeros(5, int), 2, 0)
    with pytest.raises(ValueError, match="the pool is empty"):
        learning_curve("random", Texts(np.empty((0, 2)), np.empty(0, int)), made(3, 0), 3, Plan(), 0)
    for bad in (dict(first=0), dict(batch=0), dict(seeds=0), dict(rounds=-1)):
        with pytest.raises(ValueError, match="--first, --batch and --seeds should be at least 1"):
            Plan(**bad)
