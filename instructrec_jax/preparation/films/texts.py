"""What the embedded data set is made of: facts of films, wordings of wishes, and a glossary."""

from functools import cache
from pathlib import Path
from typing import Literal, TypedDict

from instructrec_jax.files import read_json, read_jsonl

HERE = Path(__file__).parent
Split = Literal["train", "held_out"]  # of the wordings


class Film(TypedDict):
    """A line of films.jsonl."""

    title: str
    year: int
    director: str
    genres: list[str]
    themes: list[str]
    blurb: str


class Phrases(TypedDict):
    """Alternatives in the phrasings of training and in the held-out ones."""

    train: list[str]
    held_out: list[str]


class Theme(TypedDict):
    """How a theme is said: as an adjective of the noun ([] for none), or as a clause behind it."""

    adjective: Phrases
    clause: Phrases


class Genre(TypedDict):
    """How a genre is said: as a noun with its article."""

    noun: Phrases


class Avoidable(Phrases):
    """What a film should not be, said of films with one of the subjects `near` and none of `unless`."""

    near: list[str]
    unless: list[str]


class Era(Phrases):
    """A span of years: the first and the last."""

    years: list[int]


class Wordings(TypedDict):
    """wordings.json: subjects by their names, and the sentences that their phrases go into."""

    themes: dict[str, Theme]
    unsaid: dict[str, list[str]]
    genres: dict[str, Genre]
    avoid: dict[str, Avoidable]
    eras: dict[str, Era]
    nouns: list[str]
    negations: Phrases
    requests: Phrases
    histories: Phrases
    histories_of_several: Phrases
    next: Phrases
    next_of_several: Phrases


@cache
def facts() -> list[Film]:
    """The films as written in films.jsonl."""
    return read_jsonl(HERE / "films.jsonl", Film)


@cache
def wordings() -> Wordings:
    """Phrases for themes, genres, eras and things to avoid, and the sentences they go into: wordings.json.

    Each has a `train` and a `held_out` list; see `wishes` for what goes where.
    """
    return read_json(HERE / "wordings.json", Wordings)


@cache
def glossary() -> dict[str, list[str]]:
    """Theme or genre -> sentences of general English on it: glossary.txt, in the order of wordings.json."""
    lines = (HERE / "glossary.txt").read_text(encoding="utf-8").splitlines()
    subjects = [*wordings()["themes"], *wordings()["genres"]]
    return {subject: lines[6 * number : 6 * number + 6] for number, subject in enumerate(subjects)}


def bare(text: str) -> str:
    """A text as lower-case words with single spaces: what two wordings are compared by."""
    return " ".join("".join(c if c.isalnum() else " " for c in text.lower()).split())


@cache
def held_out_phrases() -> frozenset[str]:
    """All held-out phrases, `bare`."""

    def collect(node: object, held_out: bool) -> set[str]:
        if isinstance(node, dict):
            return {text for key, below in node.items() for text in collect(below, held_out or key == "held_out")}
        return {bare(str(text)) for text in node} if held_out and isinstance(node, list) else set()

    return frozenset(collect(wordings(), False))
