"""The doors hand texts to sacrebleu and rouge-score as these are called directly, and count what these leave out."""

import pytest
import sacrebleu
from rouge_score import rouge_scorer

from instructrec_jax.metrics.language import has_cjk, units
from instructrec_jax.metrics.text import bleu, chrf, distinct, rouge, sentence_chrf

FOUND = ["the cat sat on a mat", "there is a dog"]
WANTED = [["the cat sat on the mat"], ["there was a dog here", "a dog is there"]]


def test_bleu_and_chrf_with_a_varying_number_of_references() -> None:
    streams = [["the cat sat on the mat", "there was a dog here"], [None, "a dog is there"]]
    score, signature = bleu(FOUND, WANTED)
    assert score == pytest.approx(sacrebleu.corpus_bleu(FOUND, streams).score) and score > 0  # type: ignore[arg-type]
    assert "tok:13a" in signature and "nrefs:var" in signature
    assert chrf(FOUND, WANTED)[0] == pytest.approx(sacrebleu.corpus_chrf(FOUND, streams).score)  # type: ignore[arg-type]
    each = [sacrebleu.sentence_chrf(text, refs).score for text, refs in zip(FOUND, WANTED, strict=True)]
    assert sentence_chrf(FOUND, WANTED) == pytest.approx(each)


def test_chinese_is_scored_by_characters() -> None:
    found, wanted = ["我非常喜欢这只猫"], [["我很喜欢这只猫"]]
    score, signature = bleu(found, wanted)
    assert "tok:zh" in signature
    assert score == pytest.approx(sacrebleu.corpus_bleu(found, [wanted[0]], tokenize="zh").score) and score > 10
    values = rouge(found, wanted)
    assert values["rouge1"] == [pytest.approx(2 * 6 / (8 + 7))]  # rouge-score's own tokenizer gives 0


def test_rouge_is_that_of_the_library() -> None:
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    values = rouge(FOUND, WANTED)
    for kind in values:
        expected = [
            max(scorer.score(reference, text)[kind].fmeasure for reference in refs)
            for text, refs in zip(FOUND, WANTED, strict=True)
        ]
        assert values[kind] == pytest.approx(expected)


def test_distinct_n_grams() -> None:
    assert distinct(["a b a b", "a b"], 1) == pytest.approx(2 / 6)
    assert distinct(["a b a b", "a b"], 2) == pytest.approx(2 / 4)  # ab, ba of ab, ba, ab, ab
    assert distinct(["好好"], 1) == pytest.approx(1 / 2) and distinct(["", "a"], 2) == 0


def test_what_cannot_be_scored() -> None:
    with pytest.raises(ValueError, match="as many predictions as cases"):
        bleu(["a"], [["a"], ["b"]])
    with pytest.raises(ValueError, match="no reference"):
        rouge(["a"], [[]])


def test_lengths() -> None:
    assert units("two words") == 2 and units("两 个字") == 3 and has_cjk("a 猫") and not has_cjk("é—…")
