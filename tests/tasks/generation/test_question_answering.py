"""Answers judged as in SQuAD: each case against its best reference, by language, by document."""

import numpy as np
import pytest

from instructrec_jax.data.example import Example
from instructrec_jax.tasks.generation.question_answering import judge_answers


def asked(*questions: str, **fields: object) -> list[Example]:
    return [Example(instruction=text, **fields) for text in questions]  # type: ignore[arg-type]


def test_each_case_counts_by_its_best_reference() -> None:
    found = judge_answers(
        asked("a", "b", "c", "d"),
        ["The Broncos!", "old war", "", "space"],
        [["Denver Broncos", "broncos"], ["war", "love"], [""], ["music", "crime"]],
    )
    assert found.cases["exact_match"].tolist() == [1, 0, 1, 0]
    assert found.cases["f1"].tolist() == pytest.approx([1, 2 / 3, 1, 0])
    assert found.metrics == pytest.approx({"exact_match": 0.5, "f1": (1 + 2 / 3 + 1) / 4})
    assert found.main == "f1" and found.owners is None and found.segments == {}


def test_languages_are_told_apart_by_the_question_or_by_what_the_data_say() -> None:
    examples = asked("who?", "谁？", "what?")
    found = judge_answers(examples, ["a b", "北京", "x"], [["a b"], ["北京大学"], ["y"]])
    assert found.metrics["f1 (zh)"] == pytest.approx(2 * 2 / (2 + 4)) and found.metrics["f1 (other)"] == 0.5
    assert {name: each.tolist() for name, each in found.segments.items()} == {"other": [0, 2], "zh": [1]}
    named = [Example(instruction="谁？", origin={"language": name}) for name in ("de", "en")]
    assert set(judge_answers(named, ["a", "b"], [["a"], ["b"]]).segments) == {"de", "en"}


def test_questions_about_one_text_share_an_owner() -> None:
    examples = [Example(instruction=f"q{n}", input="one text" if n < 3 else f"text {n}") for n in range(5)]
    found = judge_answers(examples, ["a"] * 5, [["a"]] * 5)
    assert found.owners is not None and found.owners.tolist() == [0, 0, 0, 1, 2]


def test_cases_and_answers_are_as_many() -> None:
    with pytest.raises(ValueError, match="zip"):
        judge_answers(asked("a", "b"), ["x"], [["x"], ["y"]])


def test_values_are_float64_of_every_case() -> None:
    found = judge_answers(asked("a"), ["x"], [["x"]])
    assert all(values.shape == (1,) and values.dtype == np.float64 for values in found.cases.values())
