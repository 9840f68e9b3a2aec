"""Thresholds of out-of-scope requests, compared with brute force."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from instructrec_jax.answering.out_of_scope import Threshold, TunedThreshold, choose, read_threshold, write_threshold
from instructrec_jax.files import read_json, write_json
from instructrec_jax.metrics.out_of_domain import OF_LOGITS, logit_score, roc


def test_the_threshold_is_the_lowest_that_keeps_the_rate() -> None:
    rng = np.random.default_rng(0)
    inside, outside = rng.normal(1, 1, 80).round(1), rng.normal(-1, 1, 60).round(1)  # with ties
    curve = roc(inside, outside)
    truth = np.repeat([1, 0], [80, 60])
    assert curve["auroc"] == pytest.approx(roc_auc_score(truth, np.concatenate([inside, outside])))
    ties = (inside[:, None] > outside).mean() + 0.5 * (inside[:, None] == outside).mean()
    assert curve["auroc"] == pytest.approx(ties)
    seen = np.unique(np.concatenate([inside, outside]))
    for rate in (0.0, 0.05, 0.3, 0.9):
        chosen = choose(curve, rate)
        allowed = [t for t in seen if (outside >= t).mean() <= rate]
        assert chosen["tpr"] == (inside >= min(allowed)).mean() == (inside >= chosen["threshold"]).mean()
        assert chosen["fpr"] == (outside >= min(allowed)).mean() == (outside >= chosen["threshold"]).mean()
    taking = max(t for t in seen if (inside >= t).mean() >= 0.95)
    assert curve["fpr_at_95_tpr"] == (outside >= taking).mean()


def test_thresholds_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="--false_positive_rate"):
        choose(roc(np.array([0.0, 1.0]), np.array([2.0, 3.0])), 0.0)
    with pytest.raises(ValueError, match="--false_positive_rate"):
        choose(roc(np.array([0.0]), np.array([2.0])), 1.5)


def test_a_perfect_score_and_a_useless_one() -> None:
    assert roc(np.array([2.0, 3.0]), np.array([0.0, 1.0]))["auroc"] == 1
    useless = roc(np.ones(4), np.ones(4))
    assert useless["auroc"] == 0.5 and useless["fpr_at_95_tpr"] == 1
    with pytest.raises(ValueError, match="--false_positive_rate"):
        choose(useless, 0.5)


def test_a_threshold_lies_between_two_scores() -> None:
    """So that rounding of a score, in another batch, does not change its verdict."""
    chosen = choose(roc(np.array([2.0, 3.0]), np.array([0.0, 1.0])), 0.0)
    assert 1 < chosen["threshold"] < 2 and (chosen["tpr"], chosen["fpr"]) == (1, 0)
    everything = choose(roc(np.array([2.0, 3.0]), np.array([0.0, 1.0])), 0.99)
    assert everything["fpr"] == 0.5 and 0 < everything["threshold"] < 1


def test_files_hold_what_is_returned(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    inside, outside = rng.normal(size=(40, 3)) * 3, rng.normal(size=(30, 3))
    scores = {name: (logit_score(name, inside), logit_score(name, outside)) for name in OF_LOGITS}
    for name in OF_LOGITS:
        found = write_threshold(tmp_path, scores, name, 0.1, "these weights")
        assert read_json(tmp_path / "threshold.json", Threshold) == found
        assert read_json(tmp_path / "threshold.json", TunedThreshold)["threshold"] == found["threshold"]
        assert (found["in_scope"], found["out_of_scope"], found["score"]) == (40, 30, name) and found["fpr"] <= 0.1
        curves = read_json(tmp_path / "roc.json", dict[str, dict[str, object]])
        assert set(curves) == set(OF_LOGITS) and curves[name]["auroc"] == found["auroc"]
        assert (tmp_path / "roc.png").read_bytes().startswith(b"\x89PNG")


def test_a_threshold_of_other_weights_is_named(tmp_path: Path) -> None:
    file = tmp_path / "threshold.json"
    assert read_threshold(file, lambda: "now") is None
    kept = {"score": "knn", "threshold": -0.5, "identity": "then"}
    write_json(file, kept)
    assert read_threshold(file, lambda: "then") == kept
    with pytest.raises(ValueError, match="threshold.json was tuned for another checkpoint"):
        read_threshold(file, lambda: "now")
