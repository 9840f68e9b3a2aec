"""The doors hand texts to sacrebleu and rouge-score as these are called directly, and count what these leave out."""

import random

import numpy as np
import pytest
import sacrebleu
from rouge_score import rouge_scorer

from instructrec_jax.metrics import text as text_metrics
from instructrec_jax.metrics.text import bleu, bleu_tokenizer, chrf, distinct, resampled_bleu, rouge, sentence_chrf

FOUND = ["the cat sat on a mat", "there is a dog"]
WANTED = [["the cat sat on the mat"], ["there was a dog here", "a dog is there"]]


def test_bleu_and_chrf_with_a_varying_number_of_references() -> None:
    streams = [["the cat sat on the mat", "there was a dog here"], [None, "a dog is there"]]
    score, signature = bleu(FOUND, WANTED)
    assert score == pytest.approx(sacrebleu.corpus_bleu(FOUND, streams).score / 100) and score > 0  # type: ignore[arg-type]
    assert "tok:13a" in signature and "nrefs:var" in signature
    assert chrf(FOUND, WANTED)[0] == pytest.approx(sacrebleu.corpus_chrf(FOUND, streams).score / 100)  # type: ignore[arg-type]
    each = [sacrebleu.sentence_chrf(text, refs).score / 100 for text, refs in zip(FOUND, WANTED, strict=True)]
    assert sentence_chrf(FOUND, WANTED) == pytest.approx(each)


def test_chinese_is_scored_by_characters() -> None:
    found, wanted = ["我非常喜欢这只猫"], [["我很喜欢这只猫"]]
    score, signature = bleu(found, wanted)
    assert "tok:zh" in signature
    assert score == pytest.approx(sacrebleu.corpus_bleu(found, [wanted[0]], tokenize="zh").score / 100) and score > 0.1
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


ENGLISH = "the Cats' relational nationals don't running on 1999, ok-ing _x_ sat... (flies) a I'm".split()


def test_rouge_of_english_is_that_of_the_library_whatever_is_written() -> None:
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    rng = random.Random(0)
    for _ in range(50):
        text, reference = (" ".join(rng.choices(ENGLISH, k=8)) for _ in range(2))
        expected = {kind: [score.fmeasure] for kind, score in scorer.score(reference, text).items()}
        assert rouge([text], [[reference]]) == expected


SCRIPTS = {
    "Russian": ("Кот сидит на окне", "Собака спит во дворе"),
    "Arabic": ("القط على النافذة", "الكلب في الحديقة"),
    "Hindi": ("बिल्ली खिड़की पर है", "कुत्ता आँगन में सोता"),
    "Greek": ("η γάτα κάθεται", "ο σκύλος κοιμάται"),
    "Korean": ("고양이가 창문에 앉아 있다", "개는 마당에 잔다"),
    "Hebrew": ("החתול על החלון", "הכלב בחצר"),
    "Thai": ("แมว", "หมู"),
    "Japanese": ("ねこはまど", "いぬにわで"),
    "German": ("Grüße", "Größe"),
}


@pytest.mark.parametrize("language", SCRIPTS)
def test_rouge_in_every_script(language: str) -> None:
    text, other = SCRIPTS[language]
    same, different = rouge([text], [[text]]), rouge([text], [[other]])
    assert same["rouge1"] == same["rougeL"] == [1.0]
    assert different["rougeL"][0] < 0.5


def test_bleu_of_scripts_without_spaces(monkeypatch: pytest.MonkeyPatch) -> None:
    found, wanted = ["これはとてもいいねこです"], [["これはいいねこです"]]
    monkeypatch.setattr(text_metrics, "installed", lambda name: False)
    score, signature = bleu(found, wanted)
    assert "tok:char" in signature and score > 0.4
    assert bleu_tokenizer([["สวัสดีครับ"]]) == "char"
    assert bleu_tokenizer([["我很喜欢のこれ"], ["我很喜欢"], ["这只猫"]]) == "zh"
    monkeypatch.setattr(text_metrics, "installed", lambda name: True)
    assert bleu_tokenizer(wanted) == "ja-mecab" and bleu_tokenizer([["a cat"]]) == "13a"


@pytest.mark.parametrize(
    ("found", "wanted"), [(FOUND, WANTED), (["我非常喜欢这只猫", "a"], [["我很喜欢这只猫"], ["b"]])]
)
def test_bleu_of_any_cases_is_that_of_the_library(found: list[str], wanted: list[list[str]]) -> None:
    metric = resampled_bleu(found, wanted)
    for drawn in ([0, 1], [0, 0, 1], [0]):
        expected, _ = bleu([found[i] for i in drawn], [wanted[i] for i in drawn])
        assert metric.value(np.array(drawn)) == pytest.approx(expected)


def test_distinct_n_grams() -> None:
    assert distinct(["a b a b", "a b"], 1) == pytest.approx(2 / 6)
    assert distinct(["a b a b", "a b"], 2) == pytest.approx(2 / 4)  # ab, ba of ab, ba, ab, ab
    assert distinct(["好好"], 1) == pytest.approx(1 / 2) and distinct(["", "a"], 2) == 0


def test_what_cannot_be_scored() -> None:
    with pytest.raises(ValueError, match="predictions"):
        bleu(["a"], [["a"], ["b"]])
    with pytest.raises(ValueError, match="reference"):
        rouge(["a"], [[]])
