"""Exact match and F1 against SQuAD's own script, written out; Chinese by characters."""

import collections
import re
import string

import pytest

from instructrec_jax.metrics.answers import exact_match, f1


def squad_normalise(s: str) -> str:  # evaluate-v1.1.py
    s = "".join(ch for ch in s.lower() if ch not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", s).split())


def squad_f1(prediction: str, truth: str) -> float:
    found, wanted = squad_normalise(prediction).split(), squad_normalise(truth).split()
    same = sum((collections.Counter(found) & collections.Counter(wanted)).values())
    if same == 0:
        return 0.0
    precision, recall = same / len(found), same / len(wanted)
    return 2 * precision * recall / (precision + recall)


PAIRS = [
    ("The Broncos!", ["Denver Broncos", "the broncos"]),
    ("a cat, an owl and the dog", ["cat owl dog"]),
    ("in 1998", ["1998", "the year 1998"]),
    ("£5.3 million", ["5.3 million"]),
    ("nothing alike", ["something else"]),
    ("New-York", ["New York"]),
    ("an an a", ["b"]),
]


@pytest.mark.parametrize(("prediction", "references"), PAIRS)
def test_english_is_that_of_squad(prediction: str, references: list[str]) -> None:
    assert f1(prediction, references) == pytest.approx(max(squad_f1(prediction, r) for r in references))
    expected = any(squad_normalise(prediction) == squad_normalise(r) for r in references)
    assert exact_match(prediction, references) == expected


def test_chinese_counts_by_characters() -> None:
    assert exact_match("《红楼梦》。", ["红楼梦"]) == 1
    assert f1("在北京大学", ["北京"]) == pytest.approx(2 * 2 / (5 + 2))
    assert f1("丹佛 Broncos 队", ["丹佛Broncos"]) == pytest.approx(2 * 3 / (4 + 3))


def test_no_answer_equals_no_answer() -> None:
    assert f1("", [""]) == exact_match("", [""]) == 1 and f1("x", [""]) == f1("", ["x"]) == 0
