"""Logistic regression on fixed features: the one behind audits, simulated labeling and heads on frozen vectors."""

from typing import Any

import numpy as np

STRENGTH = 10.0  # C of scikit-learn: its default 1 leaves probabilities over many labels nearly equal


def logistic_regression(features: Any, labels: np.ndarray) -> Any:
    """A fitted model of scikit-learn, with an L2 penalty.

    Args:
      features: [examples, features], dense or sparse.
      labels: int [examples], of at least two labels.
    """
    from sklearn.linear_model import LogisticRegression  # takes a second to import

    return LogisticRegression(max_iter=1000, C=STRENGTH).fit(features, labels)


def logistic_head(features: np.ndarray, labels: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """(kernel float32 [features, size], bias float32 [size]) whose softmax gives the probabilities of the regression.

    Args:
      features: float [examples, features].
      labels: int [examples]; each of 0 … size − 1 occurs.

    Raises ValueError for features that are not finite, and for a label without an example.
    """
    if not np.isfinite(features).all():
        raise ValueError("the vectors of the training examples are not finite: the model may have diverged.")
    if len(np.unique(labels)) < size:
        raise ValueError(f"a logistic head needs examples of all {size} labels, but has {len(np.unique(labels))}.")
    model = logistic_regression(features.astype(np.float64), labels)
    kernel, bias = model.coef_.T, model.intercept_
    if size == 2:  # scikit-learn fits one logit, that of the second label
        kernel, bias = np.concatenate([0 * kernel, kernel], 1), np.concatenate([0 * bias, bias])
    return kernel.astype(np.float32), bias.astype(np.float32)
