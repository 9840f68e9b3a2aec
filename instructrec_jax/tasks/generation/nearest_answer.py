"""Baseline: the answer of the most similar training example, as in a translation memory."""

from collections.abc import Sequence

from instructrec_jax.tasks.tfidf import fitted_tfidf


def nearest_answers(train: Sequence[str], answers: Sequence[str], asked: Sequence[str]) -> list[str]:
    """For each text, the answer of the training text with the highest TF-IDF cosine of character n-grams.

    Raises BaselineNotFitted where the training texts have no n-grams.
    """
    import numpy as np

    vectorizer = fitted_tfidf(train, analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True)
    known = vectorizer.transform(train)
    found = []
    for start in range(0, len(asked), 256):  # in blocks, to bound memory
        block = vectorizer.transform(asked[start : start + 256]) @ known.T
        found += [answers[int(place)] for place in np.asarray(block.argmax(axis=1)).ravel()]
    return found
