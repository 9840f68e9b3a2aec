"""Names, places, numbers, contractions, negation, sentences and truncation."""

import pytest

from instructrec_jax.augmentation.augmenter import random_numbers
from instructrec_jax.augmentation.edits import joined
from instructrec_jax.robustness import meaning
from instructrec_jax.robustness.lists import lists_of
from instructrec_jax.robustness.units import units


def changed(function: object, text: str, language: str = "en", key: str = "0", **options: object) -> str:
    quoted = options.pop("quoted", ())
    front, tokens = units(text, quoted=quoted, noise=False)  # type: ignore[arg-type]
    return front + joined(function(tokens, random_numbers(key), language, **options))  # type: ignore[operator]


def test_names_move_to_another_locale_and_stay_consistent() -> None:
    found = changed(meaning.names, "Mary met John. Mary's dog likes Mary, too.").replace("'s", "").replace(".", "")
    words = found.replace(",", "").split()
    assert words[0] == words[3] == words[6] != "Mary" and words[2] != "John"
    home = {name: locale for locale, names in lists_of("en").names.items() for name in names}
    assert home[words[0]] != "us"
    assert changed(meaning.names, "Mary", locale="china") in lists_of("en").names["china"]
    assert changed(meaning.names, "nobody here") == "nobody here"
    assert changed(meaning.names, "Mary here", quoted=["Mary"]) == "Mary here"
    found = changed(meaning.names, "王伟和李娜都来了。", "zh")
    assert "王伟" not in found and "李娜" not in found and found.endswith("都来了。")
    with pytest.raises(ValueError, match="locale 'mars' is unknown: choose from us, uk"):
        changed(meaning.names, "Mary", locale="mars")


def test_places_become_places_of_their_kind() -> None:
    lists = lists_of("en").places
    city, _, country = changed(meaning.places, "Paris, in France").replace(",", "").split()
    assert city not in (*lists["europe"], *lists["countries"])
    assert country in lists["countries"] and country != "France"
    assert changed(meaning.places, "去北京。", "zh") != "去北京。"


def test_numbers_keep_their_digits_and_change() -> None:
    for key in map(str, range(30)):
        found = changed(meaning.numbers, "10 of 9,321 in 2007: 0.5% 07", key=key)
        before = "10 of 9,321 in 2007: 0.5% 07"
        assert len(found) == len(before)
        numbers = [(a, b) for a, b in zip(before.split(), found.split(), strict=True) if any(map(str.isdigit, a))]
        assert all(a != b for a, b in numbers)
    assert changed(meaning.numbers, "in 2007", quoted=["2007"]) == "in 2007"


def test_contractions_go_both_ways() -> None:
    assert (
        changed(meaning.contractions, "I do not think it's good, I'm sure.") == "I don't think it is good, I am sure."
    )
    assert changed(meaning.contractions, "Do not go! We’re here") == "Don't go! We are here"
    assert changed(meaning.contractions, "不是", "zh") == "不是"


def test_words_and_phrases_of_a_table_are_swapped_in_one_pass() -> None:
    pairs = ["he = she", "she = he", "is not = ain't", "going to = finna", "mr = ms", "isn't = ain't"]
    said = "He said: “she IS NOT going to see Mr. He; HE isn’t.” The he, is not."
    assert (
        changed(meaning.swap, said, pairs=pairs) == "She said: “he AIN'T finna see Ms. She; SHE ain't.” The she, ain't."
    )
    assert changed(meaning.swap, "going, to them", pairs=pairs) == "going, to them"  # no phrase
    assert changed(meaning.swap, "she left", pairs=pairs, quoted=["she"]) == "she left"
    assert (
        changed(meaning.swap, "他们不是他。", "zh", pairs=["他 = 她", "他们 = 佢哋", "不是 = 唔係"]) == "佢哋唔係她。"
    )
    for wrong in ("he", "= she", "he =", "He = she", "a = b = c"):
        with pytest.raises(ValueError, match="a pair should be as in 'he = she'"):
            meaning.swapped_pair(wrong)


def test_the_first_statement_is_negated_or_not() -> None:
    assert changed(meaning.negation, "The film is good. It is old.") == "The film is not good. It is old."
    assert changed(meaning.negation, "The film is not good.") == "The film is good."
    assert changed(meaning.negation, "It isn't good.") == "It is good."
    assert changed(meaning.negation, "A good film.") == "A good film."
    assert changed(meaning.negation, "这是好电影。", "zh") == "这不是好电影。"
    assert changed(meaning.negation, "这不是好电影。", "zh") == "这是好电影。"
    assert changed(meaning.negation, "我没有时间。", "zh") == "我有时间。"


def test_sentences_are_added_and_ends_cut_off() -> None:
    assert changed(meaning.distractor, "A film.", sentences=["It rains."]) == "A film. It rains."
    assert changed(meaning.distractor, "A film.", sentences=["It rains."], place="start") == "It rains. A film."
    assert changed(meaning.distractor, "好。", "zh") in ["好。" + each for each in lists_of("zh").distractors]
    assert changed(meaning.truncation, "a b c d e f g h i j") == "a b c d e f g h"
    assert changed(meaning.truncation, "a b c d e f g h i j", keep=0.2, quoted=["e f"]) == "a b c d e f"
    assert changed(meaning.truncation, "a", keep=0.0) == "a" and changed(meaning.truncation, "") == ""
