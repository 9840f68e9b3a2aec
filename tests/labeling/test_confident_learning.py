"""Confident learning beside cleanlab on the same probabilities, and beside the paper's formulas in plain loops."""

from collections.abc import Callable

import numpy as np
import pytest
from cleanlab.count import compute_confident_joint, estimate_joint
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_label_quality_scores

from instructrec_jax.labeling.confident_learning import (
    RULES,
    check,
    confident_joint,
    joint,
    label_issues,
    self_confidence,
    thresholds,
)

CLEANLABS = {"both": "both", "class": "prune_by_class", "noise_rate": "prune_by_noise_rate"}


def noisy(size: int, count: int, seed: int, sharp: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    """Labels of which a tenth is wrong, and probabilities of a classifier that knows the right ones fairly well."""
    rng = np.random.default_rng(seed)
    true = rng.integers(0, size, count)
    logits = rng.normal(size=(count, size))
    logits[np.arange(count), true] += sharp
    shares = np.exp(logits)
    wrong = rng.random(count) < 0.1
    return np.where(wrong, rng.integers(0, size, count), true), shares / shares.sum(1, keepdims=True)


CASES: dict[str, Callable[[], tuple[np.ndarray, np.ndarray]]] = {
    "two labels": lambda: noisy(2, 60, 0),
    "few labels": lambda: noisy(4, 300, 1),
    "many labels": lambda: noisy(40, 900, 2, 4.0),
    "a label that nobody gave": lambda: (np.minimum(noisy(5, 200, 3)[0], 3), noisy(5, 200, 3)[1]),
    "one example of each label": lambda: (np.arange(6), noisy(6, 6, 4)[1]),
    "a useless classifier": lambda: (noisy(5, 200, 5)[0], noisy(5, 200, 6, 0.0)[1]),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore:May not flag all label issues")
def test_equal_to_cleanlab(name: str) -> None:
    labels, shares = CASES[name]()
    theirs = compute_confident_joint(labels, shares)
    assert np.array_equal(confident_joint(labels, shares), theirs)
    assert np.array_equal(joint(labels, shares), estimate_joint(labels, shares))
    for rule in RULES:
        wanted = find_label_issues(labels, shares, filter_by=CLEANLABS[rule], n_jobs=1)
        assert np.array_equal(label_issues(labels, shares, rule), wanted), rule
    assert np.array_equal(self_confidence(labels, shares), get_label_quality_scores(labels, shares))


def test_the_joint_is_the_papers() -> None:
    """Equations 1 to 3, example by example, before rounding to whole numbers."""
    labels, shares = noisy(4, 300, 7)
    t = [np.mean([p[k] for p, given in zip(shares, labels, strict=True) if given == k]) for k in range(4)]
    np.testing.assert_allclose(thresholds(labels, shares), t, rtol=1e-12)
    counts = np.zeros((4, 4))
    for p, given in zip(shares, labels, strict=True):
        reached = [k for k in range(4) if p[k] >= t[k]]
        if reached:
            counts[given, max(reached, key=lambda k: p[k])] += 1
    scaled = np.stack([row / row.sum() * (labels == k).sum() for k, row in enumerate(counts)])
    assert np.abs(confident_joint(labels, shares) - scaled).max() <= 1  # rows of whole numbers with the same sums
    assert np.array_equal(confident_joint(labels, shares).sum(1), np.bincount(labels))


def test_planted_errors_are_found() -> None:
    labels, shares = noisy(5, 1000, 8, 6.0)
    given = labels.copy()
    given[:50] = (labels[:50] + 1) % 5
    found = label_issues(given, shares, "class")
    assert found[:50].mean() > 0.9


@pytest.mark.parametrize(
    ("labels", "change", "said"),
    [
        ([0, 1], {"shape": (2, 1)}, "two labels or more"),
        ([0, 1, 1], {}, r"shapes \[3\] and \[2, 3\]"),
        ([0, 3], {}, "label of example 1 is not one of 0 … 2"),
        ([0, 1], {"value": np.nan}, "probabilities of example 1"),
        ([0, 1], {"value": 0.9}, "do not sum to 1"),
    ],
)
def test_bad_input_is_named(labels: list[int], change: dict[str, object], said: str) -> None:
    shares = np.full(change.get("shape", (2, 3)), 1 / 3)
    if "value" in change:
        shares[1, 0] = change["value"]
    with pytest.raises(ValueError, match=said):
        check(np.array(labels), shares)
