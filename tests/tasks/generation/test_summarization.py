"""Summarization: sentences, the lead baseline, lengths that are asked for, and ROUGE as rouge-score computes it."""

import numpy as np
import pytest
from rouge_score import rouge_scorer

from instructrec_jax.data.example import Example
from instructrec_jax.tasks.generation.summarization import ask_length, join, judge_summaries, lead, sentences


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It cost 3.5 dollars. Then? No!", ["It cost 3.5 dollars.", "Then?", "No!"]),
        ("one line\nanother line", ["one line", "another line"]),
        ("他来了。你呢？好", ["他来了。", "你呢？", "好"]),
        ("", []),
    ],
)
def test_sentences(text: str, expected: list[str]) -> None:
    assert sentences(text) == expected


def test_lead() -> None:
    assert lead("A b. C d. E.", 2) == "A b. C d." and lead("他来了。你呢？好", 2) == "他来了。你呢？"


def test_sentences_join_as_their_script_does() -> None:
    assert join(["One.", "Two."]) == "One. Two." and join(["他来了。", "你呢？"]) == "他来了。你呢？"
    assert join(["One."]) == "One." and join([]) == ""


@pytest.mark.parametrize(("words", "asked"), [(1, 5), (2, 5), (7, 5), (8, 10), (12, 10), (13, 15), (100, 100), (0, 5)])
def test_the_length_asked_for_is_a_multiple_of_five(words: int, asked: int) -> None:
    case = Example(instruction="Sum up.", output=("word " * words + "." * (not words), "another reference"))
    assert ask_length(case).instruction == f"Sum up. Use about {asked} words."
    assert ask_length(case).output == case.output


def test_the_length_is_asked_in_the_language_of_the_instruction() -> None:
    chinese = ask_length(Example(instruction="总结。", output="一二三四五六七八"))
    assert "10" in chinese.instruction and "words" not in chinese.instruction
    assert ask_length(Example(instruction="", input="a", output="b")).instruction == "Use about 5 words."


CASES = [
    Example(instruction="s", output="the old film was very good"),
    Example(instruction="s", output=("a bright book", "the book was bright and long")),
    Example(instruction="s", output="nothing alike"),
]
SAID = ["the film was good", "the book was long and bright", ""]


def test_rouge_is_that_of_rouge_score_against_the_best_reference() -> None:
    found = judge_summaries(CASES, SAID)
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    for name in ("rouge1", "rouge2", "rougeL"):
        expected = []
        for case, said in zip(CASES, SAID, strict=True):
            references = [case.output] if isinstance(case.output, str) else case.output
            expected.append(max(scorer.score(text, said)[name].fmeasure for text in references))  # type: ignore[union-attr]
        np.testing.assert_allclose(found.cases[name], expected)
        assert found.metrics[name] == pytest.approx(np.mean(expected))
    assert found.main == "rougeL" and found.metrics["length ratio"] == pytest.approx((4 / 6 + 6 / 3 + 0 / 2) / 3)
