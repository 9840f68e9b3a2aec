"""Out-of-fold probabilities: folds keep groups together, and no example is seen by its own classifier."""

import numpy as np
import pytest

from instructrec_jax.labeling.out_of_fold import dealt, fitted_shares, out_of_fold, tfidf_features, vector_features


def test_folds_keep_groups_and_shares() -> None:
    labels = np.repeat(np.arange(4), 50)
    groups = np.arange(200) // 2 * 2
    fold = dealt(labels, groups, 5, 0)
    assert np.array_equal(fold[::2], fold[1::2])
    counts = np.array([np.bincount(labels[fold == number], minlength=4) for number in range(5)])
    assert counts.min() == counts.max() == 10
    assert np.array_equal(fold, dealt(labels, groups, 5, 0)) and not np.array_equal(fold, dealt(labels, groups, 5, 1))


def test_each_row_is_of_a_classifier_without_its_fold() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(30) % 3
    vectors = rng.normal(size=(30, 4)) + np.eye(3, 4)[labels]
    groups = np.arange(30)
    shares = out_of_fold(vector_features(vectors), labels, groups, 4, folds=3, seed=1)
    fold = dealt(labels, groups, 3, 1)
    for number in range(3):
        alone = fitted_shares(vectors[fold != number], labels[fold != number], vectors[fold == number], 4)
        np.testing.assert_array_equal(shares[fold == number], alone)
    np.testing.assert_allclose(shares.sum(1), 1, rtol=1e-12)
    assert not shares[:, 3].any()  # a label that no example has


def test_words_are_those_of_the_other_folds() -> None:
    seen: list[int] = []
    features = tfidf_features(["one two", "two three", "unknown words"])
    given, wanted = features(np.array([0, 1]), np.array([2]))
    seen += [given.shape[1], wanted.nnz]
    assert seen == [3, 0]


def test_bad_input_is_named() -> None:
    features = vector_features(np.eye(6))
    labels, groups = np.arange(6) % 2, np.arange(6)
    for folds, own in ((1, groups), (7, groups), (3, groups // 3)):
        with pytest.raises(ValueError, match="cannot be divided into . folds: choose --folds"):
            out_of_fold(features, labels, own, 2, folds=folds)
    with pytest.raises(ValueError, match="have the same label"):
        out_of_fold(features, np.zeros(6, int), groups, 2, folds=3)
