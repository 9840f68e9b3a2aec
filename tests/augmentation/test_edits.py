"""Each change of tokens, with given random numbers."""

import itertools
from collections.abc import Callable, Iterable

import pytest

from instructrec_jax.augmentation.edits import (
    Token,
    deleted,
    joined,
    misspelled,
    neighbors,
    replaced,
    split,
    swapped,
    typo,
)


class Words:
    """A thesaurus in memory."""

    files = ()

    def synonyms(self, word: str) -> tuple[str, ...]:
        return {"good": ("fine", "great"), "film": ("movie",), "in": ("inch",)}.get(word, ())


def given(*numbers: float) -> Callable[[], float]:
    return iter(numbers).__next__


def every(numbers: Iterable[float]) -> Callable[[], float]:
    return itertools.cycle(numbers).__next__


def fixed(text: str, *words: str) -> list[Token]:
    return [Token(t.text, t.space, t.number, t.text not in words) for t in split(text)]


def test_tokens_and_spaces_make_the_text() -> None:
    text = "a  (very)\tgood film,\nby x@y.org 3 don't 12th"
    tokens = split(text)
    assert joined(tokens) == text
    assert [t.core for t in tokens] == ["a", "very", "good", "film", "by", "", "", "don't", ""]
    assert [t.text for t in tokens if t.bare] == ["a", "good", "by", "don't"]


def test_synonyms_keep_punctuation_and_the_first_letter() -> None:
    found = replaced(split("Good (film) in it"), 0.5, given(0.4, 0.9, 0.4, 0.0), Words())
    assert joined(found) == "Great (movie) in it"  # not the inch
    assert joined(replaced(split("good film"), 0.5, given(0.6, 0.6), Words())) == "good film"
    assert joined(replaced(fixed("good film", "good"), 1.0, given(0.0, 0.0), Words())) == "good movie"


def test_swaps_are_of_two_free_words_without_punctuation() -> None:
    assert joined(swapped(split("a b\tc d"), 0.5, every([0.0]))) == "b a\td c"
    assert joined(swapped(split("a b, c d"), 1.0, every([0.0]))) == "a b, d c"
    assert joined(swapped(fixed("a b c", "b"), 1.0, every([0.0]))) == "a b c"
    assert [t.number for t in swapped(split("a b c"), 0.5, given(0.9, 0.1))] == [0, 2, 1]


def test_deleting_keeps_what_is_fixed_and_at_least_one_word() -> None:
    assert joined(deleted(split("a b c"), 0.5, given(0.9, 0.1, 0.1))) == "a"
    assert joined(deleted(split("a b c."), 1.0, every([0.0]))) == "c."
    assert joined(deleted(fixed("a b c", "b"), 1.0, every([0.0]))) == "b"
    assert joined(deleted(split("a b"), 1.0, every([0.0]))) == "a b"


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ((0.0, 0.0, 0.0), "fulm"),
        ((0.0, 0.3), "flim"),
        ((0.0, 0.5), "flm"),
        ((0.0, 0.9), "fiilm"),
        ((0.9, 0.3), "filmm"),
    ],
)
def test_each_typing_error(numbers: tuple[float, ...], expected: str) -> None:
    assert typo("film", given(*numbers)) == expected


def test_typing_errors_are_those_of_free_words_of_four_letters() -> None:
    found = joined(misspelled(fixed("bad (film) 1234 book", "book"), 1.0, every([0.0, 0.0, 0.5])))
    assert found == "bad (flm) 1234 book"


def test_neighboring_keys() -> None:
    assert neighbors("s") == "adwezx"
    assert neighbors("Q") == "WA"
    assert neighbors("é") == neighbors("ß") == neighbors("ч") == ""
    assert typo("слово", given(0.0, 0.0)) == "сллово"  # without a key beside it, a letter is doubled
