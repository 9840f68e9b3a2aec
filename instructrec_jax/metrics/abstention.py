"""Answering only what a score is sure of: the settings, and what a classifier gains by it."""

from dataclasses import dataclass

import numpy as np

from instructrec_jax.metrics.out_of_domain import ScoreName


@dataclass
class AbstainConfig:
    """Abstention of a classifier: a text whose score is below a threshold gets no label."""

    score: ScoreName | None = None  # max_probability, negative_energy, mahalanobis or knn; null: answer everything
    threshold: float | None = None  # the lowest score that is answered
    keep: float | None = None  # or the share of data.validation that is answered, such as 0.95


def check_abstain(config: AbstainConfig) -> None:
    """Raises ValueError for settings that do not say when to abstain, or say it twice."""
    given = [name for name in ("threshold", "keep") if getattr(config, name) is not None]
    if config.score is None:
        if given:
            raise ValueError(f"abstain.{given[0]} is set, but abstain.score is not: set it, too.")
        return
    if len(given) != 1:
        said = (
            "both abstain.threshold and abstain.keep are" if given else "neither abstain.threshold nor abstain.keep is"
        )
        raise ValueError(f"abstain.score is {config.score}, and {said} set: set one of them.")
    if config.threshold is not None and not np.isfinite(config.threshold):
        raise ValueError(f"abstain.threshold should be a finite number, but is {config.threshold}.")
    if config.keep is not None and not 0 < config.keep <= 1:
        raise ValueError(f"abstain.keep should be a share above 0 and at most 1, but is {config.keep:g}.")


def keeping(scores: np.ndarray, keep: float) -> float:
    """The highest threshold at or above which at least the share `keep` of the scores lies, float64 [cases].

    It is the midpoint of two scores, so that rounding moves none across it; of all cases, the lowest score less a
    rounding.

    Raises ValueError for no scores.
    """
    if not len(scores):
        raise ValueError(
            "abstain.keep takes its threshold from data.validation, which lists no sources: set abstain.threshold."
        )
    ordered = np.sort(scores)
    dropped = len(ordered) - int(np.ceil(keep * len(ordered) - 1e-9))
    lowest = ordered[dropped]
    below = ordered[:dropped][ordered[:dropped] < lowest]
    if len(below):
        return float((below[-1] + lowest) / 2)
    return float(lowest - 1e-6 * max(1.0, abs(lowest)))


def selective_metrics(scores: np.ndarray, right: np.ndarray, threshold: float) -> dict[str, float | None]:
    """What abstention gains: scores and right (0 or 1, or a share of it for ties), float64 [cases].

    Returns "answered" (share), "accuracy_answered" (None where nothing is), "accuracy" (of all cases), "aurc": the area
    under the risk-coverage curve (El-Yaniv & Wiener, 2010; Geifman & El-Yaniv, 2017), the mean of the error among the i
    highest scores over all i, and "aurc_of_errors_last", the least area that any score can have.
    """
    answered = scores >= threshold
    return {
        "answered": float(answered.mean()),
        "accuracy_answered": float(right[answered].mean()) if answered.any() else None,
        "accuracy": float(right.mean()),
        "aurc": risk_coverage_area(scores, right),
        "aurc_of_errors_last": risk_coverage_area(right, right),
    }


def risk_coverage_area(scores: np.ndarray, right: np.ndarray) -> float:
    """Mean over i of the error of the i highest scores; equal scores share their errors, whatever their order."""
    values, place = np.unique(-np.asarray(scores, np.float64), return_inverse=True)
    counts = np.bincount(place, minlength=len(values))
    errors = np.bincount(place, 1 - np.asarray(right, np.float64), minlength=len(values)) / counts
    risks = np.cumsum(np.repeat(errors, counts)) / np.arange(1, len(right) + 1)
    return float(risks.mean())
