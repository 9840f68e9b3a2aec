"""Finds items by typed titles: "matrix", "The Matrix (1999)", "Matrix, The", "id:603".

Titles are matched in steps, each more tolerant than the previous one; the first step with a match decides:

    exact    the title, with or without its year, ignoring case
    words    without punctuation, accents and year; "Matrix, The" equals "The Matrix"
    article  without a leading article
    other    another name inside brackets, or what stands before them: "Se7en"
    number   numbers as digits or words, "Rocky 4", "Kill Bill 2"; the first of a series may be "Alien 1"
    id       the item's id
    part     the part before or after a colon or dash: "Mad Max" for "Mad Max: Fury Road"
    close    similar spelling with equal numbers: "Apocalypse Nwo", but never "Rocky II" for "Rocky III"
    words of it    several words in a row of a long title: "Crouching Tiger"
    initials       "LOTR", "LOTR 1"

A year in brackets must be the item's year. Several items matched by one step are ambiguous. What the last four steps
find is uncertain (`Match.close`): whoever uses it says what was taken.
"""

import itertools
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cached_property

from instructrec_jax.metrics.speech import edits
from instructrec_jax.preparation.readers.items import plain, split_title
from instructrec_jax.ranking.catalogue import Catalogue

# characters of a title without its article -> typing errors that it may have
EDITS = ((5, 1), (8, 2), (16, 3))
SLIPS = 4  # in shorter titles one letter matters (Heat, Heart), but letters that are swapped or doubled do not (Haet)
RESEMBLING = 0.6  # minimum closeness of a suggestion
LOOKED_AT = 50  # candidates of the fuzzy comparison: the titles with the most letter pairs in common
SUGGESTED = 3
LISTED = 9  # maximum number of ambiguous items in a message

