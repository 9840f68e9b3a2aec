"""The answer of the most similar training text."""

import numpy as np
import pytest

from instructrec_jax.tasks.generation.nearest_answer import nearest_answers
from instructrec_jax.tasks.scores import BaselineNotFitted
from instructrec_jax.tasks.tfidf import fitted_tfidf

WORDS = "film book war love space crime music old new dull bright long".split()


def texts(count: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, 5)) for _ in range(count)]


def test_a_known_text_gets_its_own_answer_in_any_case_and_spacing() -> None:
    train = texts(40, 0)
    answers = [f"answer {text}" for text in train]
    assert nearest_answers(train, answers, train) == answers
    assert nearest_answers(train, answers, [f"  {text.upper()} " for text in train]) == answers


@pytest.mark.parametrize("count", [1, 255, 256, 257, 600])
def test_blocks_make_no_difference_and_cosines_decide(count: int) -> None:
    train, asked = texts(30, 1), texts(count, 2)
    vectorizer = fitted_tfidf(train, analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True)
    cosines = (vectorizer.transform(asked) @ vectorizer.transform(train).T).toarray()
    found = [int(place) for place in nearest_answers(train, [str(n) for n in range(30)], asked)]
    np.testing.assert_allclose(cosines[np.arange(count), found], cosines.max(1), atol=1e-12)


def test_a_text_that_is_like_none_gets_some_answer() -> None:
    assert nearest_answers(["film", "book"], ["a", "b"], ["§§§"])[0] in ("a", "b")
    assert nearest_answers(["film"], ["a"], []) == []


def test_nothing_to_compare_with() -> None:
    with pytest.raises(BaselineNotFitted):
        nearest_answers(["", " "], ["a", "b"], ["film"])
