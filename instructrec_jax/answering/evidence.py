"""What moved an item's score: each item of the history, and each word of the wish, is left out in turn.

    contribution of a part = score with everything − score without the part

This is occlusion (Zeiler & Fergus, 2014; leave-one-out in Li et al., 2016, "Understanding Neural Networks through
Representation Erasure"). The numbers are differences of the model's own scores, in the scores' unit. They sum up to the
score itself only for a model that adds; where two parts say the same, each alone moves little.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

KEPT = 5  # parts that are kept of an item's evidence, those that moved it most
SHOWN = 3  # parts that a line names
NEGLIGIBLE = 0.05  # of the largest contribution: what is below is not named

_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
# A letter's sign of a script without blanks by itself, a word, or a picture.
_WORD = re.compile(
    f"[{_CJK}]|(?:(?![{_CJK}])[^\\W_])+(?:['\u2019-](?:(?![{_CJK}])[^\\W_])+)*"
    "|[\u2600-\u27bf\U0001f000-\U0001faff][\ufe0f\u200d\U0001f3fb-\U0001f3ff]*"
)

T = TypeVar("T")


@dataclass(frozen=True)
class Part:
    """Something that can be left out of a request."""

    kind: str
    """history or word"""
    text: str
    """an item's name, or a word as it is written"""


@dataclass(frozen=True)
class Evidence:
    """How much a part raised (or, negative, lowered) an item's score."""

    part: Part
    contribution: float


def words_of(text: str) -> list[str]:
    """The distinct words of a text, in order, as first written; Chinese and Japanese signs count one by one."""
    found: dict[str, str] = {}
    for word in _WORD.findall(text):
        found.setdefault(word.casefold(), word)
    return list(found.values())


def without_word(text: str, word: str) -> str:
    """The text without a word, wherever it stands in it; commas and blanks that are left over go too."""
    left = _WORD.sub(lambda match: "" if match[0].casefold() == word.casefold() else match[0], text)
    left = re.sub(r"\s+([,.;:!?])", r"\1", re.sub(r"\s+", " ", left))
    left = re.sub(r"^[\s,.;:!?、，。]+|([,;:、，])(?=[,.;:!?、，。])", "", left).strip()
    return left if _WORD.search(left) else ""


def contributions(
    score: Callable[[Sequence[T], np.ndarray], np.ndarray],
    wholes: Sequence[T],
    variants: Sequence[Sequence[T]],
    items: np.ndarray,
) -> list[np.ndarray]:
    """Contributions float64 [parts, k] of each request's parts to the scores of its k items.

    Args:
      score: (requests, items int [requests, k]) -> float [requests, k]. It is called once, with every whole request and
        every variant.
      wholes: the requests as they are.
      variants: of each request, one with each of its parts left out.
      items: int [requests, k].
    """
    counts = [1 + len(each) for each in variants]
    asked = [x for whole, each in zip(wholes, variants, strict=True) for x in (whole, *each)]
    if not asked:
        return []
    scores = np.asarray(score(asked, np.repeat(items, counts, axis=0)), np.float64)
    blocks = np.split(scores, np.cumsum(counts)[:-1])
    return [block[:1] - block[1:] for block in blocks]


def strongest(parts: Sequence[Part], values: np.ndarray) -> list[Evidence]:
    """The parts that moved an item most, up or down, in order of their contributions float [parts]."""
    chosen = np.argsort(-np.abs(values), kind="stable")[:KEPT]
    found = [Evidence(parts[place], float(values[place])) for place in chosen]
    return sorted(found, key=lambda evidence: -evidence.contribution)


def line(evidence: Sequence[Evidence]) -> str:
    """'+0.21 "space", +0.08 Alien (1979)': the few that moved it most, in order of their contributions."""
    largest = max((abs(e.contribution) for e in evidence), default=0.0)
    if not largest:
        return "no single part moved it" if evidence else ""
    named = [e for e in evidence if abs(e.contribution) >= NEGLIGIBLE * largest]
    named = sorted(named, key=lambda e: -abs(e.contribution))[:SHOWN]
    return ", ".join(
        f"{_signed(e.contribution)} " + (f'"{e.part.text}"' if e.part.kind == "word" else e.part.text)
        for e in sorted(named, key=lambda e: -e.contribution)
    )


def _signed(value: float) -> str:
    """Two digits that count, with a sign."""
    digits = max(0, 1 - int(np.floor(np.log10(abs(value))))) if value else 0
    return f"{value:+.{min(digits, 6)}f}".replace("-", "−")
