"""Scores that tell texts of a classifier's domain from others: higher for texts like those of training.

    max_probability   max softmax(z)                          (Hendrycks & Gimpel, 2017)
    negative_energy   log Σ exp z                             (Liu et al., 2020)
    mahalanobis       −min over labels (v − μ)ᵀ Σ⁻¹ (v − μ)   (Lee et al., 2018), Σ shared by all labels
    knn               −distance of v / |v| to its k-th nearest training vector, of unit length, too (Sun et al., 2022)

z are the logits, v the vector that the head reads. As usual in the field, "in domain" is the positive class: the
true-positive rate is the share of texts in the domain that are accepted, the false-positive rate that of other texts.
"""

from dataclasses import dataclass
from typing import Literal, TypedDict

import numpy as np

from instructrec_jax.metrics.uncertainty import negative_energy, probabilities

ScoreName = Literal["max_probability", "negative_energy", "mahalanobis", "knn"]
OF_LOGITS: tuple[ScoreName, ...] = ("max_probability", "negative_energy")
OF_VECTORS: tuple[ScoreName, ...] = ("mahalanobis", "knn")
SCORES: tuple[ScoreName, ...] = (*OF_LOGITS, *OF_VECTORS)
NEIGHBORS = 10  # k of "knn"
BLOCK = 1 << 22  # numbers of a block of distances


class Roc(TypedDict):
    """A ROC of the scores of texts in the domain and of others.

    "fpr_at_95_tpr" is the false-positive rate of the highest threshold that accepts 95% of the texts in the domain. The
    first of the thresholds is infinite: nothing is accepted.
    """

    auroc: float
    fpr_at_95_tpr: float
    fpr: list[float]
    tpr: list[float]
    thresholds: list[float]


def logit_score(name: ScoreName, logits: np.ndarray) -> np.ndarray:
    """Score of logits [..., labels]: float64 [...]. name: one of `OF_LOGITS`."""
    return probabilities(logits).max(-1) if name == "max_probability" else negative_energy(logits)


def roc(inside: np.ndarray, outside: np.ndarray) -> Roc:
    """The ROC of scores in the domain and out of it, float [n] each, by scikit-learn."""
    from sklearn.metrics import roc_auc_score, roc_curve  # takes a second to import

    truth = np.repeat([1, 0], [len(inside), len(outside)])
    scores = np.concatenate([inside, outside])
    fpr, tpr, thresholds = roc_curve(truth, scores, drop_intermediate=False)
    return {
        "auroc": float(roc_auc_score(truth, scores)),
        "fpr_at_95_tpr": float(fpr[np.argmax(tpr >= 0.95)]),
        "fpr": fpr.tolist(),
        "tpr": tpr.tolist(),
        "thresholds": [*map(float, thresholds)],
    }


# ---------------------------------------------------------------- vectors


@dataclass(frozen=True)
class VectorStatistics:
    """What "mahalanobis" and "knn" know of the training vectors.

    Attributes:
      means: float64 [labels with examples, width].
      precision: float64 [width, width], the inverse of the shared covariance.
      vectors: float32 [vectors, width], of unit length.
    """

    means: np.ndarray
    precision: np.ndarray
    vectors: np.ndarray

    def score(self, name: ScoreName, vectors: np.ndarray) -> np.ndarray:
        """float64 [texts], of their vectors [texts, width]. name: one of `OF_VECTORS`."""
        vectors = np.asarray(vectors, np.float64)
        return self._mahalanobis(vectors) if name == "mahalanobis" else self._knn(vectors)

    def _mahalanobis(self, vectors: np.ndarray) -> np.ndarray:
        # (v − μ)ᵀ P (v − μ) as the length of Lᵀ (v − μ), P = L Lᵀ: never below 0
        root = np.linalg.cholesky(self.precision)
        return -_least_squares(vectors @ root, self.means @ root, 1)

    def _knn(self, vectors: np.ndarray) -> np.ndarray:
        squares = _least_squares(unit(vectors), self.vectors.astype(np.float64), min(NEIGHBORS, len(self.vectors)))
        return -np.sqrt(squares)


