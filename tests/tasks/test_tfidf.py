"""TF-IDF against its formula in float64."""

import numpy as np
import pytest

from instructrec_jax.tasks.scores import BaselineNotFitted
from instructrec_jax.tasks.tfidf import fitted_tfidf

TEXTS = ["old film film", "new film", "old old book"]


def test_weights_are_counts_times_the_smooth_idf_of_unit_length() -> None:
    """idf = ln((1 + n) / (1 + df)) + 1, as in scikit-learn's user guide."""
    vectorizer = fitted_tfidf(TEXTS)
    words = sorted({word for text in TEXTS for word in text.split()})
    assert sorted(vectorizer.vocabulary_) == words
    counts = np.array([[text.split().count(word) for word in words] for text in TEXTS], np.float64)
    idf = np.log((1 + 3) / (1 + (counts > 0).sum(0))) + 1
    expected = counts * idf
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(vectorizer.transform(TEXTS).toarray(), expected, atol=1e-12)
    assert vectorizer.transform(["unknown words"]).nnz == 0


def test_settings_reach_scikit_learn() -> None:
    assert fitted_tfidf(TEXTS, max_features=1).vocabulary_ == {"film": 0}
    assert "ol" in fitted_tfidf(TEXTS, analyzer="char_wb", ngram_range=(2, 2)).vocabulary_


@pytest.mark.parametrize("texts", [[], [""], ["a b", "c"], ["!?"]])
def test_texts_without_words_fit_no_baseline(texts: list[str]) -> None:
    with pytest.raises(BaselineNotFitted, match="TF-IDF"):
        fitted_tfidf(texts)
