"""Which word each token belongs to, also in texts that are cut off, lower-cased or in pairs."""

from typing import Any

import numpy as np
import pytest

from instructrec_jax.answering.evidence import word_places
from instructrec_jax.data.batch import Text
from instructrec_jax.data.example import Example, Message
from instructrec_jax.explanation.words import read_words, without
from instructrec_jax.tasks.objective import Reading


def read(tokenizer: Any, text: str, kept: slice = slice(None)) -> tuple[tuple[str, ...], list[str], tuple[str, ...]]:
    """(words, the word of each token, what was not read)."""
    tokens = np.array(tokenizer(text)["input_ids"], np.int32)[kept]
    found = read_words(Text(tokens), [Reading.whole(text)], tokenizer)
    assert set(found.shares.data) == {1}
    owners = [" ".join(found.words[n] for n in row.nonzero()[0]) for row in found.shares.toarray()]
    return found.words, owners, found.unread


def test_tokens_belong_to_words(tokenizer: Any) -> None:
    words, owners, unread = read(tokenizer, "Good film, very good!")
    assert words == ("Good", "film", "very") and unread == ()
    assert owners == ["", "Good", "Good", "film", "film", "", "very", "very", "Good", "Good", "", ""]


def test_words_share_the_token_that_they_are(tokenizer: Any) -> None:
    tokens = tokenizer("😀👍🏽 film", add_special_tokens=False)["input_ids"]  # as 你好 is one of many tokenizers
    assert tokens[0] == tokenizer.unk_token_id
    found = read_words(Text(np.array(tokens, np.int32)), [Reading.whole("😀👍🏽 film")], tokenizer)
    assert found.words == ("😀", "👍🏽", "film") and found.unread == ()
    np.testing.assert_allclose(found.shares.toarray()[0], [1 / 3, 2 / 3, 0])


def test_a_family_of_signs_is_one_word() -> None:
    assert [word for word, _, _ in word_places("ein 👨‍👩‍👧 👍🏽 ❤️ 🇩🇪🇫🇷")] == ["ein", "👨‍👩‍👧", "👍🏽", "❤️", "🇩🇪", "🇫🇷"]


def test_what_is_cut_off_is_named(tokenizer: Any) -> None:
    assert read(tokenizer, "good film about war", slice(0, 5))[::2] == (("good", "film"), ("about", "war"))
    assert read(tokenizer, "good film about war", slice(-4, None))[::2] == (("about", "war"), ("good", "film"))
    with pytest.raises(ValueError, match="no word"):
        read(tokenizer, "?!")


def test_only_the_spans_are_explained(tokenizer: Any) -> None:
    tokens = Text(np.array(tokenizer("film: good film")["input_ids"], np.int32))
    found = read_words(tokens, [Reading("film: good film", ((6, 15),))], tokenizer)
    assert found.words == ("good", "film") and found.is_word.tolist()[:4] == [False] * 4


def test_words_are_removed_from_all_that_is_asked() -> None:
    example = Example(
        instruction="Is it good?", input="A good old film", output="good", messages=(Message("user", "good book"),)
    )
    left = without(example, ["GOOD", "old"])
    assert left.input == "A film" and left.messages[0].content == "book" and left.output == "good"
    assert "good" not in left.instruction and left.instruction.startswith("Is it")
