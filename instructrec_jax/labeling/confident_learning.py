"""Confident learning: which labels are probably wrong (Northcutt, Jiang & Chuang, 2021, JAIR 70, "Confident Learning:
Estimating Uncertainty in Dataset Labels").

All functions take given labels, int [n] in 0 … K − 1, and the probabilities of a classifier that did not see the
example, float64 [n, K]. They give what `cleanlab` gives; a test compares both.

Why our own: cleanlab needs pandas, starts processes, and the audit needs a tenth of it.
"""

from typing import Literal

import numpy as np

Rule = Literal["both", "class", "noise_rate"]
RULES: tuple[Rule, ...] = ("both", "class", "noise_rate")
EQUAL = 1e-6  # probabilities that differ by less are equal, as in cleanlab


def check(labels: np.ndarray, shares: np.ndarray) -> None:
    """Raises ValueError, naming the first bad row, unless labels and probabilities fit each other."""
    if shares.ndim != 2 or labels.shape != shares.shape[:1] or shares.shape[1] < 2:
        raise ValueError(
            f"confident learning needs labels [n] and probabilities [n, two labels or more], got shapes "
            f"{list(labels.shape)} and {list(shares.shape)}."
        )
    bad = ~np.isfinite(shares).all(1) | (shares < -EQUAL).any(1) | (np.abs(shares.sum(1) - 1) > 1e-3)
    if bad.any():
        raise ValueError(
            f"the probabilities of example {int(np.argmax(bad))} are not finite, negative or do not sum to 1."
        )
    outside = (labels < 0) | (labels >= shares.shape[1])
    if outside.any():
        raise ValueError(f"the label of example {int(np.argmax(outside))} is not one of 0 … {shares.shape[1] - 1}.")


def thresholds(labels: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """t_k: the mean probability of label k over the examples given it, float64 [K]; infinite for a label without any
    (equation 2 of the paper)."""
    counts = np.bincount(labels, minlength=shares.shape[1])
    sums = np.bincount(labels, self_confidence(labels, shares), shares.shape[1])
    return np.where(counts > 0, np.maximum(sums / np.maximum(counts, 1), 2 * EQUAL), np.inf)


def confident_joint(labels: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Estimated numbers of examples by (given label, true label), int64 [K, K] (equations 1 and 3 of the paper).

    An example counts for a label whose threshold its probability reaches, for its most probable label where it
    reaches several, and not at all where it reaches none. Each row is then scaled to the number of examples given
    that label.
    """
    size = shares.shape[1]
    reached = shares >= thresholds(labels, shares) - EQUAL
    several = reached.sum(1) > 1
    true = np.where(several, shares.argmax(1), reached.argmax(1))
    sure = reached.any(1)
    counts = np.bincount(labels[sure] * size + true[sure], minlength=size * size).reshape(size, size)
    np.fill_diagonal(counts, np.maximum(counts.diagonal(), 1))
    given = np.bincount(labels, minlength=size)
    scaled = counts / counts.sum(1, keepdims=True) * given[:, None]
    return np.apply_along_axis(_rounded, 1, scaled / scaled.sum() * given.sum())


def joint(labels: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """The estimated distribution of (given label, true label), float64 [K, K]; sums to 1."""
    counts = confident_joint(labels, shares)
    return counts / counts.sum()


def label_issues(labels: np.ndarray, shares: np.ndarray, rule: Rule = "class") -> np.ndarray:
    """Whether each label is probably wrong, bool [n] (section 3.2 of the paper).

    Args:
      rule: "noise_rate" (PBNR): for each pair of a given and another label, as many examples as the joint says, those
        with the largest margin between the two; "class" (PBC): for each given label, as many as the joint says are
        wrong, those with the smallest probability of it; "both": examples that both find.

    At least one example of each label stays, and an example whose most probable label is the given one always does.
    """
    check(labels, shares)
    wrong = _to_prune(confident_joint(labels, shares))
    found = np.ones(len(labels), bool)
    if rule in ("both", "noise_rate"):
        found &= _by_noise_rate(labels, shares, wrong)
    if rule in ("both", "class"):
        found &= _by_class(labels, shares, wrong)
    nearly = shares.copy()
    nearly[np.arange(len(labels)), labels] += EQUAL
    return found & (nearly.argmax(1) != labels)


def self_confidence(labels: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """The probability of each example's given label, float64 [n]: the lower, the more probably it is wrong."""
    return shares[np.arange(len(labels)), labels]


def _to_prune(counts: np.ndarray) -> np.ndarray:
    """The confident joint with at least one right example of each label, int64 [given, true]: what is added to the
    diagonal is taken from the rest of the row in equal parts."""
    right = np.maximum(counts.diagonal(), 1)
    others = np.maximum(np.count_nonzero(counts, axis=1) - 1, 1)
    left = np.maximum(counts - ((right - counts.diagonal()) / others)[:, None], 0)
    np.fill_diagonal(left, right)
    return left.astype(np.int64)


def _by_noise_rate(labels: np.ndarray, shares: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    found = np.zeros(len(labels), bool)
    for given in range(len(wrong)):
        own = np.flatnonzero(labels == given)
        for true in np.flatnonzero(wrong[given]) if len(own) > 1 else ():
            if true != given:
                margin = shares[own, true] - shares[own, given]
                found[own[np.argsort(-margin, kind="stable")[: wrong[given, true]]]] = True
    return found


def _by_class(labels: np.ndarray, shares: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    found = np.zeros(len(labels), bool)
    for given in range(len(wrong)):
        own = np.flatnonzero(labels == given)
        if len(own) > 1:
            worst = np.argsort(shares[own, given], kind="stable")
            found[own[worst[: max(0, len(own) - int(wrong[given, given]))]]] = True
    return found


def _rounded(row: np.ndarray) -> np.ndarray:
    """The row as whole numbers with the same sum, int64: those nearest to a half are rounded the other way."""
    whole = row.round()
    while missing := int(row.sum().round() - whole.sum()):
        order = np.argsort(row - whole)  # cleanlab's order, so that ties are rounded alike
        chosen = order[::-1][:missing] if missing > 0 else order[:-missing]
        whole[chosen] += np.sign(missing)
    return whole.astype(np.int64)
