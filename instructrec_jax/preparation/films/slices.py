"""Requests of named kinds, as test cases of their own: negation, comparison, era, mood and mixed languages.

A case is a sentence of `slices.json` around a wish in the words of `wordings.json`. Its positive items are all films
whose records have what is asked for, except what is ruled out; where something is ruled out, at least one film has all
the rest, so that a ranking that does not read the condition has something to get wrong. The records have no running
times, so no case asks for a length.

The sentences and words of "held_out" make test cases, those of "train" the cases that settings are chosen on. None of
them is in the training examples.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from instructrec_jax.data.example import Example
from instructrec_jax.files import read_json
from instructrec_jax.preparation.films.texts import HERE, Film, Phrases, Split, facts, wordings
from instructrec_jax.preparation.films.wishes import phrase, speaker

CASES = 80  # of each slice
MOST_POSITIVES = 10  # films that fit a case
ALIKE = 3  # themes and genres that a film has in common with the one it is compared with
WORDING = "named slices"  # what reports call these cases, beside the seen and unseen phrasings
DECADES = {
    1930: "thirties",
    1940: "forties",
    1950: "fifties",
    1960: "sixties",
    1970: "seventies",
    1980: "eighties",
    1990: "nineties",
}


class Words(Phrases):
    """A slice of slices.json: its sentences, and what stands for each fact, change or span of years in them."""

    words: dict[str, Phrases]


@dataclass(frozen=True)
class Case:
    """A request, the numbers of the films that fit it, and those that fit all of it but its condition."""

    instruction: str
    films: list[int]
    nearly: list[int]
    asked: tuple[str, ...]


@dataclass(frozen=True)
class Draw:
    """What a slice draws a case from."""

    words: Words
    split: Split
    rng: np.random.Generator

    def one(self, choices: Sequence[str]) -> str:
        return str(self.rng.choice(list(choices)))

    @property
    def known(self) -> dict[str, Phrases]:
        return self.words["words"]

    def said(self, name: str) -> str:
        return self.one(self.known[name][self.split])


@cache
def words() -> dict[str, Words]:
    return read_json(HERE / "slices.json", dict[str, Words])


@cache
def has() -> list[frozenset[str]]:
    """The themes and genres of each film."""
    return [frozenset([*film["themes"], *film["genres"]]) for film in facts()]


def cases(name: str, split: Split, seed: int) -> Iterator[Case]:
    """`CASES` cases of a slice, no two with the same words."""
    place, number = list(SLICES).index(name), 0
    known: set[str] = set()
    while len(known) < CASES:
        rng = np.random.default_rng([seed, place, split == "train", number])
        number += 1
        case = SLICES[name](Draw(words()[name], split, rng))
        if case is not None and 0 < len(case.films) <= MOST_POSITIVES and case.instruction not in known:
            known.add(case.instruction)
            yield case


def slice_examples(ids: Sequence[str], split: Split, seed: int) -> Iterator[Example]:
    """All cases of all slices, with `origin["slice"]`. ids: of the films."""
    for name in SLICES:
        for number, case in enumerate(cases(name, split, seed)):
            yield Example(
                instruction=case.instruction,
                output=tuple(ids[film] for film in case.films),
                task="recommendation",
                id=f"{name.replace(' ', '-')}-{number}",
                origin={"wording": WORDING, "slice": name, "asked": ", ".join(case.asked)},
            )


# ------------------------------------------------------------------ slices


def negation(draw: Draw) -> Case | None:
    """A wish, and a theme or genre that films have that fit the wish: the positive films do not."""
    film = _film(draw)
    asked = _asked(film, draw)
    unwanted = draw.one(list(draw.known))
    fitting = _with(asked)
    nearly = [number for number in fitting if unwanted in has()[number]]
    if unwanted in {*film["themes"], *film["genres"]} or not nearly:
        return None
    said = draw.said(unwanted)
    sentence = _filled(draw, {"wish": _wish(asked, draw), "unwanted": said})
    return Case(sentence, [n for n in fitting if n not in nearly], nearly, asked)


def comparison(draw: Draw) -> Case | None:
    """A film by its title, and how another one should differ: the positive films have that, and much in common."""
    known = int(draw.rng.integers(len(facts())))
    film = facts()[known]
    change = draw.one(list(draw.known))
    alike = [n for n in range(len(facts())) if n != known and len(has()[n] & has()[known]) >= ALIKE]
    if change in ("newer", "older"):
        years = [facts()[n]["year"] - film["year"] for n in alike]
        fitting = [n for n, by in zip(alike, years, strict=True) if (by > 0 if change == "newer" else by < 0)]
    else:
        if change in has()[known]:
            return None
        fitting = [n for n in alike if change in has()[n]]
    if sum(other["title"] == film["title"] for other in facts()) > 1:
        return None
    sentence = _filled(draw, {"title": film["title"], "change": draw.said(change)})
    return Case(sentence, fitting, [n for n in alike if n not in fitting], ())


def era(draw: Draw) -> Case | None:
    """A wish and a span of years: films of other years fit the wish, too."""
    film = _film(draw)
    asked = _asked(film, draw)
    kind = draw.one(list(draw.known))
    first, last = 1900, 2030
    year = int(draw.rng.integers(195, 202)) * 10
    end = year + int(draw.rng.integers(1, 4)) * 10 - 1
    if kind == "decade":
        year = draw.rng.choice(list(DECADES))
        first, last = int(year), int(year) + 9
    elif kind == "before":
        last = year - 1
    else:
        first, last = year, end if kind == "between" else last
    fitting = _with(asked)
    inside = [n for n in fitting if first <= facts()[n]["year"] <= last]
    if len(inside) == len(fitting):
        return None
    places = {"year": year, "last": year - 1, "end": end, "decade": f"{year}s", "short": f"{str(year)[2:]}s"}
    said = draw.said(kind).format_map(places | {"word": DECADES.get(int(year), "")})
    sentence = _filled(draw, {"wish": _wish(asked, draw), "era": said})
    return Case(sentence, inside, [n for n in fitting if n not in inside], asked)


def mood(draw: Draw) -> Case | None:
    """A genre, and how it should feel."""
    film = _film(draw)
    moods = [theme for theme in film["themes"] if theme in draw.known]
    if not moods:
        return None
    asked = (draw.one(film["genres"]), draw.one(moods))
    genre = draw.one(wordings()["genres"][asked[0]]["noun"][draw.split])
    sentence = _filled(draw, {"genre": genre, "mood": draw.said(asked[1])})
    return Case(sentence, _with(asked), [], asked)


def mixed_languages(draw: Draw) -> Case | None:
    """Two facts, one in English, one in Chinese: films with one of them alone do not fit."""
    film = _film(draw)
    every = [fact for fact in (*film["themes"], *film["genres"]) if fact in draw.known]
    others = [theme for theme in film["themes"] if film["title"] not in wordings()["unsaid"].get(theme, ())]
    if not every or len(others) < 2:
        return None
    chinese = draw.one(every)
    english = tuple(map(str, draw.rng.permutation([theme for theme in others if theme != chinese])[:2]))
    chosen = draw.said(chinese)
    sentence = _filled(draw, {"chinese": chosen, "english": _wish(english, draw)})
    return Case(sentence, _with((chinese, *english)), [n for n in _with(english) if chinese not in has()[n]], english)


SLICES: dict[str, Callable[[Draw], Case | None]] = {
    "negation": negation,
    "comparison": comparison,
    "era": era,
    "mood": mood,
    "mixed languages": mixed_languages,
}


# ------------------------------------------------------------------ words


def _film(draw: Draw) -> Film:
    return facts()[int(draw.rng.integers(len(facts())))]


def _asked(film: Film, draw: Draw) -> tuple[str, ...]:
    """Two themes of a film, or one and a genre."""
    sayable = [theme for theme in film["themes"] if film["title"] not in wordings()["unsaid"].get(theme, ())]
    themes = [str(theme) for theme in draw.rng.permutation(sayable)]
    return (themes[0], draw.one(film["genres"])) if draw.rng.random() < 0.5 else tuple(themes[:2])


def _with(asked: Sequence[str]) -> list[int]:
    """The films whose records have all that is asked for."""
    return [number for number, own in enumerate(has()) if own.issuperset(asked)]


def _wish(asked: Sequence[str], draw: Draw) -> str:
    """What is asked for as a noun phrase: see `wishes.phrase`."""
    say, known = speaker(draw.split, draw.rng), wordings()
    adjectives: list[str] = []
    clauses: list[str] = []
    noun = "something"
    for fact in asked:
        if fact in known["genres"]:
            noun = say(known["genres"][fact]["noun"])
        elif known["themes"][fact]["adjective"][draw.split] and len(adjectives) < 2 and draw.rng.random() < 0.5:
            adjectives.append(say(known["themes"][fact]["adjective"]))
        else:
            clauses.append(say(known["themes"][fact]["clause"], clauses))
    return phrase(noun, adjectives, "", clauses)[0]


def _filled(draw: Draw, places: dict[str, str]) -> str:
    sentence = draw.one(draw.words[draw.split]).format_map(places)
    return sentence[0].upper() + sentence[1:]
