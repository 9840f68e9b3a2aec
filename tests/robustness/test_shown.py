"""Results as text: what fits the terminal, and texts cut to where they begin to differ."""

import pytest

from instructrec_jax.data.example import Example
from instructrec_jax.evaluation.behavior import Behavior, BehaviorResult
from instructrec_jax.robustness.shown import LONGEST, format_behavior, over_limit, shown_answer, shown_pair
from instructrec_jax.tasks.answers import (
    Answer,
    ChoiceAnswer,
    ItemsAnswer,
    LabelAnswer,
    LabelsAnswer,
    NumberAnswer,
    RankedItem,
    SpanAnswer,
    TagsAnswer,
    TextAnswer,
    Word,
)

FAILED = {"id": "1", "before": "a film", "after": "a \x1b[2Jfilm", "answer_before": "good", "answer_after": "bad"}


def result(name: str, failures: int, cases: int, limit: float | None = None) -> BehaviorResult:
    rate = failures / cases if cases else None
    return {
        **{"name": name, "kind": "invariance", "change": "typos", "expected": "same label", "cases": cases},
        **{"unchanged": 1, "unread": 2, "failures": failures, "rate": rate, "low": rate, "high": rate, "limit": limit},
        **{"over": rate is not None and limit is not None and rate > limit, "failed": [FAILED] * min(failures, 3)},
    }  # type: ignore[typeddict-item, return-value]


BEHAVIOR: Behavior = {
    "suite": "mine",
    "language": "en",
    "split": "test",
    "seed": 0,
    "examples": 1234,
    "tests": [result("typos", 10, 40, 0.2), result("nothing to change", 0, 0), result("case", 0, 40, 0.2)],
    "left_out": [{"name": "praise", "why": "the run has no label 'positive'"}],
    "adversarial": {
        **{"examples": 10, "right": 8, "flipped": 2, "accuracy_before": 0.8, "accuracy_after": 0.6, "mean_calls": 31.5},
        **{"budget": 100, "changed": 0.2, "similarity": 0.8, "encoder": "models/x", "words": "typing errors"},
        "failed": [FAILED],  # type: ignore[typeddict-item, list-item]
    },
}


@pytest.mark.parametrize("width", [60, 100, 160])
def test_the_table_fits_and_says_all(width: int) -> None:
    said = format_behavior(BEHAVIOR, width=width)
    assert max(map(len, said.splitlines())) <= width
    words = " ".join(said.split())
    for part in ("1,234 examples of data.test", "25.0%!", "left out: praise", "6 changed examples could not be read"):
        assert part in words, part
    for part in (
        "typos: 3 of 10 failures",
        "a film → good",
        "accuracy 80.0% before, 60.0% after",
        "mean 31.5",
        "models/x",
    ):
        assert part in words, part
    assert "\x1b" not in said and "nothing to change" in words


def test_limits_are_listed() -> None:
    assert over_limit(BEHAVIOR) == ["typos: 25.0% failures of 40 cases, limit 20.0%"]


def test_texts_are_cut_where_they_differ() -> None:
    long = "word " * 200
    before, after = shown_pair(Example(instruction=f"{long}end"), Example(instruction=f"{long}and"))
    assert before.startswith("… ") and before.endswith("end") and after.endswith("and") and len(before) < LONGEST
    before, after = shown_pair(Example(instruction="a"), Example(instruction=long))
    assert before == "a" and after.endswith(" …") and len(after) == LONGEST + 2
    items = Example(instruction="", history=("i1", "i2"), candidates=("a", "b"))
    moved = Example(instruction="", history=("i2", "i1"), candidates=("a", "b"))
    assert [each.strip() for each in shown_pair(items, moved)] == ["history: i1, i2", "history: i2, i1"]
    assert shown_pair(None, Example(instruction="", words=("a", "b"), input="x")) == ("", "x")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (LabelAnswer("good", {"good": 0.625, "bad": 0.375}), "good (0.62)"),
        (LabelsAnswer((), {"a": 0.1}), "no label"),
        (LabelsAnswer(("a", "b"), {"a": 0.9, "b": 0.8}), "a, b"),
        (ChoiceAnswer("a", 0.5, {"a": 1.0}), "a (0.50)"),
        (NumberAnswer(1 / 3), "0.3333"),
        (TagsAnswer((Word("a", "O", 0, 1), Word("b", "X", 2, 3))), "a/O b/X"),
        (ItemsAnswer(tuple(RankedItem(x, f"title {x}", 0.0) for x in "abcd")), "title a, title b, title c"),
        (ItemsAnswer(()), "no item"),
        (SpanAnswer("", None, None, -1.0), "no answer"),
        (TextAnswer("x" * 999), "x" * LONGEST),
    ],
)
def test_answers_are_a_line(answer: Answer, said: str) -> None:
    assert shown_answer(answer) == said
