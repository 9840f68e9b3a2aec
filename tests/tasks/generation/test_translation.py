"""BLEU and chrF as sacrebleu computes them, and the most similar source as a translation memory."""

import numpy as np
import pytest
import sacrebleu

from instructrec_jax.data.example import Example
from instructrec_jax.tasks.generation.translation import judge_translations, nearest_translation
from instructrec_jax.tasks.scores import BaselineNotFitted

SAID = ["the old film is very good today", "we saw a war film about space", "nothing"]
TARGETS = [
    ["the old film was very good today", "that old film is good"],
    ["we saw a film about a space war", "they saw a war film"],
    ["music", "no music"],
]


def test_scores_are_those_of_sacrebleu() -> None:
    found = judge_translations(SAID, TARGETS)
    streams = [list(each) for each in zip(*TARGETS, strict=True)]
    assert found.metrics["BLEU"] == pytest.approx(sacrebleu.corpus_bleu(SAID, streams).score / 100)
    assert found.metrics["chrF"] == pytest.approx(sacrebleu.corpus_chrf(SAID, streams).score / 100)
    cases = [sacrebleu.sentence_chrf(text, each).score / 100 for text, each in zip(SAID, TARGETS, strict=True)]
    np.testing.assert_allclose(found.cases["sentence chrF"], cases)
    assert found.metrics["sentence chrF"] == pytest.approx(np.mean(cases)) and found.main == "sentence chrF"
    assert "tok:13a" in found.protocol and "nrefs:2" in found.protocol


def test_bleu_of_resampled_cases_is_that_of_the_drawn_ones() -> None:
    resampled = judge_translations(SAID, TARGETS).corpus["BLEU"]
    for drawn in ([0, 1, 2], [0, 0, 1], [1, 1, 1], [2, 0, 0]):
        streams = [[TARGETS[i][n] for i in drawn] for n in range(2)]
        expected = sacrebleu.corpus_bleu([SAID[i] for i in drawn], streams).score / 100
        assert resampled.value(np.array(drawn)) == pytest.approx(expected)


def test_the_most_similar_source_answers() -> None:
    train = [
        Example(instruction="Translate.", input="the old film", output=("der alte Film", "der Film")),
        Example(instruction="a new book", output="ein neues Buch"),  # without an input, the instruction is the source
    ]
    said = nearest_translation(train)
    asked = [Example(instruction="Translate.", input="an old film"), Example(instruction="new books")]
    assert said(asked) == ["der alte Film", "ein neues Buch"]


def test_sources_without_letters_cannot_be_compared() -> None:
    with pytest.raises(BaselineNotFitted):
        nearest_translation([Example(instruction="", input=" ", output="x")])([Example(instruction="a")])
