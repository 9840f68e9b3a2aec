"""Streaming: text appears in whole characters, and nothing of a stop text."""

import random

from instructrec_jax.inference.text import TextStream, cut_at_stop


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
