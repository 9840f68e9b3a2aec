"""Which word each token belongs to, also in texts that are cut off, lower-cased or in pairs."""

from typing import Any

import numpy as np
import pytest

from instructrec_jax.data.batch import Text
from instructrec_jax.data.example import Example, Message
from instructrec_jax.explanation.words import read_words, without
from instructrec_jax.tasks.objective import Reading


def read(tokenizer: Any, text: str, kept: slice = slice(None)) -> tuple[tuple[str, ...], list[str], tuple[str, ...]]:
    """(words, the word of each token, what was not read)."""
    tokens = np.array(tokenizer(text)["input_ids"], np.int32)[kept]
    found = read_words(Text(tokens), [Reading.whole(text)], tokenizer)
    return found.words, ["" if n < 0 else found.words[n] for n in found.owner], found.unread


def test_tokens_belong_to_words(tokenizer: Any) -> None:
    words, owners, unread = read(tokenizer, "Good film, very good!")
    assert words == ("Good", "film", "very") and unread == ()
    assert owners == ["", "Good", "Good", "film", "film", "", "very", "very", "Good", "Good", "", ""]


def test_what_is_cut_off_is_named(tokenizer: Any) -> None:
    assert read(tokenizer, "good film about war", slice(0, 5))[::2] == (("good", "film"), ("about", "war"))
    assert read(tokenizer, "good film about war", slice(-4, None))[::2] == (("about", "war"), ("good", "film"))
    with pytest.raises(ValueError, match="no word"):
        read(tokenizer, "?!")


def test_only_the_spans_are_explained(tokenizer: Any) -> None:
    tokens = Text(np.array(tokenizer("film: good film")["input_ids"], np.int32))
    found = read_words(tokens, [Reading("film: good film", ((6, 15),))], tokenizer)
    assert found.words == ("good", "film") and found.owner[:4].tolist() == [-1, -1, -1, -1]


def test_words_are_removed_from_all_that_is_asked() -> None:
    example = Example(
        instruction="Is it good?", input="A good old film", output="good", messages=(Message("user", "good book"),)
    )
    left = without(example, ["GOOD", "old"])
    assert left.input == "A film" and left.messages[0].content == "book" and left.output == "good"
    assert "good" not in left.instruction and left.instruction.startswith("Is it")
