"""Passages and sentences: nothing is lost, nothing is longer than asked, and both languages are told apart."""

import random

import pytest
from synthesis_texts import RIVER, TOWN, random_text

from instructrec_jax.metrics.language import has_cjk, units
from instructrec_jax.synthesis.passages import Passage, is_whole, passages, spans


def cut(text: str) -> list[str]:
    return [text[first:end] for first, end in spans(text)]


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One is here. Two is there! Three?", ["One is here.", "Two is there!", "Three?"]),
        ("Dr. Smith met J. R. Tolkien in the U.S. in 1950. He left.", None),
        ("It uses e.g. maps, cf. Fig. 3. Nothing else.", None),
        ("It was seen by 3.5 men. two of them left. Then all did.", None),
        ("他说：“你好。”然后他走了。她没走！", ["他说：“你好。”", "然后他走了。", "她没走！"]),
        ("标题\n第一句。第二句？", ["标题", "第一句。", "第二句？"]),
        ("", []),
        (" \n\n ", []),
        ("no end", ["no end"]),
        ("same. same. Same.", None),
    ],
)
def test_sentences(text: str, sentences: list[str] | None) -> None:
    expected = {
        "Dr.": ["Dr. Smith met J. R. Tolkien in the U.S. in 1950.", "He left."],
        "It uses": ["It uses e.g. maps, cf. Fig. 3.", "Nothing else."],
        "It was": ["It was seen by 3.5 men. two of them left.", "Then all did."],
        "same.": ["same. same.", "Same."],
    }
    key = next((key for key in expected if text.startswith(key)), "")
    assert cut(text) == (sentences if sentences is not None else expected[key])


@pytest.mark.parametrize("longest", [20, 33, 300])
def test_passages_hold_the_text_and_are_short(longest: int) -> None:
    rng = random.Random(longest)
    for _ in range(150):
        text = random_text(rng)
        found = list(passages(text, longest))
        assert "".join("".join(each.text for each in found).split()) == "".join(text.split())
        at = 0
        for number, each in enumerate(found):
            assert each.number == number and each.text and each.text == each.text.strip()
            at = text.index(each.text, at) + len(each.text)
            if not has_cjk(text):
                assert units(each.text) <= longest
            assert [each.text[a:b] for a, b in spans(each.text)] == each.sentences


def test_long_texts_without_an_end_are_cut() -> None:
    lengths = [units(each.text) for each in passages("word " * 1000, 100)]
    assert sum(lengths) == 1000 and max(lengths) <= 100 and min(lengths) >= 40
    assert [len(each.text) for each in passages("字" * 1000, 100)] == [100] * 10
    assert max(len(each.text) for each in passages("x" * 100_000, 100)) <= 2000
    assert sum(len(each.text) for each in passages("🙂" * 5000, 100)) == 5000


@pytest.mark.parametrize("piece", ["word ", "x. x. ", "字", "a.b.", "Aa", "“。”", "Dr. ", "1,000", " \n", "(", "é🙂"])
def test_time_is_linear(piece: str) -> None:
    text = piece * (400_000 // len(piece))
    found = list(passages(text, 300))
    assert "".join("".join(each.text for each in found).split()) == "".join(text.split())


@pytest.mark.parametrize(
    ("text", "language"),
    [
        (TOWN, "en"),
        (RIVER, "zh"),
        (f"{RIVER} (see the town of Freiburg)", "zh"),
        (f"{TOWN} 弗赖堡", "en"),
        ("Die Stadt liegt am Rand des Waldes und hat eine alte Universität mit vielen Studenten.", None),
        ("東京は日本の首都であり、世界でも最大級の都市です。", None),
        ("Ook in deze stad is het mogelijk een huis of kamer te huren, want die zijn er genoeg.", None),
        ("Academy Award nominee Lady Gaga performed the national anthem, while Marlee Matlin watched.", "en"),
        ("Hamlet was written by William Shakespeare.", "en"),
        ("1 2 3", None),
        ("😀 😀", None),
        ("", None),
    ],
)
def test_languages(text: str, language: str | None) -> None:
    assert Passage(text).language == language


@pytest.mark.parametrize(
    ("sentence", "whole"),
    [
        ("The town lies at the edge of the forest.", True),
        ("the town lies at the edge of the forest.", False),
        ("The town lies at the edge of the forest", False),
        ("Too short.", False),
        ("The town (which lies at the edge of the forest.", False),
        ('He said "go to the edge of the forest.', False),
        ('He said that they "go to the edge."', True),
        ("See https://example.org for all that the town has.", False),
        ("武汉长江大桥建成于1957年，是第一座。", True),
        ("武汉长江大桥（建成于1957年，是第一座。", False),
    ],
)
def test_whole_sentences(sentence: str, whole: bool) -> None:
    assert is_whole(sentence) == whole