def _least_squares(points: np.ndarray, others: np.ndarray, k: int) -> np.ndarray:
    """The k-th smallest squared distance of each point to the others, float64 [points]."""
    rows = max(1, BLOCK // max(1, len(others)))
    found = [np.zeros(0)]
    for first in range(0, len(points), rows):
        some = points[first : first + rows]
        squares = (some**2).sum(1)[:, None] + (others**2).sum(1) - 2 * some @ others.T
        found.append(np.partition(np.maximum(squares, 0), k - 1, axis=1)[:, k - 1])
    return np.concatenate(found)


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors of length 1; a zero vector stays zero."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)


def vector_statistics(vectors: np.ndarray, labels: np.ndarray) -> VectorStatistics:
    """The statistics of training vectors [examples, width] and the numbers of their labels, int [examples].

    The covariance of the vectors around their label's mean is shrunk towards a multiple of the identity, so it has an
    inverse with few examples, too (Ledoit & Wolf, 2004; scikit-learn).

    Raises ValueError for vectors that are not finite, and for fewer than two.
    """
    from sklearn.covariance import ledoit_wolf  # takes a second to import

    vectors = np.asarray(vectors, np.float64)
    if len(vectors) < 2 or not np.isfinite(vectors).all():
        raise ValueError(f"{len(vectors)} training vectors, not all finite or too few: the run may have diverged.")
    known, place = np.unique(labels, return_inverse=True)
    means = np.zeros((len(known), vectors.shape[1]))
    np.add.at(means, place, vectors)
    means /= np.bincount(place)[:, None]
    around = vectors - means[place]
    if np.abs(around).max() <= 1e-12 * np.abs(vectors).max():
        raise ValueError("all training vectors of a label are equal, so they have no covariance: add examples.")
    covariance, _ = ledoit_wolf(around, assume_centered=True)
    return VectorStatistics(means, np.linalg.inv(covariance), unit(vectors).astype(np.float32))


# ---------------------------------------------------------------- how well scores tell texts apart


def domain_metrics(inside: np.ndarray, outside: np.ndarray, *, seed: int = 0, n: int = 300) -> dict[str, list[float]]:
    """AUROC, FPR@95TPR and AUPR of scores in the domain and out of it, float [n] each, with 95% bootstrap intervals.

    "aupr" takes the texts out of the domain as the positive class, which it should find: average precision.

    Returns name -> [value, low, high]. The bootstrap draws both kinds of texts anew, each with its number of texts.
    """
    from sklearn.metrics import average_precision_score

    rng = np.random.default_rng(seed)

    def measured(inside: np.ndarray, outside: np.ndarray) -> tuple[float, float, float]:
        truth = np.repeat([0, 1], [len(inside), len(outside)])
        aupr = average_precision_score(truth, -np.concatenate([inside, outside]))
        accepted = np.partition(inside, place := len(inside) - _at_least_95(len(inside)))[place]
        return auroc(inside, outside), float((outside >= accepted).mean()), float(aupr)

    values = measured(inside, outside)
    draws = [measured(rng.choice(inside, len(inside)), rng.choice(outside, len(outside))) for _ in range(n)]
    low, high = np.percentile(draws, [2.5, 97.5], axis=0).tolist()
    names = "auroc", "fpr_at_95_tpr", "aupr"
    return {name: list(each) for name, each in zip(names, zip(values, low, high, strict=True), strict=True)}


def _at_least_95(count: int) -> int:
    """The smallest number of `count` texts that is at least 95% of them, at least 1."""
    return max(1, -(-95 * count // 100))


def auroc(inside: np.ndarray, outside: np.ndarray) -> float:
    """The probability that a text in the domain has the higher score, plus half of that of a tie."""
    ordered = np.sort(outside)
    below, up_to = (np.searchsorted(ordered, inside, side=side).sum() for side in ("left", "right"))
    return float((int(below) + int(up_to)) / (2 * len(inside) * len(outside)))
