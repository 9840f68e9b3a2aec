"""TF-IDF vectors (scikit-learn's), which several baselines begin with."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from instructrec_jax.tasks.base import BaselineNotFitted

if TYPE_CHECKING:
    from sklearn.feature_extraction.text import TfidfVectorizer


def fitted_tfidf(texts: Sequence[str], **settings: Any) -> "TfidfVectorizer":
    """A vectorizer of scikit-learn with these settings, fitted on texts.

    Raises BaselineNotFitted where it finds no word in any of them: its default keeps words of two letters or more.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer  # it takes a second to import

    vectorizer = TfidfVectorizer(**settings)
    try:
        return vectorizer.fit(texts)
    except ValueError as error:
        raise BaselineNotFitted(f"not fitted: TF-IDF of the training texts: {error}") from error
