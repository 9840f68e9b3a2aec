"""Exact match and F1 of short answers as in SQuAD (Rajpurkar et al., 2016, evaluate-v1.1.py)."""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence

from instructrec_jax.metrics.language import CJK

ARTICLES = re.compile(r"\b(a|an|the)\b")


def tokens(text: str) -> list[str]:
    """The words of a normalized answer: lower case, without punctuation and English articles.

    Each Chinese character is a word (as in CMRC 2018, Cui et al., 2019). SQuAD's script removes ASCII punctuation only;
    this removes the punctuation of all scripts (as in MLQA, Lewis et al., 2020).
    """
    text = "".join(c for c in text.lower() if c not in string.punctuation and unicodedata.category(c)[0] != "P")
    text = CJK.sub(lambda match: f" {match.group()} ", text)
    return ARTICLES.sub(" ", text).split()


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """1 if the prediction has the same words as a reference, else 0."""
    return float(any(tokens(prediction) == tokens(reference) for reference in references))


def f1(prediction: str, references: Sequence[str]) -> float:
    """The largest word F1 of the prediction with a reference; 1 if both are empty."""
    return max(_f1(tokens(prediction), tokens(reference)) for reference in references)


def _f1(found: list[str], reference: list[str]) -> float:
    if not found or not reference:
        return float(found == reference)
    same = sum((Counter(found) & Counter(reference)).values())
    return 2 * same / (len(found) + len(reference))
