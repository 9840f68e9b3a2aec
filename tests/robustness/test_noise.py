"""Noise changes signs, not what stays, and is a function of its random numbers."""

import unicodedata

import pytest

from instructrec_jax.augmentation.augmenter import random_numbers
from instructrec_jax.augmentation.edits import joined
from instructrec_jax.robustness import noise
from instructrec_jax.robustness.units import units

ENGLISH = "The new film about old wars is remarkably good, although nobody expected it."
CHINESE = "这部电影人人喜欢，大家已经看了很多次。"
FUNCTIONS = (noise.typos, noise.keyboard, noise.ocr, noise.lookalikes, noise.zero_width, noise.spaces)


def changed(function: object, text: str, key: str = "0", **options: object) -> str:
    is_noise = function not in (noise.case, noise.punctuation)
    front, tokens = units(text, words={"film", "电影"}, noise=is_noise)
    language = "zh" if text == CHINESE else "en"
    return front + joined(function(tokens, random_numbers(key), language, **options))  # type: ignore[operator]


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda each: each.__name__)
@pytest.mark.parametrize("text", [ENGLISH, CHINESE])
def test_noise_is_a_function_of_the_key_and_spares_words(function: object, text: str) -> None:
    once = changed(function, text, rate=1.0)
    assert once == changed(function, text, rate=1.0)
    keyboard_only = function is noise.keyboard and text == CHINESE  # a keyboard has letters
    assert (once == text) == keyboard_only
    if function is not noise.spaces:
        assert "film" in once or "电影" in once
    assert changed(function, text, rate=0.0) == text
    assert len({changed(function, text, str(n), rate=0.5) for n in range(8)}) > 1 or keyboard_only


def test_each_noise_is_what_it_says() -> None:
    plain = "".join(sign for sign in changed(noise.zero_width, ENGLISH, rate=1.0) if sign not in noise.ZERO_WIDTH)
    assert plain == ENGLISH
    assert changed(noise.spaces, ENGLISH, rate=1.0).split() == ENGLISH.split()
    alike = changed(noise.lookalikes, ENGLISH, rate=1.0)
    odd = [sign for sign in alike if not sign.isascii()]
    assert odd and all("CYRILLIC" in unicodedata.name(sign) for sign in odd)
    radicals = changed(noise.lookalikes, CHINESE, rate=1.0)
    assert unicodedata.normalize("NFKC", radicals) == unicodedata.normalize("NFKC", CHINESE) and radicals != CHINESE
    pairs = list(zip(changed(noise.keyboard, ENGLISH, rate=1.0), ENGLISH, strict=True))
    assert (
        sum(a != b for a, b in pairs) == sum(len(word.strip(".,")) > 3 for word in ENGLISH.split()) - 2
    )  # film, nobody
    for a, b in pairs:
        assert a == b or a in noise.neighbors(b)


def test_misreadings_are_of_the_table() -> None:
    before, after = ENGLISH.split(), changed(noise.ocr, ENGLISH, rate=1.0).split()
    for one, other in zip(before, after, strict=True):
        ways = [one[:n] + noise.MISREAD[c] + one[n + 1 :] for n, c in enumerate(one) if c in noise.MISREAD]
        assert other == one or other in ways
    assert all(len(key) == 1 and key != value for key, value in noise.MISREAD.items())


def test_case_and_punctuation() -> None:
    assert changed(noise.case, "A Good film!", to="upper") == "A GOOD film!"
    assert changed(noise.case, "A Good film!", to="swapped") == "a gOOD film!"
    assert changed(noise.punctuation, 'He said: "3.5, well!" ...', how="remove") == "He said 3.5 well "
    assert changed(noise.punctuation, "3,5 (good), bad", how="full_width") == "3,5 （good）， bad"
    assert changed(noise.punctuation, "好，坏！", how="half_width") == "好,坏!"
    assert changed(noise.punctuation, "good", how="add") in ("good!!", "good ...")
    assert changed(noise.punctuation, "a film", how="add") == "a film"  # its last word stays


@pytest.mark.parametrize("text", ["", " ", "!", "好"])
def test_nearly_nothing_is_left_whole(text: str) -> None:
    for function in FUNCTIONS:
        assert isinstance(changed(function, text, rate=1.0), str)
    assert changed(noise.punctuation, text, how="remove") == text
    assert changed(noise.typos, "好", rate=1.0).strip("好") == ""
