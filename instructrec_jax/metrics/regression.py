"""Regression metrics: mean squared error, Pearson and Spearman correlation (thin wrappers of scipy)."""

import warnings

import numpy as np
from numpy.typing import ArrayLike

from instructrec_jax.metrics.bootstrap import CorpusMetric


def regression_metrics(targets: ArrayLike, predictions: ArrayLike) -> dict[str, float]:
    """{"mse", "pearson", "spearman"} of float [cases], computed in float64.

    A correlation with constant targets or predictions (or a single case) is undefined; it is reported as 0.0, with a
    warning. Raises ValueError for NaN, infinity or shapes that differ.
    """
    truth = np.asarray(targets, dtype=np.float64)
    guess = np.asarray(predictions, dtype=np.float64)
    if truth.shape != guess.shape or truth.ndim != 1 or not truth.size:
        raise ValueError(f"targets and predictions must both be [cases], got {truth.shape} and {guess.shape}.")
    for name, array in (("targets", truth), ("predictions", guess)):
        if not (finite := np.isfinite(array)).all():
            raise ValueError(
                f"{(~finite).sum()} of {len(array)} {name} are not finite, first case {np.argmin(finite)}."
            )
        if np.ptp(array) == 0:
            warnings.warn(f"all {name} are {array[0]:g}: correlations are undefined, reported as 0", stacklevel=2)
    from scipy import stats  # takes a second to import

    constant = np.ptp(truth) == 0 or np.ptp(guess) == 0
    return {
        "mse": float(np.mean((truth - guess) ** 2)),
        "pearson": 0.0 if constant else float(stats.pearsonr(truth, guess).statistic),
        "spearman": 0.0 if constant else float(stats.spearmanr(truth, guess).statistic),
    }


def resampled_correlations(targets: ArrayLike, predictions: ArrayLike) -> dict[str, CorpusMetric]:
    """ "pearson" and "spearman" on resamples of the cases, NaN on a constant resample; {} for constant values."""
    truth, guess = np.asarray(targets, np.float64), np.asarray(predictions, np.float64)
    if np.ptp(truth) == 0 or np.ptp(guess) == 0:
        return {}

    from scipy import stats

    def pearson(drawn: np.ndarray) -> float:
        return _correlation(truth[drawn], guess[drawn])

    def spearman(drawn: np.ndarray) -> float:
        return _correlation(stats.rankdata(truth[drawn]), stats.rankdata(guess[drawn]))

    return {"pearson": CorpusMetric(pearson, len(truth)), "spearman": CorpusMetric(spearman, len(truth))}


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float("nan") if np.ptp(a) == 0 or np.ptp(b) == 0 else float(np.corrcoef(a, b)[0, 1])
