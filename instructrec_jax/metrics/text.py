"""Metrics of written texts: thin doors to sacrebleu and rouge-score.

A case may have several references. Texts in Chinese are scored by characters: where any reference has some, BLEU uses
sacrebleu's zh tokenizer, and ROUGE, whose own tokenizer drops them, takes every character as a word.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU, CHRF

from instructrec_jax.metrics.language import has_cjk

ROUGE = {"rouge1": "rouge1", "rouge2": "rouge2", "rougeL": "rougeL"}


def _check(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Any:
    """The references as sacrebleu takes them: the first of each case, the second ...; None where there is none."""
    if len(predictions) != len(references) or not len(predictions):
        raise ValueError(f"expected as many predictions as cases, got {len(predictions)} and {len(references)}.")
    if not all(references):
        raise ValueError("a case has no reference.")
    most = max(map(len, references))
    return [[each[number] if number < len(each) else None for each in references] for number in range(most)]


def _bleu(references: Sequence[Sequence[str]], *, effective_order: bool = False) -> BLEU:
    chinese = any(has_cjk(reference) for each in references for reference in each)
    return BLEU(tokenize="zh" if chinese else "13a", effective_order=effective_order)


def bleu(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, str]:
    """Corpus BLEU, 0 to 100 (Papineni et al., 2002), and sacrebleu's signature (Post, 2018)."""
    metric = _bleu(references)
    score = metric.corpus_score(list(predictions), _check(predictions, references)).score
    return float(score), str(metric.get_signature())


def chrf(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, str]:
    """Corpus chrF, 0 to 100 (Popović, 2015), and sacrebleu's signature."""
    metric = CHRF()
    score = metric.corpus_score(list(predictions), _check(predictions, references)).score
    return float(score), str(metric.get_signature())


def sentence_chrf(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """chrF of each case, 0 to 100."""
    _check(predictions, references)
    metric = CHRF()
    return [
        float(metric.sentence_score(text, list(each)).score) for text, each in zip(predictions, references, strict=True)
    ]


class Characters:
    """A tokenizer for rouge-score: every visible character is a word."""

    def tokenize(self, text: str) -> list[str]:
        return [c for c in text.lower() if not c.isspace()]


def rouge(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, list[float]]:
    """F-measures of ROUGE-1, -2 and -L of each case, 0 to 1 (Lin, 2004), each with the reference that gives the most.

    English is stemmed, as in the field's summarisation tables.
    """
    _check(predictions, references)
    kinds = list(ROUGE)
    latin, chinese = RougeScorer(kinds, use_stemmer=True), RougeScorer(kinds, tokenizer=Characters())
    found: dict[str, list[float]] = {kind: [] for kind in kinds}
    for text, each in zip(predictions, references, strict=True):
        scorer = chinese if any(map(has_cjk, each)) else latin
        for kind, score in scorer.score_multi(list(each), text).items():
            found[kind].append(float(score.fmeasure))
    return found


def distinct(predictions: Sequence[str], n: int) -> float:
    """Different n-grams as a share of all n-grams of the predictions (Li et al., 2016, "distinct-n")."""
    counts: Counter[tuple[str, ...]] = Counter()
    for text in predictions:
        words = [c for c in text if not c.isspace()] if has_cjk(text) else text.split()
        counts.update(zip(*(words[i:] for i in range(n)), strict=False))
    return len(counts) / counts.total() if counts else 0.0
