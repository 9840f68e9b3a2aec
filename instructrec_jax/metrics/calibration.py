"""Calibration: the confidence of predictions compared with their accuracy (Guo et al., 2017)."""

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

Way = Literal["temperature", "per_class"]  # to scale logits, see `tasks.recalibration`
WAYS: tuple[Way, ...] = ("temperature", "per_class")


def reliability(confidence: ArrayLike, correct: ArrayLike, bins: int = 15) -> list[dict[str, float]]:
    """The rows of a reliability diagram: one per non-empty bin of confidence, of equal width.

    Args:
      confidence: float [cases], probability of the prediction, from 0 to 1; 0 is in the first bin.
      correct: bool [cases], or float: the expected accuracy where several labels tie.

    Returns "low", "high" (low < confidence <= high), "cases", mean "confidence" and "accuracy" of each bin.
    """
    confidence, correct = np.asarray(confidence, np.float64), np.asarray(correct, np.float64)
    if confidence.shape != correct.shape or confidence.ndim != 1 or not len(confidence):
        raise ValueError(f"confidence and correct must both be [cases], got {confidence.shape} and {correct.shape}.")
    if not ((confidence >= 0) & (confidence <= 1)).all():
        raise ValueError("confidence must be between 0 and 1.")
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    rows = []
    for number in np.unique(place):
        inside = place == number
        rows.append(
            {
                "low": float(number / bins),
                "high": float((number + 1) / bins),
                "cases": int(inside.sum()),
                "confidence": float(confidence[inside].mean()),
                "accuracy": float(correct[inside].mean()),
            }
        )
    return rows


def expected_calibration_error(confidence: ArrayLike, correct: ArrayLike, bins: int = 15) -> float:
    """Σ (cases of a bin / cases) |accuracy − confidence| over the bins of `reliability`."""
    rows = reliability(confidence, correct, bins)
    total = sum(row["cases"] for row in rows)
    return sum(row["cases"] / total * abs(row["accuracy"] - row["confidence"]) for row in rows)
