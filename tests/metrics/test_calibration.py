"""Calibration against a sum written out case by case."""

import math

import numpy as np
import pytest

from instructrec_jax.metrics.calibration import expected_calibration_error, reliability


def test_expected_calibration_error_is_the_sum_over_bins() -> None:
    rng = np.random.default_rng(0)
    confidence = np.concatenate([rng.random(200), [0.0, 0.2, 1.0]])  # edges too
    correct = rng.random(203) < confidence
    bins: dict[int, list[int]] = {}
    for case, value in enumerate(confidence.tolist()):
        bins.setdefault(next(b for b in range(5) if value <= (b + 1) / 5), []).append(case)
    expected = 0.0
    for cases in bins.values():
        gap = math.fsum(float(correct[c]) - float(confidence[c]) for c in cases) / len(cases)
        expected += len(cases) / 203 * abs(gap)
    assert expected_calibration_error(confidence, correct, bins=5) == pytest.approx(expected, abs=1e-12)
    assert [row["cases"] for row in reliability(confidence, correct, 5)] == [len(bins[b]) for b in sorted(bins)]


def test_what_cannot_be_confidence() -> None:
    with pytest.raises(ValueError, match="confidence"):
        reliability([1.2], [True])
    with pytest.raises(ValueError, match="confidence and correct"):
        reliability([0.5], [True, False])
