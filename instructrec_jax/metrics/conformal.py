"""Conformal prediction sets: as many labels as the wanted coverage needs.

Split conformal prediction (Vovk et al., 2005; Papadopoulos et al., 2002): the scores of n calibration cases with known
labels give a threshold, and a set has every label whose score does not exceed it. If the cases and a new one are
exchangeable, the set has the right label with a probability of at least the coverage, and of at most
coverage + 1 / (n + 1) where no scores are equal.

    lac   1 − p(label)                                   the smallest sets on average (Sadinle et al., 2019)
    aps   Σ of the probabilities above the label's, plus u · p(label), 0 <= u < 1     (Romano et al., 2020)

The u of a case is a hash of its text, so the same text always has the same set.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy

SetKind = Literal["lac", "aps"]
SET_KINDS: tuple[SetKind, ...] = ("lac", "aps")


def check_coverage(coverage: float) -> None:
    """Raises ValueError unless a coverage lies between 0 and 1."""
    if not 0 < coverage < 1:
        raise ValueError(f"--coverage should lie between 0 and 1, such as 0.9, but is {coverage:g}.")


def uniform_of(text: str) -> float:
    """The u of a text: at least 0, below 1; the same on every machine."""
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53  # as many bits as a float has


def set_scores(kind: SetKind, shares: np.ndarray, u: np.ndarray) -> np.ndarray:
    """The score of each label, float64 [cases, labels]: the smaller, the more plausible.

    Args:
      shares: probabilities, float64 [cases, labels].
      u: float64 [cases], see `uniform_of`; of "aps" only.
    """
    if kind == "lac":
        return 1 - shares
    order = np.argsort(-shares, axis=1, kind="stable")
    ranked = np.take_along_axis(shares, order, 1)
    found = np.empty_like(shares)
    np.put_along_axis(found, order, np.cumsum(ranked, 1) - ranked + u[:, None] * ranked, 1)
    return found


def threshold_of(scores: np.ndarray, coverage: float) -> float:
    """The ⌈(n + 1) coverage⌉-th smallest of the scores of the right labels, float64 [n].

    Raises ValueError where there are too few of them for this coverage, or one is not finite.
    """
    check_coverage(coverage)
    count = len(scores)
    # A product such as 10 · 0.9 can lie a rounding above its integer, which would cost one more case.
    rank = math.ceil((count + 1) * coverage - 1e-9)
    if rank > count:
        least = math.ceil(coverage / (1 - coverage) - 1e-9)
        raise ValueError(
            f"--coverage {coverage:g} needs at least {least:,} cases of data.validation, which has {count:,}: add "
            "some, or lower it."
        )
    if not np.isfinite(scores).all():
        raise ValueError("the outputs on data.validation are not finite: the run diverged. Train it again.")
    return float(np.partition(scores, rank - 1)[rank - 1])


@dataclass(frozen=True)
class ConformalSets:
    """Sets of labels with a coverage.

    Attributes:
      threshold: the largest score of a label in a set.
      cases: number of calibration cases.
    """

    kind: SetKind
    coverage: float
    threshold: float
    cases: int

    @classmethod
    def fit(
        cls, kind: SetKind, coverage: float, shares: np.ndarray, u: np.ndarray, truth: np.ndarray
    ) -> "ConformalSets":
        """shares: float64 [cases, labels]; u: float64 [cases]; truth: int [cases], the right labels' numbers."""
        own = np.take_along_axis(set_scores(kind, shares, u), truth[:, None], 1)[:, 0]
        return cls(kind, coverage, threshold_of(own, coverage), len(truth))

    def __call__(self, shares: np.ndarray, u: np.ndarray) -> np.ndarray:
        """bool [cases, labels]: whether a label is in the set of a case; a set may be empty."""
        return set_scores(self.kind, shares, u) <= self.threshold


def clopper_pearson(hits: int, cases: int, level: float = 0.95) -> tuple[float, float]:
    """The exact binomial interval of a share (Clopper & Pearson, 1934). Raises ValueError for no cases."""
    if not 0 <= hits <= cases or not cases:
        raise ValueError(f"{hits} of {cases} cases is no share.")
    tail = (1 - level) / 2
    low = 0.0 if hits == 0 else float(scipy.stats.beta.ppf(tail, hits, cases - hits + 1))
    high = 1.0 if hits == cases else float(scipy.stats.beta.ppf(1 - tail, hits + 1, cases - hits))
    return low, high


def set_metrics(sets: np.ndarray, truth: np.ndarray, labels: Sequence[str]) -> dict[str, object]:
    """How often sets have the right label, and how large they are.

    Args:
      sets: bool [cases, labels]; truth: int [cases].

    Returns "cases", "covered" (share), "interval" (95%, of Clopper and Pearson), "mean_size", "singletons" and "empty"
    (shares), and "labels": for each label with cases their number, "covered" and "mean_size".
    """
    right, sizes = sets[np.arange(len(truth)), truth], sets.sum(1)
    by_label = {}
    for number, label in enumerate(labels):
        own = truth == number
        if own.any():
            by_label[label] = {
                "cases": int(own.sum()),
                "covered": float(right[own].mean()),
                "mean_size": float(sizes[own].mean()),
            }
    return {
        "cases": len(truth),
        "covered": float(right.mean()),
        "interval": list(clopper_pearson(int(right.sum()), len(truth))),
        "mean_size": float(sizes.mean()),
        "singletons": float((sizes == 1).mean()),
        "empty": float((sizes == 0).mean()),
        "labels": by_label,
    }
