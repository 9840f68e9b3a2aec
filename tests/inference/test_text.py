"""Streaming: text appears in whole characters, and nothing of a stop text."""

import random
from typing import Any

import pytest
import regex
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from instructrec_jax.inference.text import AnswerText, TextStream, certain, cut_at_stop


def decode(tokens: list[int]) -> str:
    """A tokenizer of bytes."""
    return bytes(tokens).decode("utf-8", errors="replace")


def stream(text: str, stop: tuple[str, ...] = (), step: int = 1) -> list[str]:
    """What is shown after each `step` bytes, and at the end."""
    tokens, shown = TextStream(decode, stop), []
    data = list(text.encode())
    for end in range(step, len(data), step):
        shown.append(tokens.update(data[:end]))
    return [*shown, tokens.update(data, final=True)]


def test_characters_are_shown_whole() -> None:
    family, flags, accent, thumb = "👩‍👧‍👦", "🇩🇪🇫🇷", "e\u0301", "👍🏽"
    text = f"a{family}b{flags}c{accent}{thumb} 你好 नमस्ते"
    whole = {family, "🇩🇪", "🇫🇷", accent, thumb, *"abc 你好"}
    pieces = [piece for piece in stream(text) if piece]
    assert "".join(pieces) == text
    assert whole <= set(pieces) and "\ufffd" not in "".join(pieces)
    assert {"\u200d", "🇩", "👍"}.isdisjoint(pieces)


def test_all_but_one_character_is_shown_at_once() -> None:
    assert stream("hello") == ["", "h", "e", "l", "lo"]


def test_stop_texts_are_never_shown() -> None:
    assert "".join(stream("one\nUser: two", ("\nUser:",))) == "one"
    pieces = stream("one\nUse two\nUser: three", ("\nUser:", "###"))
    assert "".join(pieces) == "one\nUse two"
    assert "\nU" not in pieces[:5]  # held until it was something else


def test_any_text_in_any_steps_equals_the_text_before_the_stop() -> None:
    rng = random.Random(0)
    alphabet = ["a", "b", "ab", "ba", "é", "👩‍👧", "\ufffd", "aab", "\r\n", "\u0301"]
    for _ in range(500):
        text = "".join(rng.choices(alphabet, k=12))
        stop = tuple("".join(rng.choices(alphabet[:5], k=rng.randint(1, 3))) for _ in range(rng.randint(0, 2)))
        assert "".join(stream(text, stop, rng.randint(1, 4))) == cut_at_stop(text, stop)[0], (text, stop)


def test_a_decoder_that_changes_its_mind_is_waited_for() -> None:
    """Byte fallback: a run of byte tokens that is not valid as a whole is all replaced."""
    answers = ["你", "你a", "\ufffd\ufffd\ufffd\ufffd", "你a😀", "你a😀!"]
    shown = TextStream(lambda tokens: answers[len(tokens) - 1])
    pieces = [shown.update([0] * n, final=n == 5) for n in range(1, 6)]
    assert pieces == ["", "你", "", "a", "😀!"]


def test_the_first_stop_text_counts() -> None:
    assert cut_at_stop("abcd", ("d", "bc")) == ("a", True)
    assert cut_at_stop("abcd", ("x",)) == ("abcd", False)


def test_the_uncertain_end_is_the_last_character() -> None:
    """Found from the end of the text as from its beginning."""
    rng = random.Random(0)
    pieces = [
        "a",
        " ",
        "\r\n",
        "\n",
        "e\u0301",
        "👩‍👧‍👦",
        "🇩🇪",
        "🇫",
        "你",
        "の",
        "नमस्ते",
        "\u0600",
        "\u200d",
        "ᄒ",
        "ᅡ",
        "\0",
    ]
    for _ in range(2000):
        text = "".join(rng.choices(pieces, k=rng.randint(0, 8)))
        assert certain(text, ()) == len(text) - len("".join(regex.findall(r"\X", text)[-1:])), text


@pytest.mark.parametrize("decoder", [decoders.ByteLevel(), decoders.ByteFallback()])
def test_a_growing_answer_has_the_text_of_all_its_tokens(decoder: Any) -> None:
    """Also where answers take turns, tokens are cut off, and characters are spread over tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({piece: n for n, piece in enumerate([*alphabet, "<end>"])}, []))
    core.decoder = decoder
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>")
    rng, text = random.Random(0), AnswerText(tokenizer, [tokenizer.eos_token_id], ())
    answers = [tokenizer.encode(word) for word in ("a 你好 🇩🇪 e\u0301", "the \ufffd of", "<end>")]
    answers += [[rng.randrange(len(alphabet) + 1) for _ in range(30)] for _ in range(20)]

    def check(answer: list[int], count: int) -> None:
        end = answer.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in answer else len(answer)
        assert text(answer[:count]) == tokenizer.decode(answer[: min(count, end)], skip_special_tokens=True)

    for answer in answers:
        for count in range(len(answer) + 1):
            check(answer, count)
    for _ in range(2000):  # in turns
        answer = rng.choice(answers)
        check(answer, rng.randint(0, len(answer)))


def test_only_new_tokens_are_decoded() -> None:
    core = Tokenizer(models.BPE({piece: n for n, piece in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    core.decoder = decoders.ByteLevel()
    tokenizer, asked = PreTrainedTokenizerFast(tokenizer_object=core), list[int]()
    whole = tokenizer.decode
    tokenizer.decode = lambda tokens, **how: (asked.append(len(tokens)), whole(tokens, **how))[1]
    text = AnswerText(tokenizer, [], ())
    for count in range(1, 50):
        text([core.token_to_id("a")] * count)
    assert set(asked) == {1}
