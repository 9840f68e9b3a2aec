"""Which words stay."""

import re
from typing import Any

import pytest

from instructrec_jax.augmentation.edits import split
from instructrec_jax.augmentation.protection import places_of, protected, words_of


def free(text: str, **how: Any) -> list[str]:
    return [token.text for token in protected(split(text), **how) if token.free]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("send 30 euros to a@b.org by 3pm", ["send", "euros", "to", "by"]),
        ("my friend Ann works at NASA", ["my", "friend", "works", "at"]),
        ("it is not good and doesn't work", ["it", "is", "good", "and", "work"]),
        ("see <image> and {slot} or <EMAIL_1> now", ["see", "and", "or", "now"]),
        ("这部电影很好看 and good", ["and", "good"]),
        ("映画 ภาพยนตร์ кино", ["кино"]),
    ],
)
def test_numbers_names_marks_negations_and_unspaced_texts_stay(text: str, expected: list[str]) -> None:
    assert free(text) == expected


def test_words_places_and_patterns_stay() -> None:
    text = "the old film about war and old love"
    assert free(text, words={"war", "love"}) == ["the", "old", "film", "about", "and", "old"]
    places = places_of(text, ["old film", ""])
    assert places == [(4, 12)]
    assert free(text, places=places) == ["the", "about", "war", "and", "old", "love"]
    assert free(text, patterns=[re.compile("^o"), re.compile("ov")]) == ["the", "film", "about", "war", "and"]
    assert free("about Ann", capitalized=True) == ["about", "Ann"]
    assert free("a love-story", words=words_of(["card, Love"])) == ["a"]
