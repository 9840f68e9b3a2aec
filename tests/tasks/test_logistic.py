"""The logistic head is scikit-learn's regression, in float32 parameters."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from instructrec_jax.tasks.logistic import STRENGTH, logistic_head


@pytest.mark.parametrize("size", [2, 5])
def test_the_head_is_scikit_learns(size: int) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(40) % size
    features = (rng.normal(size=(40, 6)) + np.eye(size, 6)[labels]).astype(np.float32)
    kernel, bias = logistic_head(features, labels, size)
    logits = features.astype(np.float64) @ kernel + bias
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = LogisticRegression(max_iter=1000, C=STRENGTH).fit(features.astype(np.float64), labels)
    np.testing.assert_allclose(shares, expected.predict_proba(features.astype(np.float64)), atol=1e-6)
    with pytest.raises(ValueError, match=f"examples of all {size + 1} labels, but has {size}"):
        logistic_head(features, labels, size + 1)
    with pytest.raises(ValueError, match="not finite: the model may have diverged"):
        logistic_head(features * np.nan, labels, size)
