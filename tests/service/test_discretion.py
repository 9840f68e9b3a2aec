"""Errors say nothing of what was asked, whoever wrote them."""

import pytest

from instructrec_jax.service.discretion import said_in, without_words, words_of_schema

SAID = ["My name is Ada and it's a secret\nof mine", "war", "x" * 500]


@pytest.mark.parametrize(
    ("message", "left"),
    [
        (f"the text {SAID[0]!r} is too long.", "the text … is too long."),
        (f"the text {SAID[0][:12]!r} is too long.", "the text … is too long."),
        ("near 'war': expected a name.", "near …: expected a name."),
        ("it says My name is Ada and it's here.", "it says …here."),
        ("the model 'tiny' reads 64 tokens (limits.texts).", "the model 'tiny' reads 64 tokens (limits.texts)."),
        ("the war of the tokens", "the war of the tokens"),  # a common word, not quoted
        ("'model' must be a text.", "'model' must be a text."),
    ],
)
def test_what_was_said_is_left_out(message: str, left: str) -> None:
    assert without_words(message, SAID, {"tiny", "model"}) == left


def test_texts_of_a_body() -> None:
    body = b'{"input": ["a \\u00fc", {"b": 1}], "model": "tiny", "n": 3}'
    assert sorted(said_in(body, {"input", "model", "tiny"})) == ["a ü", "b", "n"]
    assert said_in(b"{broken", set()) == ["{broken"]
    assert said_in(b"", set()) == []


def test_a_large_body_is_compared_quickly_enough_to_do_it_always() -> None:
    said = ["a film about war " * 60_000]
    assert (
        without_words("the text 'a film about war a fi...' has 240,001 tokens.", said, ())
        == "the text … has 240,001 tokens."
    )


def test_words_of_a_schema() -> None:
    schema = {"components": {"A": {"properties": {"input": {"enum": ["float", 1]}, "kind": {"const": "x"}}}}}
    assert words_of_schema(schema) == {"input", "kind", "float", "x"}
