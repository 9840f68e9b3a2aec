"""Texts as passages of a few hundred words, and passages as sentences, in English and Chinese."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from instructrec_jax.metrics.language import CJK, KANA, has_cjk, script_words, units
from instructrec_jax.tasks.generation.summarization import sentences

Language = Literal["en", "zh"]
# Each stands in most English sentences; several of them in few sentences of another language.
_ENGLISH = frozenset(
    "the of and in to is was are were for on that with as by at from it this be an or have has had not we you he she "
    "they his her its their which but can will".split()
)
_ONLY_ENGLISH = frozenset(("the", "and", "that", "with", "to"))  # others are words of Dutch or German, too
_ABBREVIATION = re.compile(
    r"(?:^|[\s(\[“\"])(?:[A-Z]|[A-Za-z](?:\.[A-Za-z])+|Mr|Mrs|Ms|Dr|Prof|Rev|Gen|Col|Lt|Sgt|Capt|Sen|Rep|Gov|St|Mt|Jr|"
    r"Sr|vs|etc|al|cf|ca|c|approx|Nos|Vol|vol|pp|p|Fig|fig|Figs|Eq|eq|Sec|sec|Ch|ch|Inc|Ltd|Co|Corp|Jan|Feb|"
    r"Mar|Apr|Jun|Jul|Aug|Sep|Sept|Oct|Nov|Dec|e\.g|i\.e)\.$"
)
_SPACES = re.compile(r"\s*")
_CLOSING = "”’」』）)】\"'"
_BRACKETS = {"(": ")", "[": "]", "“": "”", "「": "」", "『": "』", "（": "）", "《": "》", "【": "】"}


@dataclass(frozen=True)
class Passage:
    """Consecutive sentences of a text.

    Attributes:
      number: of the passage in its text, counted from 0.
      title: of the text; "" for none.
      source: name of the text: its id, or file and line.
    """

    text: str
    number: int = 0
    title: str = ""
    source: str = ""

    @cached_property
    def language(self) -> Language | None:
        """English or Chinese, by the larger share of the letters; None: another language, or no words."""
        letters = sum(map(str.isalpha, self.text))
        chinese = len(CJK.findall(self.text))
        if chinese * 2 > letters:
            return None if len(KANA.findall(self.text)) * 10 > chinese else "zh"
        words = script_words(self.text)
        common = sum(word in _ENGLISH for word in words)
        is_english = common * 16 >= len(words) and not _ONLY_ENGLISH.isdisjoint(words) or common * 4 >= len(words) > 0
        return "en" if is_english else None

    @cached_property
    def sentences(self) -> list[str]:
        """The sentences as they stand in the text, in order."""
        return [self.text[first:end] for first, end in spans(self.text)]

    @cached_property
    def whole(self) -> list[str]:
        """Those that can be quoted: complete, of ordinary length, with every bracket and quotation mark closed."""
        return [each for each in self.sentences if is_whole(each)]

    @cached_property
    def counts(self) -> Counter[str]:
        """How often each word (in Chinese each character) stands in the passage, see `script_words`."""
        return Counter(script_words(self.text))


def spans(text: str) -> list[tuple[int, int]]:
    """(first character, end) of each sentence.

    Beyond `summarization.sentences`: abbreviations and initials end none, a sentence does not begin with a small
    letter, and closing quotation marks belong to the sentence before.
    """
    found: list[tuple[int, int]] = []
    at = 0
    for piece in sentences(text):
        first = text.index(piece, at)
        at = first + len(piece)
        if found and "\n" not in text[found[-1][1] : first]:
            before = text[max(found[-1][0], found[-1][1] - 40) : found[-1][1]]
            if piece[0] in _CLOSING and has_cjk(before[-3:]) or set(piece) <= set(_CLOSING):
                inside = len(piece) - len(piece.lstrip(_CLOSING))
                found[-1] = found[-1][0], first + inside
                first += inside + len(piece[inside:]) - len(piece[inside:].lstrip())
                if first == at:
                    continue
            elif piece[0].islower() or _ABBREVIATION.search(before):
                found[-1] = found[-1][0], at
                continue
        found.append((first, at))
    return found


def is_whole(sentence: str) -> bool:
    """Whether a sentence can be quoted, see `Passage.whole`."""
    chinese = has_cjk(sentence)
    length = units(sentence)
    if not (10 <= length <= 90 if chinese else 6 <= length <= 40):
        return False
    last = sentence.rstrip(_CLOSING)[-1:]
    if last not in ("。！？" if chinese else ".!?") or not (sentence[0].isupper() or has_cjk(sentence[0])):
        return False
    if sentence.count('"') % 2 or any(sentence.count(a) != sentence.count(b) for a, b in _BRACKETS.items()):
        return False
    return "\n" not in sentence and "://" not in sentence and "  " not in sentence


def passages(text: str, longest: int, title: str = "", source: str = "") -> Iterator[Passage]:
    """The text in consecutive passages of at most `longest` words (characters in Chinese), cut between sentences.

    Nothing is left out but white space at the cuts. A sentence that is longer is cut between words, too. Where
    languages are mixed, each sentence counts in its own unit.
    """
    first = end = length = number = 0
    for one, other in _parts(text, longest):
        size = _size(text[one:other])
        if length and length + size > longest:
            yield Passage(text[first:end], number, title, source)
            first, length, number = one, 0, number + 1
        first = first if length else one
        end, length = other, length + size
    if length:
        yield Passage(text[first:end], number, title, source)


def _size(text: str) -> int:
    """The length in words; what has no spaces and is longer than 20 characters (an address, code) counts as several."""
    return max(units(text), len(text) // 20)


def _parts(text: str, longest: int) -> Iterator[tuple[int, int]]:
    """The sentences, and those that are too long in parts."""
    for first, end in spans(text):
        if _size(text[first:end]) <= longest:
            yield first, end
            continue
        at = first
        while at < end:
            here = text[at : at + 2 * longest]  # at most `longest` words, with the spaces between them
            stop = min(end, at + longest if has_cjk(here) else at + 2 * longest)
            if stop < end and not has_cjk(text[stop - 1 : stop + 1]):
                space = max(text.rfind(each, at, stop) for each in " \n\t")
                stop = space if space > at else stop
            yield at, at + len(text[at:stop].rstrip())
            at = min(end, _SPACES.match(text, stop).end())  # type: ignore[union-attr]  # it matches nothing, too