_ARTICLES = {"the", "a", "an"}
_ROMAN = ["i", "ii", "iii", "iv", "v", "vi", "vii", "viii", "ix", "x"]
_COUNTED = "one two three four five six seven eight nine ten eleven twelve thirteen".split()
_DIGITS = {word: str(n) for words in (_ROMAN[1:], _COUNTED[1:]) for n, word in enumerate(words, 2)}
_VOLUMES = {"part", "vol", "volume", "chapter", "episode"}
_INITIALS = re.compile(r"([A-Z0-9]{3,8}|[a-z0-9]{4,8})(?: (1))?")
BEGINNING, INSIDE = 2, 3  # words in a row that may stand for a title, at its beginning and inside
_PARTS = re.compile(r":\s|\s[-–—]\s")
_BRACKETS = re.compile(r"\s*[()]\s*")
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
        if found := self.spelled(words):
            return Match(found)
        title, year = split_title(words)
        parts = [item for item in self._parts.get(bare(title), []) if self._could_be(year, item)]
        return Match(parts, close=True) if parts else self._close(title, year)

    def spelled(self, words: str) -> list[int]:
        """The items matched by a title as it is spelled: by the steps whose matches are certain."""
        if hits := self._exact.get(fold(words)):
            return hits
        title, year = split_title(words)
        found = self._steps(title, year)
        if not found and year is None and (bare := _LAST_YEAR.match(words)):
            found = self._steps(bare[1], int(bare[2]))
        number = self.catalogue.index.get(words)
        return found or ([] if number is None else [number])

    def _steps(self, title: str, year: int | None) -> list[int]:
        steps = ((letters(title), self._words), (bare(title), self._bare), (bare(title), self._others))
        for key, known in (*steps, (numbered(title), self._numbered)):
            hits = [item for item in known.get(key, []) if year is None or self._years[item] == year]
            if hits and key:
                return hits
        return []

    def _close(self, title: str, year: int | None) -> Match:
        asked, whole = bare(title), letters(title)
        common: Counter[int] = Counter()
        for pair in _pairs(asked):
            common.update(self._by_pair.get(pair, ()))
        shared = {item: 2 * n / (len(_pairs(asked)) + len(_pairs(self._keys[item]))) for item, n in common.items()}
        # a part of a long title has few of its pairs, but most of its own
        own = {item: n / len(_pairs(asked)) for item, n in common.items()}
        likely = list(
            dict.fromkeys(
                item
                for worth in (shared, own)
                for item in sorted(worth, key=lambda item: (-worth[item], item))[:LOOKED_AT]
            )
        )
        slips = {item: self._slips((asked, whole), item) for item in likely if self._could_be(year, item)}
        if near := {item: n for item, n in slips.items() if n is not None}:
            return Match([item for item, n in near.items() if n == min(near.values())], close=True)
        for others in (self._saying(asked), self._initialed(title)):
            if found := [item for item in others if self._could_be(year, item)]:
                return Match(found, close=True)
        closeness = {item: SequenceMatcher(None, asked, self._keys[item], autojunk=False).ratio() for item in likely}
        ranked = sorted(closeness, key=lambda item: (-closeness[item], item))
        words = set(asked.split())
        worth = {i: 1 + closeness[i] if words <= set(self._keys[i].split()) else closeness[i] for i in ranked}
        resembling = [item for item in sorted(worth, key=lambda i: -worth[i]) if worth[item] >= RESEMBLING]
        return Match([], suggestions=tuple(resembling[:SUGGESTED]))

    def _slips(self, asked: Iterable[str], item: int) -> int | None:
        """The least number of typing errors by which a name of an item differs; None: too many."""
        found = None
        for typed in dict.fromkeys(asked):
            for name in self._names[item]:
                length = min(len(typed), len(bare(name)))
                most = max((n for shortest, n in EDITS if length >= shortest), default=0)
                swapped = sorted(typed) == sorted(name)
                slip = (1 + swapped) * (length >= SLIPS and (swapped or _single(typed) == _single(name)))
                if abs(len(typed) - len(name)) > max(most, slip) or _digits(typed) != _digits(name):
                    continue
                slips = edits(typed, name, swaps=True)
                if slips <= max(most, slip) and (found is None or slips < found):
                    found = slips
        return found

    def _saying(self, asked: str) -> list[int]:
        """The items whose title begins with these words, or has several of them in a row."""
        count, keys = len(asked.split()), list(enumerate(self._keys))
        begin = [item for item, key in keys if count >= BEGINNING and f"{key} ".startswith(f"{asked} ")]
        return begin or [item for item, key in keys if count >= INSIDE and f" {asked} " in f" {key} "]

    def _initialed(self, title: str) -> list[int]:
        """The items whose title, or whose title's part, has these initials; the oldest one for "LOTR 1"."""
        if not (typed := _INITIALS.fullmatch(title.strip())):
            return []
        hits = self._initials.get(typed[1].lower(), [])
        dated = [(self._years[item], item) for item in hits if self._years[item] is not None]
        return [min(dated)[1]] if typed[2] and dated else hits

    def complete(self, words: str, limit: int) -> list[int]:
        """The items whose titles continue what was typed: at the title's start, at a word's start, then anywhere.

        Case, accents, punctuation and a leading article do not count. Nothing typed: the first items.
        """
        typed = bare(words) if words.strip() else ""
        places = ((item, f" {key}".find(f" {typed}"), key.find(typed)) for item, key in enumerate(self._keys))
        found = sorted((0 if word == 0 else 1 if word > 0 else 2, item) for item, word, any_ in places if any_ >= 0)
        return [item for _, item in found[:limit]]

    def _could_be(self, year: int | None, item: int) -> bool:
        return year is None or self._years[item] in (None, year)

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
        parts = [[part for name in _BRACKETS.split(title) for part in _PARTS.split(name)] for title in self._titles]
        return _index([{bare(part) for part in each} - {""} if len(each) > 1 else () for each in parts])

    @cached_property
    def _others(self) -> dict[str, list[int]]:
        names = [{bare(name.removeprefix("a.k.a. ")) for name in _BRACKETS.split(title)} for title in self._titles]
        return _index([own - {""} for own in names])

    @cached_property
    def _numbered(self) -> dict[str, list[int]]:
        return _index([{numbered(title)} for title in self._titles])

    @cached_property
    def _names(self) -> list[list[str]]:
        """What each item may be called: its title with and without its article, and its parts."""
        parts = [
            [form(part) for name in _BRACKETS.split(title) for part in _PARTS.split(name) for form in (letters, bare)]
            for title in self._titles
        ]
        whole = [[letters(title), key] for title, key in zip(self._titles, self._keys, strict=True)]
        return [[name for name in dict.fromkeys([*own, *some]) if name] for own, some in zip(whole, parts, strict=True)]

    @cached_property
    def _initials(self) -> dict[str, list[int]]:
        def of(name: str) -> str:
            return "".join(word if word.isdigit() else word[0] for word in name.split())

        return _index([{of(name) for name in names} for names in self._names])

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


def numbered(title: str) -> str:
    """`bare` with numbers as digits, without "part" and "volume", and without the number of the first of a series."""
    words = [_DIGITS.get(word, word) for word in bare(title).split() if word not in _VOLUMES]
    return " ".join(words[:-1] if len(words) > 1 and words[-1] in ("1", "i", "one") else words)


def _digits(text: str) -> list[str]:
    """The numbers of a title, in digits, but for those in words: "Seeven Samurai"."""
    known = {word: str(n) for n, word in enumerate(_ROMAN[1:], 2)}
    return [known.get(word, word) for word in text.split() if word in known or any(c.isdigit() for c in word)]


def _single(text: str) -> str:
    """A text in which no letter stands twice in a row."""
    return "".join(c for c, _ in itertools.groupby(text))
