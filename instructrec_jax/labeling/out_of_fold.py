"""Probabilities of labels from classifiers that did not see the example: k folds of logistic regression.

Features are TF-IDF of words (of each fold's training texts alone), or vectors of a frozen backbone.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from instructrec_jax.tasks.logistic import logistic_regression
from instructrec_jax.tasks.tfidf import fitted_tfidf

# (numbers to fit on, numbers to predict) -> the features of both, [examples, features] each
Features = Callable[[np.ndarray, np.ndarray], tuple[Any, Any]]


def tfidf_features(texts: Sequence[str]) -> Features:
    """TF-IDF of words, of the texts that are fitted on."""

    def features(seen: np.ndarray, asked: np.ndarray) -> tuple[Any, Any]:
        words = fitted_tfidf([texts[number] for number in seen])
        return tuple(words.transform([texts[number] for number in some]) for some in (seen, asked))

    return features


def vector_features(vectors: np.ndarray) -> Features:
    """Rows of float32 [texts, width]."""
    return lambda seen, asked: (vectors[seen], vectors[asked])


def dealt(labels: np.ndarray, groups: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """The fold of each example, int64 [n] in 0 … folds − 1: a group stays together, and folds have the same shares of
    each label as far as that allows.

    Args:
      labels: int [n].
      groups: int [n]; examples of one number (duplicates) are one group.
    """
    _, firsts, group = np.unique(groups, return_index=True, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(firsts))
    order = order[np.argsort(labels[firsts[order]], kind="stable")]  # by label, and in random order for each
    fold = np.empty(len(firsts), np.int64)
    fold[order] = np.arange(len(firsts)) % folds
    return fold[group]


def out_of_fold(
    features: Features, labels: np.ndarray, groups: np.ndarray, size: int, *, folds: int = 5, seed: int = 0
) -> np.ndarray:
    """Out-of-fold probabilities, float64 [n, size]; a label that is in one fold only has probability 0 there.

    Args:
      labels: int [n], in 0 … size − 1.
      groups: as in `dealt`.
      folds: at least 2.

    Raises ValueError for fewer groups than folds, and where a fold leaves examples of only one label.
    """
    count = len(np.unique(groups))
    if folds < 2 or count < folds:
        raise ValueError(f"{count} different texts cannot be divided into {folds} folds: choose --folds 2 to {count}.")
    fold, shares = dealt(labels, groups, folds, seed), np.zeros((len(labels), size))
    for number in range(folds):
        seen, asked = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
        if len(np.unique(labels[seen])) < 2:
            raise ValueError("the labels cannot be audited: all examples outside of one fold have the same label.")
        given, wanted = features(seen, asked)
        shares[asked] = fitted_shares(given, labels[seen], wanted, size)
    return shares


def fitted_shares(given: Any, labels: np.ndarray, wanted: Any, size: int) -> np.ndarray:
    """Probabilities by a logistic regression, float64 [wanted, size].

    Args:
      given, wanted: features of the examples to fit on and to predict, [examples, features].
      labels: int [given].
    """
    model = logistic_regression(given, labels)
    shares = np.zeros((wanted.shape[0], size))
    shares[:, model.classes_] = model.predict_proba(wanted)
    return shares
