import re
import warnings

import numpy as np
import pytest
from sklearn import metrics as sk

from instructrec_jax.metrics.classification import (
    classification_metrics,
    classification_report,
    guesses,
    multilabel_metrics,
    multilabel_report,
    resampled_macro_f1,
    resampled_multilabel_f1,
    resampled_token_f1,
)

LABELS = ["bad", "fair", "good"]


def f1(truth, guess):
    hits = sum(t and g for t, g in zip(truth, guess, strict=True))
    return 2 * hits / (sum(truth) + sum(guess)) if sum(truth) + sum(guess) else 0.0


def test_single_label_against_counting():
    rng = np.random.default_rng(0)
    truth, guess = rng.choice(LABELS, 200).tolist(), rng.choice(LABELS, 200).tolist()
    found = classification_metrics(truth, guess, LABELS)
    accuracy = sum(t == g for t, g in zip(truth, guess, strict=True)) / 200
    macro = np.mean([f1([t == x for t in truth], [g == x for g in guess]) for x in LABELS])
    assert found == pytest.approx({"accuracy": accuracy, "macro_f1": macro, "micro_f1": accuracy})
    table, text = classification_report(truth, guess, LABELS)
    assert table["macro avg"]["f1-score"] == pytest.approx(macro)
    assert table["good"]["support"] == truth.count("good") and all(label in text for label in LABELS)


def test_constant_predictions_are_defined_and_named():
    found = classification_metrics(["bad", "good", "good"], ["good"] * 3, LABELS)
    _, report = classification_report(["bad", "good", "good"], ["good"] * 3, LABELS)
    assert "never predicted" in report and "in the targets" not in report
    assert found["macro_f1"] == pytest.approx(0.8 / 2)  # "fair" does not occur: it is no part of the mean
    assert found["accuracy"] == pytest.approx(2 / 3)


def test_single_label_bad_input():
    with pytest.raises(ValueError, match="'goood'"):
        classification_metrics(["good"], ["goood"], LABELS)
    with pytest.raises(ValueError, match="predictions"):
        classification_metrics(["good"], [], LABELS)


def test_multilabel_against_counting():
    rng = np.random.default_rng(1)
    truth, guess = rng.integers(0, 2, (50, 3)), rng.integers(0, 2, (50, 3))
    found = multilabel_metrics(truth, guess, LABELS)
    per_case = [f1(t, g) if t.any() or g.any() else 1.0 for t, g in zip(truth, guess, strict=True)]
    expected = {
        "subset_accuracy": np.mean([(t == g).all() for t, g in zip(truth, guess, strict=True)]),
        "macro_f1": np.mean([f1(truth[:, i], guess[:, i]) for i in range(3)]),
        "micro_f1": f1(truth.ravel(), guess.ravel()),
        "sample_f1": np.mean(per_case),
    }
    assert found == pytest.approx(expected)
    table, text = multilabel_report(truth, guess, LABELS)
    assert table["fair"]["support"] == truth[:, 1].sum() and "fair" in text


def test_multilabel_edge_cases():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        empty = multilabel_metrics(np.zeros((2, 3)), np.zeros((2, 3)), LABELS)
    assert set(empty.values()) == {1.0}
    assert multilabel_metrics([[1, 0, 0]], [[0, 1, 0]], LABELS)["micro_f1"] == 0
    _, report = multilabel_report([[1, 0, 0]], [[0, 1, 0]], LABELS)
    assert re.search(f"never predicted.*{LABELS[0]}", report)
    assert re.search(f"never in the targets.*{LABELS[1]}", report)
    with pytest.raises(ValueError, match="threshold"):
        multilabel_metrics([[1, 0, 0]], [[0.5, 0, 0]], LABELS)
    with pytest.raises(ValueError, match="3 labels"):
        multilabel_metrics([[1, 0]], [[1, 0]], LABELS)


def test_equal_scores_share_the_prediction():
    """A classifier that scores all labels alike gets what guessing gets, whichever label is listed first."""
    targets = np.array([0, 0, 0, 1, 2])
    names = ["a", "b", "c"]
    found = guesses(np.zeros((5, 3)))
    np.testing.assert_allclose(found.right(targets), 1 / 3)
    pairs = [names[targets[i]] for i in found.case], [names[i] for i in found.label]
    metrics = classification_metrics(*pairs, names, found.share)
    assert metrics["accuracy"] == pytest.approx(1 / 3)
    f1 = [2 * n / 3 / (5 / 3 + n) for n in (3, 1, 1)]  # expected hits, predicted and true cases of each label
    assert metrics["macro_f1"] == pytest.approx(np.mean(f1))
    assert resampled_macro_f1(targets, found).value(np.arange(5)) == pytest.approx(np.mean(f1))
    mixed = guesses([[0.5, 0.5, 0.0], [0.1, 0.2, 0.7]])
    assert mixed.right(np.array([1, 2])).tolist() == [0.5, 1] and mixed.first.tolist() == [0, 2]


def test_corpus_metrics_of_any_cases_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    truth, guess = rng.integers(0, 4, 60), rng.integers(0, 4, 60)
    drawn = rng.integers(0, 60, 60)
    single = resampled_macro_f1(truth, guesses(np.eye(4)[guess]))
    assert single.value(drawn) == pytest.approx(sk.f1_score(truth[drawn], guess[drawn], average="macro"))
    several, found = rng.integers(0, 2, (60, 4)), rng.integers(0, 2, (60, 4))
    for name, metric in resampled_multilabel_f1(several, found).items():
        expected = multilabel_metrics(several[drawn], found[drawn], list("abcd"))[name]
        assert metric.value(drawn) == pytest.approx(expected)
    texts, tags = [["a", "b"], ["b"], ["c", "a", "a"]], [["a", "a"], ["b"], ["c", "b", "a"]]
    again = [0, 2, 2]
    flat = [tag for i in again for tag in texts[i]], [tag for i in again for tag in tags[i]]
    value = resampled_token_f1(texts, tags, list("abc")).value(np.array(again))
    assert value == pytest.approx(classification_metrics(*flat)["macro_f1"])
