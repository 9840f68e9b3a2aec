"""TF-IDF vectors (scikit-learn), for baselines."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from instructrec_jax.tasks.scores import BaselineNotFitted

if TYPE_CHECKING:
    from sklearn.feature_extraction.text import TfidfVectorizer


def fitted_tfidf(texts: Sequence[str], **settings: object) -> "TfidfVectorizer":
    """A scikit-learn vectorizer with these settings, fitted on texts.

    Raises BaselineNotFitted where no text has a word (by default, two letters or more).
    """
    from sklearn.feature_extraction.text import TfidfVectorizer  # takes a second to import

    vectorizer = TfidfVectorizer(**settings)
    try:
        return vectorizer.fit(texts)
    except ValueError as error:
        raise BaselineNotFitted(f"not fitted: TF-IDF of the training texts: {error}") from error
