"""Leave-one-out attribution of an item's score to the items of the history and the words of the instruction.

    contribution of a part = score of the full request − score without the part

This is occlusion (Zeiler & Fergus, 2014; leave-one-out in Li et al., 2016, "Understanding Neural Networks through
Representation Erasure"). Contributions have the unit of the scores. They sum to the score only for an additive model;
of two redundant parts, each alone contributes little.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

KEPT = 5  # parts kept per item
SHOWN = 3  # parts shown in a line
NEGLIGIBLE = 0.05  # smaller contributions, relative to the largest, are not shown

_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_EMOJI = "\u2600-\u27bf\U0001f000-\U0001faff"
# One CJK character, a word, a flag, or an emoji, which may be several ones joined.
_WORD = re.compile(
    f"[{_CJK}]|(?:(?![{_CJK}])[^\\W_])+(?:['\u2019-](?:(?![{_CJK}])[^\\W_])+)*"
    f"|[\U0001f1e6-\U0001f1ff]{{2}}|[{_EMOJI}](?:[\ufe0f\U0001f3fb-\U0001f3ff]|\u200d[{_EMOJI}]?)*"
)

T = TypeVar("T")


@dataclass(frozen=True)
class Part:
    """A part of a request: an item of the history or a word of the instruction."""

    kind: str
    """history or word"""
    text: str
    """an item's name, or a word as written"""


@dataclass(frozen=True)
class Evidence:
    """The contribution of a part to an item's score; negative: the part lowered it."""

    part: Part
    contribution: float


def word_places(text: str) -> list[tuple[str, int, int]]:
    """(word, start, end) of each word of a text, in order; each Chinese or Japanese character is a word."""
    return [(match[0], match.start(), match.end()) for match in _WORD.finditer(text)]


def words_of(text: str) -> list[str]:
    """The distinct words of a text, in order, as first written; see `word_places`."""
    found: dict[str, str] = {}
    for word, _, _ in word_places(text):
        found.setdefault(word.casefold(), word)
    return list(found.values())


def without_word(text: str, word: str) -> str:
    """The text without all occurrences of a word, and without the commas and blanks left over."""
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
    """Contributions of each request's parts to the scores of its k items: float64 [parts, k] per request.

    Args:
      score: (requests, items int [requests, k]) -> float [requests, k]; called once, with all requests and variants.
      wholes: the full requests.
      variants: per request, one variant without each of its parts.
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
    """At most `KEPT` parts by their contributions float [parts]: what raises the score most, then what lowers it most.

    Supporters come first, because they are the reasons for the item; one place is left for what lowers its score.
    """
    order = np.argsort(-values, kind="stable")
    raising, lowering = order[values[order] >= 0], order[values[order] < 0][::-1]
    kept = raising[: KEPT - bool(len(lowering))]
    found = [Evidence(parts[place], float(values[place])) for place in (*kept, *lowering[: KEPT - len(kept)])]
    return sorted(found, key=lambda evidence: -evidence.contribution)


def line(evidence: Sequence[Evidence]) -> str:
    """'+0.21 "space", +0.08 Alien (1979)': the largest contributions, supporters first."""
    largest = max((abs(e.contribution) for e in evidence), default=0.0)
    if not largest:
        return "no single part changes the score" if evidence else ""
    named = [e for e in evidence if abs(e.contribution) >= NEGLIGIBLE * largest]
    raising = [e for e in named if e.contribution > 0]
    lowering = sorted((e for e in named if e.contribution < 0), key=lambda e: e.contribution)
    return ", ".join(
        f"{_signed(e.contribution)} " + (f'"{e.part.text}"' if e.part.kind == "word" else e.part.text)
        for e in [*raising, *lowering][:SHOWN]
    )


def _signed(value: float) -> str:
    """Two significant digits with a sign."""
    digits = max(0, 1 - int(np.floor(np.log10(abs(value))))) if value else 0
    return f"{value:+.{min(digits, 6)}f}".replace("-", "−")
