"""The answer of the most similar training example: a translation memory, or a table of known questions."""

from collections.abc import Sequence

from instructrec_jax.tasks.tfidf import fitted_tfidf


def nearest_answers(train: Sequence[str], answers: Sequence[str], asked: Sequence[str]) -> list[str]:
    """For each text the answer to the training text with the largest cosine of TF-IDF vectors of character n-grams.

    Raises BaselineNotFitted where the training texts have none.
    """
    import numpy as np

    vectorizer = fitted_tfidf(train, analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True)
    known = vectorizer.transform(train)
    found = []
    for start in range(0, len(asked), 256):  # never is the table of all pairs held
        block = vectorizer.transform(asked[start : start + 256]) @ known.T
        found += [answers[int(place)] for place in np.asarray(block.argmax(axis=1)).ravel()]
    return found
