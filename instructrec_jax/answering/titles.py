"""Finds items by typed titles: "matrix", "The Matrix (1999)", "Matrix, The", "id:603".

Titles are matched in steps, each more tolerant than the previous one; the first step with a match decides:

    exact    the title, with or without its year, ignoring case
    words    without punctuation, accents and year; "Matrix, The" equals "The Matrix"
    article  without a leading article
    part     the part before a colon, dash or bracket, or inside brackets: "Dr. Strangelove", "Se7en"
    id       the item's id
    close    similar spelling with equal numbers: "Apocalypse Nwo", but never "Rocky II" for "Rocky III"

A year in brackets must be the item's year. Several items matched by one step are ambiguous.
"""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cached_property

from instructrec_jax.preparation.readers.items import plain, split_title
from instructrec_jax.ranking.catalogue import Catalogue

CLOSE = 0.88  # minimum closeness (2 · equal characters / all characters) of a misspelled title
NEARLY = 0.05  # titles whose closeness differs by less are equally good
SHORTEST = 6  # minimum length for fuzzy matching; in shorter titles one letter matters: Heat, Heart
RESEMBLING = 0.6  # minimum closeness of a suggestion
LOOKED_AT = 50  # candidates of the fuzzy comparison: the titles with the most letter pairs in common
SUGGESTED = 3
LISTED = 9  # maximum number of ambiguous items in a message

_ARTICLES = {"the", "a", "an"}
_ROMAN = {"ii", "iii", "iv", "v", "vi", "vii", "viii", "ix", "x"}
_PARTS = re.compile(r":\s|\s[-–—]\s|\s*[()]\s*")
_LAST_YEAR = re.compile(r"^(.*\S)[\s,]+((?:18|19|20)\d\d)$")

Ask = Callable[[str, Sequence[str]], int | None]
"""Asks a person: (question, choices) -> number of the choice, or None for none of them."""


@dataclass(frozen=True)
class Match:
    """The items matched by a title."""

    items: list[int]
    """item numbers: none, one, or several equally good ones"""
    close: bool = False
    """whether the match is fuzzy"""
    suggestions: tuple[int, ...] = ()
    """item numbers of the nearest titles, if there is no match"""


class Titles:
    """A lookup of a catalogue's titles."""

    def __init__(self, catalogue: Catalogue):
        self.catalogue = catalogue
        years = catalogue.facts.get("year", [None] * len(catalogue))
        split = [split_title(title) for title in catalogue.titles]
        self._titles = [title or whole for (title, _), whole in zip(split, catalogue.titles, strict=True)]
        self._years = [year if year is not None else own for year, (_, own) in zip(years, split, strict=True)]

    def find(self, words: str) -> Match:
        """The items matched by a title; see the top of the file."""
        words = plain(words).strip()
        if words.startswith("id:"):
            number = self.catalogue.index.get(words[3:].strip())
            return Match([] if number is None else [number])
        if hits := self._exact.get(fold(words)):
            return Match(hits)
        title, year = split_title(words)
        found = self._steps(title, year)
        if not found and year is None and (bare := _LAST_YEAR.match(words)):
            found = self._steps(bare[1], int(bare[2]))
        if not found and words in self.catalogue.index:
            found = [self.catalogue.index[words]]
        return Match(found) if found else self._close(title, year)

    def _steps(self, title: str, year: int | None) -> list[int]:
        for key, known in ((letters(title), self._words), (bare(title), self._bare), (bare(title), self._parts)):
            hits = [item for item in known.get(key, []) if year is None or self._years[item] == year]
            if hits and key:
                return hits
        return []

    def _close(self, title: str, year: int | None) -> Match:
        asked = bare(title)
        common: Counter[int] = Counter()
        for pair in _pairs(asked):
            common.update(self._by_pair.get(pair, ()))
        shared = {item: 2 * n / (len(_pairs(asked)) + len(_pairs(self._keys[item]))) for item, n in common.items()}
        likely = sorted(shared, key=lambda item: (-shared[item], item))[:LOOKED_AT]
        closeness = {item: SequenceMatcher(None, asked, self._keys[item], autojunk=False).ratio() for item in likely}
        ranked = sorted(closeness, key=lambda item: (-closeness[item], item))
        near = [item for item in ranked if closeness[item] >= CLOSE and self._could_be(asked, year, item)]
        if near:
            best = closeness[near[0]]
            return Match([item for item in near if closeness[item] > best - NEARLY], close=True)
        words = set(asked.split())
        worth = {i: 1 + closeness[i] if words <= set(self._keys[i].split()) else closeness[i] for i in ranked}
        resembling = [item for item in sorted(worth, key=lambda i: -worth[i]) if worth[item] >= RESEMBLING]
        return Match([], suggestions=tuple(resembling[:SUGGESTED]))

    def complete(self, words: str, limit: int) -> list[int]:
        """The items whose titles continue what was typed: at the title's start, at a word's start, then anywhere.

        Case, accents, punctuation and a leading article do not count. Nothing typed: the first items.
        """
        typed = bare(words) if words.strip() else ""
        places = ((item, f" {key}".find(f" {typed}"), key.find(typed)) for item, key in enumerate(self._keys))
        found = sorted((0 if word == 0 else 1 if word > 0 else 2, item) for item, word, any_ in places if any_ >= 0)
        return [item for _, item in found[:limit]]

    def _could_be(self, asked: str, year: int | None, item: int) -> bool:
        own = self._keys[item]
        same_year = year is None or self._years[item] in (None, year)
        return same_year and min(len(asked), len(own)) >= SHORTEST and _numbers(asked) == _numbers(own)

    @cached_property
    def _exact(self) -> dict[str, list[int]]:
        names = [self.catalogue.name(item) for item in range(len(self.catalogue))]
        return _index([{fold(title), fold(name)} for title, name in zip(self.catalogue.titles, names, strict=True)])

    @cached_property
    def _words(self) -> dict[str, list[int]]:
        return _index([{letters(title)} for title in self._titles])

    @cached_property
    def _keys(self) -> list[str]:
        return [bare(title) for title in self._titles]

    @cached_property
    def _bare(self) -> dict[str, list[int]]:
        return _index([{key} for key in self._keys])

    @cached_property
    def _parts(self) -> dict[str, list[int]]:
        return _index([{bare(part.removeprefix("a.k.a. ")) for part in _PARTS.split(t)} - {""} for t in self._titles])

    @cached_property
    def _by_pair(self) -> dict[str, list[int]]:
        return _index([_pairs(key) for key in self._keys])


