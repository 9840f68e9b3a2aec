"""Exact match and F1 of short answers, as SQuAD counts them (Rajpurkar et al., 2016, evaluate-v1.1.py)."""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence

from instructrec_jax.metrics.language import CJK

ARTICLES = re.compile(r"\b(a|an|the)\b")


def tokens(text: str) -> list[str]:
    """The words of a normalised answer: lower case, without punctuation and English articles.

    Each Chinese character is a word (as in CMRC 2018, Cui et al., 2019), and beside the ASCII punctuation that SQuAD's
    own script removes that of all other scripts is (as in MLQA, Lewis et al., 2020).
    """
    text = "".join(c for c in text.lower() if c not in string.punctuation and unicodedata.category(c)[0] != "P")
    text = CJK.sub(lambda match: f" {match.group()} ", text)
    return ARTICLES.sub(" ", text).split()


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """1 where the prediction has the same words as one of the references, else 0."""
    return float(any(tokens(prediction) == tokens(reference) for reference in references))


def f1(prediction: str, references: Sequence[str]) -> float:
    """The largest F1 of the words that prediction and a reference share; two empty answers are equal."""
    return max(_f1(tokens(prediction), tokens(reference)) for reference in references)


def _f1(found: list[str], wanted: list[str]) -> float:
    if not found or not wanted:
        return float(found == wanted)
    same = sum((Counter(found) & Counter(wanted)).values())
    return 2 * same / (len(found) + len(wanted))
