"""A changed text as a function of its key, and settings that cannot be."""

from pathlib import Path
from typing import Any

import pytest
from tiny_thesauri import write_wordnet

from instructrec_jax.augmentation.augmenter import AugmentConfig, Augmenter, random_numbers

NUMBERS = [0.223878, 0.759076, 0.302846]
TEXT = "an old film about dull people, which was good in 1999"


def test_the_same_key_gives_the_same_text_and_others_do_not() -> None:
    augmenter = Augmenter(AugmentConfig(delete=0.2, swap=0.2, typos=0.3))
    made = [augmenter.change(TEXT, random_numbers("0", "e", str(n))).text for n in range(20)]
    assert made == [augmenter.change(TEXT, random_numbers("0", "e", str(n))).text for n in range(20)]
    assert len(set(made)) > 15
    assert all("1999" in text and "people," not in text.split()[:1] for text in made)


def test_random_numbers_are_the_same_on_every_machine() -> None:
    draw = random_numbers("0", "example", "1")
    assert [round(draw(), 6) for _ in range(3)] == NUMBERS


def test_methods_that_changed_something_are_named(tmp_path: Path) -> None:
    config = AugmentConfig(synonyms=1.0, typos=1e-9, thesaurus=str(write_wordnet(tmp_path / "wordnet")))
    found = Augmenter(config).change("  a good film", random_numbers("x"))
    assert (found.text, found.methods) == ("  a fine movie", ("synonyms",))
    assert Augmenter(config).change("12 34", random_numbers("x")).methods == ()


def test_words_of_one_list_keep_their_numbers() -> None:
    found = Augmenter(AugmentConfig(delete=0.5)).change(["one", "New York", "", "good", "two"], random_numbers("2"))
    assert [t.text for t in found.tokens if t.number in (1, 2)] == ["New York", ""]
    assert found.text == " ".join(t.text for t in found.tokens)


def test_the_share_of_changed_words_is_the_rate() -> None:
    words = ["word"] * 20_000
    found = Augmenter(AugmentConfig(delete=0.3)).change(words, random_numbers("share"))
    assert abs(len(found.tokens) / 20_000 - 0.7) < 0.01


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"delete": 1.5}, "augment.delete is 1.5: a rate is a share of words, from 0 to 1."),
        ({"typos": float("nan")}, "augment.typos is nan: a rate is a share"),
        ({"swap": -0.1}, "augment.swap is -0.1"),
        ({"swap": 0.1, "copies": 0}, "augment.copies is 0: choose 1 to 100."),
        ({"swap": 0.1, "protect": ["("]}, r"augment.protect: '\(' is no regular expression"),
        ({"copies": 4}, "augment sets no method: give a rate to one of synonyms, swap, delete, typos."),
        ({"synonyms": 0.1, "thesaurus": "/nowhere"}, "/nowhere does not exist"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Augmenter(AugmentConfig(**settings))