def resolve(
    titles: Titles, asked: Iterable[str], *, skip_unknown: bool = False, ask: Ask | None = None
) -> tuple[list[int], list[str]]:
    """Item numbers of titles, in their order, and notes on fuzzy matches and skipped titles.

    Args:
      skip_unknown: leave out unknown titles, with a note, instead of raising.
      ask: asks a person about ambiguous and nearly matching titles; None: they are errors.

    Raises ValueError that lists ambiguous titles with their years and ids, and unknown titles with the nearest ones.
    """
    items, notes, problems = [], [], []
    for words in asked:
        match = titles.find(words)
        choices = (match.items or list(match.suggestions))[:LISTED]
        if len(match.items) != 1 and choices and ask is not None:
            question = f'"{words}" could be' if match.items else f'"{words}" is not in the catalogue. Did you mean'
            chosen = ask(question, [describe(titles.catalogue, item) for item in choices])
            match = Match([] if chosen is None else [choices[chosen]], suggestions=match.suggestions)
        listed = "; ".join(describe(titles.catalogue, item) for item in (match.items or match.suggestions)[:LISTED])
        if len(match.items) > LISTED:
            listed += f" and {len(match.items) - LISTED} more"
        if len(match.items) == 1:
            items += match.items
            if match.close:
                notes.append(f'"{words}" is read as {titles.catalogue.name(match.items[0])}.')
        elif match.items:
            problems.append(f'"{words}" is ambiguous: {listed}. Add the year in brackets, or give the id.')
        elif skip_unknown:
            notes.append(f'"{words}" is not in the catalogue and is left out.')
        else:
            hint = f" The nearest: {listed}." if listed else ""
            problems.append(f'"{words}" is not in the catalogue.{hint}')
    if problems:
        unknown = any("not in the catalogue" in problem for problem in problems)
        remedy = " To leave out unknown titles: --on_unknown skip." if unknown else ""
        raise ValueError(" ".join(problems) + remedy)
    return items, notes


def describe(catalogue: Catalogue, item: int) -> str:
    """Title, year and id: "The Thing (1982) [id:tt0084787]"."""
    return f"{catalogue.name(item)} [id:{catalogue.ids[item]}]"


def fold(text: str) -> str:
    """The text normalized in case, width and blanks."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def letters(title: str) -> str:
    """`fold` without punctuation and accents; a title of punctuation only is kept ("???")."""
    folded = unicodedata.normalize("NFKD", fold(title).replace("&", " and "))
    kept = "".join(c for c in folded if not "\u0300" <= c <= "\u036f")
    kept = kept.replace("'", "").replace("\u2019", "")
    words = "".join(" " if unicodedata.category(c)[0] in "PZ" else c for c in kept).split()
    return unicodedata.normalize("NFC", " ".join(words)) or fold(title)


def bare(title: str) -> str:
    """`letters` without a leading article."""
    first, _, rest = letters(title).partition(" ")
    return rest if rest and first in _ARTICLES else letters(title)


def _index(keys: Sequence[Iterable[str]]) -> dict[str, list[int]]:
    found: defaultdict[str, list[int]] = defaultdict(list)
    for item, each in enumerate(keys):
        for key in each:
            found[key].append(item)
    return dict(found)


def _pairs(text: str) -> set[str]:
    padded = f" {text} "
    return {padded[i : i + 2] for i in range(len(padded) - 1)}


def _numbers(text: str) -> list[str]:
    return [word for word in text.split() if word in _ROMAN or any(c.isdigit() for c in word)]
