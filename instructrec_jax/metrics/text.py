"""Metrics of generated texts, from 0 to 1: thin wrappers of sacrebleu and rouge-score.

A case may have several references. Tokenization depends on the script:

* ROUGE: words are those of `language.script_words`, because rouge-score's own tokenizer keeps [a-z0-9] only and scores
  other scripts 0. ASCII words are stemmed as in rouge-score, so English scores equal rouge-score's.
* BLEU: sacrebleu's ja-mecab if most references have Japanese kana and mecab-python3 is installed; char for kana
  without it, and if most references are Thai, Lao, Khmer or Burmese; zh if any has Chinese characters; else 13a. The
  signature names the tokenizer.
"""

from collections import Counter
from collections.abc import Sequence
from functools import cache, lru_cache
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from instructrec_jax.extras import installed, require
from instructrec_jax.metrics.bootstrap import CorpusMetric
from instructrec_jax.metrics.language import KANA, SPACELESS, has_cjk, script_words

if TYPE_CHECKING:
    from rouge_score.tokenizers import DefaultTokenizer

ROUGE = ("rouge1", "rouge2", "rougeL")
ROUGE_WORDS = (
    "ROUGE on lower-case words of any script, English stemmed as by rouge-score, characters in Chinese, Japanese, "
    "Thai, Lao, Khmer and Burmese"
)
OF_ONE = "BLEU and chrF from 0 to 1 (a hundredth of sacrebleu's)"

References = Sequence[Sequence[str]]


def require_bleu(what: str) -> None:
    """Raise ValueError unless sacrebleu is installed; what: what needs it."""
    require("sacrebleu", what)


def require_rouge(what: str) -> None:
    """Raise ValueError unless rouge-score is installed; what: what needs it."""
    require("rouge_score", what)


def _sacrebleu() -> ModuleType:
    require_bleu("BLEU and chrF")
    from sacrebleu import metrics

    return metrics


def _check(predictions: Sequence[str], references: References) -> None:
    if len(predictions) != len(references) or not len(predictions):
        raise ValueError(f"predictions and references must be one per case, got {len(predictions)}, {len(references)}.")
    if not all(references):
        raise ValueError(f"case {[bool(each) for each in references].index(False)} has no reference.")


def _streams(references: References) -> list[list[str | None]]:
    """The references in sacrebleu's layout: the first of each case, the second ...; None: no such reference."""
    most = max(map(len, references))
    return [[each[number] if number < len(each) else None for each in references] for number in range(most)]


def bleu_tokenizer(references: References) -> str:
    """sacrebleu's tokenizer for the script of the references, see the module's docstring."""
    texts = [reference for each in references for reference in each]
    if 2 * sum(KANA.search(text) is not None for text in texts) >= len(texts):
        return "ja-mecab" if installed("MeCab") and installed("ipadic") else "char"
    if 2 * sum(SPACELESS.search(text) is not None for text in texts) >= len(texts):
        return "char"
    return "zh" if any(map(has_cjk, texts)) else "13a"


def bleu(predictions: Sequence[str], references: References) -> tuple[float, str]:
    """Corpus BLEU, 0 to 1 (Papineni et al., 2002), and sacrebleu's signature (Post, 2018)."""
    _check(predictions, references)
    metric = _sacrebleu().BLEU(tokenize=bleu_tokenizer(references))
    score = metric.corpus_score(list(predictions), _streams(references)).score
    return float(score) / 100, str(metric.get_signature())


def resampled_bleu(predictions: Sequence[str], references: References) -> CorpusMetric:
    """Corpus BLEU, 0 to 1, on resamples of the cases, from the n-gram counts of each case."""
    _check(predictions, references)
    library = _sacrebleu()
    metric = library.BLEU(tokenize=bleu_tokenizer(references), effective_order=True)
    scores = [metric.sentence_score(text, list(each)) for text, each in zip(predictions, references, strict=True)]
    counts = np.array([[*s.counts, *s.totals, s.sys_len, s.ref_len] for s in scores], np.int64)

    def value(drawn: np.ndarray) -> float:
        total = counts[drawn].sum(0).tolist()
        return (
            float(library.BLEU.compute_bleu(total[:4], total[4:8], total[8], total[9], smooth_method="exp").score) / 100
        )

    return CorpusMetric(value, len(counts))


def chrf(predictions: Sequence[str], references: References) -> tuple[float, str]:
    """Corpus chrF, 0 to 1 (Popović, 2015), and sacrebleu's signature."""
    _check(predictions, references)
    metric = _sacrebleu().CHRF()
    score = metric.corpus_score(list(predictions), _streams(references)).score
    return float(score) / 100, str(metric.get_signature())


def sentence_chrf(predictions: Sequence[str], references: References) -> list[float]:
    """chrF of each case, 0 to 1."""
    _check(predictions, references)
    metric = _sacrebleu().CHRF()
    return [
        float(metric.sentence_score(text, list(each)).score) / 100
        for text, each in zip(predictions, references, strict=True)
    ]


class Words:
    """rouge-score's tokenizer: `language.script_words`, with ASCII words stemmed."""

    def tokenize(self, text: str) -> list[str]:
        return [_stem(word) if word.isascii() else word for word in script_words(text)]


@cache
def _stemmer() -> "DefaultTokenizer":
    from rouge_score.tokenizers import DefaultTokenizer

    return DefaultTokenizer(use_stemmer=True)


@lru_cache(maxsize=100_000)
def _stem(word: str) -> str:
    return str(_stemmer().tokenize(word)[0])


def rouge(predictions: Sequence[str], references: References) -> dict[str, list[float]]:
    """F-measures of ROUGE-1, -2 and -L of each case, 0 to 1 (Lin, 2004), the maximum over references.

    See `ROUGE_WORDS` for the tokenization.
    """
    _check(predictions, references)
    require_rouge("ROUGE")
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(list(ROUGE), tokenizer=Words())
    found: dict[str, list[float]] = {kind: [] for kind in ROUGE}
    for text, each in zip(predictions, references, strict=True):
        for kind, score in scorer.score_multi(list(each), text).items():
            found[kind].append(float(score.fmeasure))
    return found


def distinct(predictions: Sequence[str], n: int) -> float:
    """Distinct n-grams divided by all n-grams of the predictions (Li et al., 2016, "distinct-n").

    Words are separated by spaces; in scripts without spaces, characters are words.
    """
    counts: Counter[tuple[str, ...]] = Counter()
    for text in predictions:
        spaceless = has_cjk(text) or SPACELESS.search(text)
        words = [c for c in text if not c.isspace()] if spaceless else text.split()
        counts.update(zip(*(words[i:] for i in range(n)), strict=False))
    return len(counts) / counts.total() if counts else 0.0
