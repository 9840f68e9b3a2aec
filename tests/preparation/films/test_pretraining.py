"""Text for the embedded backbone: quotations of the glossary, and requests in training wordings only."""

import numpy as np

from instructrec_jax.preparation.films.pretraining import pretraining_texts, quote
from instructrec_jax.preparation.films.texts import bare, facts, glossary, held_out_phrases


def test_quotations_are_words_in_a_row_without_held_out_phrases() -> None:
    rng = np.random.default_rng(0)
    sizes = set()
    for subject in list(glossary())[:10] * 20:
        text = quote(subject, rng)
        begins, *words = text.split()
        assert begins in ("with", "about", "where", "like")
        assert any(f" {' '.join(words)} " in f" {bare(line)} " for line in glossary()[subject]), text
        assert not [phrase for phrase in held_out_phrases() if f" {phrase} " in f" {text} "]
        sizes.add(len(words))
    assert sizes == {1, 2, 3, 4, 5, 6}


def test_texts_are_a_function_of_the_seed_and_name_every_film() -> None:
    texts = pretraining_texts(requests=20)
    assert texts == pretraining_texts(requests=20)
    other = pretraining_texts(seed=1, requests=20)
    assert texts[:-20] == other[:-20] and texts[-20:] != other[-20:]
    assert all(sum(film["blurb"] == text for text in texts) == 1 for film in facts())
    assert all(texts) and len(pretraining_texts(requests=0)) == len(texts) - 20
