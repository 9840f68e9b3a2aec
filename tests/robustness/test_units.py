"""Words and Chinese characters, and which of them may change."""

import random

import pytest

from instructrec_jax.augmentation.edits import joined
from instructrec_jax.robustness.units import is_chinese, units


def free(text: str, **how: object) -> list[str]:
    return [token.text for token in units(text, **how)[1] if token.free]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text", ["", "  a film, good.  ", "我很喜欢 iPhone 15。", "naïve café 🎬 \u200bx", "好\n\n坏\tbad"]
)
def test_units_join_to_the_text(text: str) -> None:
    front, tokens = units(text)
    assert front + joined(tokens) == text
    assert [token.number for token in tokens] == list(range(len(tokens)))


def test_each_chinese_character_is_a_unit() -> None:
    assert [token.text for token in units("我爱film 好")[1]] == ["我", "爱", "film", "好"]
    assert [is_chinese(token) for token in units("我film")[1]] == [True, False]


def test_noise_leaves_numbers_negations_and_targets() -> None:
    text = "Not a good film of 1999, at http://x.y"
    assert free(text, words={"film"}) == ["a", "good", "of", "at"]
    assert "1999," in free(text, words={"film"}, noise=False) and "Not" in free(text, noise=False)
    assert free("这不是好电影", words={"电影"}) == ["这", "是", "好"]
    assert free("这不是好电影", words={"电影"}, noise=False) == ["这", "不", "是", "好"]
    assert free("he lives in New York now", quoted=["New York"]) == ["he", "lives", "in", "now"]


def test_words_of_a_list_are_tokens() -> None:
    tokens = units(["a b", "", "c"], fixed={0})[1]
    assert [(token.text, token.free) for token in tokens][0] == ("a b", False)
    assert len(tokens) == 3


def test_hostile_texts_have_units() -> None:
    draw = random.Random(0)
    signs = "a好1.\u200b\ud800\x00🎬 \n'-#/"
    for _ in range(200):
        text = "".join(draw.choice(signs) for _ in range(draw.randrange(12)))
        front, tokens = units(text, words={"a"}, quoted=["好1"])
        assert front + joined(tokens) == text
