"""What viewers say: wishes for a film in everyday words, put together from `wordings.json` by the rules of grammar.

A wish is a noun and clauses in the order in which people say them (time, place, what it is about, what it has, what it
does): "a tense film from the eighties set in a prison, about revenge, the kind that keeps you guessing". Everything in
it holds for the film that is wanted. A wish may end in what the film should not be ("but nothing too bloody"): only
where that goes with what was asked for, and only where it holds.
"""

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from instructrec_jax.preparation.films.texts import Film, Phrases, Split, bare, facts, wordings

TITLES_IN_PROMPT = 5
ORDER = {"time": 1, "place": 1, "about": 2, "with": 2, "aside": 1, "relative": 1}  # and how many of each, at best
KINDS = {"about": "about", "with": "with", "without": "with", "full": "with", "that": "relative", "where": "relative"}
# how asides begin
ASIDES = {"a", "as", "cold", "dark", "dripping", "for", "light", "like", "made", "not", "slightly", "sweet"}
MERGED = 6  # words of a clause that is said in one breath with another of its kind: "about revenge and friendship"
SHORT = 7  # words of a wish that a sentence may go on behind
ENDS = ".,;:!?"  # what stands after a wish that ends its part of the sentence
# words that may stand twice in a wish
LITTLE = frozenset(
    "about being film from full have into movie somebody someone something that their them there they this very what "
    "when where which with without your".split()
)


@dataclass(frozen=True)
class Wish:
    """A wish in words.

    Attributes:
      text: a noun phrase, "something witty about a wedding".
      open: whether it ends in a clause after a comma, so that a sentence should not go on behind it.
      unwanted: what the film should not be, "nothing too bloody"; "" for nothing.
      asked: the film's themes and genres that the words stand for.
    """

    text: str
    open: bool
    unwanted: str
    asked: tuple[str, ...]


@dataclass(frozen=True)
class Asked:
    """What a viewer says: an instruction, its kind ("words", "words and history", "history") and `Wish.asked`."""

    instruction: str
    kind: str
    asked: tuple[str, ...] = ()


def wish(film: Film, liked: Collection[str], avoids: str, split: Split, rng: np.random.Generator) -> Wish:
    """What someone who would be happy with this film might ask for.

    Args:
      liked: themes that are named first, where the film has them.
      avoids: what the viewer does not want to see, said where it goes with the wish.
      split: "train" or "held_out", which wordings to use.
    """
    words = wordings()
    say = speaker(split, rng)
    sayable = [t for t in film["themes"] if film["title"] not in words["unsaid"].get(t, ())]
    first = [t for t in sayable if t in liked]
    themes = [*rng.permutation(first), *rng.permutation([t for t in sayable if t not in first])]
    themes = themes[: int(rng.integers(2, 5))]
    adjectives: list[str] = []
    clauses: list[str] = []
    for theme in themes:
        entry = words["themes"][theme]
        if entry["adjective"][split] and len(adjectives) < 2 and rng.random() < 0.5:
            adjectives.append(say(entry["adjective"]))
        else:
            clauses.append(say(entry["clause"], clauses))
    asked = [str(theme) for theme in themes]
    noun = str(rng.choice(words["nouns"]))
    if not adjectives and rng.random() < 0.4:
        genre = str(rng.choice(film["genres"]))
        noun = say(words["genres"][genre]["noun"])
        asked.append(genre)
    eras = [era for era in words["eras"].values() if era["years"][0] <= film["year"] <= era["years"][1]]
    time = say(eras[0]) if rng.random() < 0.2 else ""
    text, is_open = phrase(noun, adjectives, time, clauses)
    unwanted = ""
    if rng.random() < 0.3 and (avoidable := sensible_to_avoid(film, asked)):
        unwanted = say(words["avoid"][avoids if avoids in avoidable else str(rng.choice(avoidable))])
    return Wish(text, is_open, unwanted, tuple(asked))


def speaker(split: Split, rng: np.random.Generator) -> Callable[..., str]:
    """A function that chooses phrases of one wish: best those without a word that was said before."""
    said: set[str] = set()

    def say(choices: Phrases, clauses: Sequence[str] = ()) -> str:
        """One of the choices: best one without a word that was said, and of a kind that goes with the clauses."""
        kinds = Counter(map(_kind, clauses))
        fresh = [choice for choice in choices[split] if not content(choice) & said] or choices[split]
        fitting = [choice for choice in fresh if kinds[_kind(choice)] < ORDER[_kind(choice)]]
        chosen = str(rng.choice(fitting or fresh))
        said.update(content(chosen))
        return chosen

    return say


def sensible_to_avoid(film: Film, asked: Collection[str]) -> list[str]:
    """What can be ruled out beside the themes and genres asked for: what such films often are, and this one is not."""
    has = {*film["themes"], *film["genres"]}
    return [
        avoided
        for avoided, entry in wordings()["avoid"].items()
        if avoided not in has and not has & set(entry["unless"]) and set(entry["near"]) & set(asked)
    ]


def phrase(noun: str, adjectives: Sequence[str], time: str, clauses: Sequence[str]) -> tuple[str, bool]:
    """A noun phrase, and whether it is `Wish.open`.

    Args:
      noun: "something", or with its article, "a comedy"; may have a clause of its own, "a film about love".
      time: "from the eighties", or "".
    """
    for word in (" about ", " with ", " full of "):
        if word in noun:
            noun, own = noun.split(word, 1)
            clauses = [word.strip() + " " + own, *clauses]
    if adjectives and noun == "something":
        noun = f"{noun} {' and '.join(adjectives)}"
    elif adjectives:
        article, rest = noun.split(" ", 1)
        words = ", ".join(adjectives)
        noun = f"{'an' if words[0] in 'aeiou' else 'a'} {words} {rest}" if article in ("a", "an") else noun
    groups: dict[str, list[str]] = {kind: [] for kind in ORDER}
    groups["time"] = [time] if time else []
    for clause in clauses:
        groups[_kind(clause)].append(clause)
    text, count = noun, 0
    for kind, group in groups.items():
        if not group:
            continue
        if kind == "relative":
            text += f", the kind {_joined(kind, group)}" if count else f" {_joined(kind, group)}"
        elif kind == "aside":
            text += f" {_joined(kind, group)}" if text == "something" else f", {_joined(kind, group)}"
        else:
            text += ("," if count > 1 else "") + f" {_joined(kind, group)}"
        count += len(group)
    return text, "," in text[len(noun) :]


def _kind(clause: str) -> str:
    first = clause.split()[0]
    return "aside" if first in ASIDES else KINDS.get(first, "place")


def _joined(kind: str, clauses: Sequence[str]) -> str:
    """Clauses of one kind as one: "about revenge and friendship"."""
    if kind == "relative":  # "that is sad and where people dance", not the other way round
        clauses = sorted(clauses, key=lambda clause: clause.startswith("where"))
    text = clauses[0]
    for clause in clauses[1:]:
        word, rest = clause.split(" ", 1)
        short = all(len(c.split()) <= MERGED and " and " not in c and " or " not in c for c in (text, clause))
        if kind in ("about", "with") and short and word == text.split()[0]:
            text += f" and {rest.removeprefix('of ') if word == 'full' else rest}"
        elif kind == "place":
            text += f" and {clause.removeprefix('set ')}"
        else:
            between = {"aside": ", ", "relative": " and ", "about": ", and "}.get(
                kind, ", plus " if word == "with" else ", "
            )
            text += between + (rest if between == ", plus " else clause)
    return text


@lru_cache(4096)
def content(text: str) -> frozenset[str]:
    """The beginnings of a text's words of weight."""
    return frozenset(word[:5] for word in bare(text).split() if len(word) > 3 and word not in LITTLE)


# ------------------------------------------------------------------ sentences


def listing(titles: Sequence[str]) -> str:
    """Titles as one phrase: "Alien, Brazil and Heat"."""
    return titles[0] if len(titles) == 1 else ", ".join(titles[:-1]) + " and " + titles[-1]


def ask(films: np.ndarray, liked: Collection[str], avoids: str, split: Split, rng: np.random.Generator) -> Asked:
    """The words with which a viewer who has seen films[:-1] arrives at films[-1].

    Args:
      films: numbers of films, int [films].
      liked, avoids, split: see `wish`.
    """
    words = wordings()
    kinds = ["words", "words and history", "history"] if len(films) > 1 else ["words"]
    kind = str(rng.choice(kinds, p=[0.4, 0.4, 0.2] if len(films) > 1 else [1.0]))
    titles = [facts()[i]["title"] for i in films[:-1][-TITLES_IN_PROMPT:]]

    def choose(phrases: Phrases, of_several: Phrases) -> str:
        several = of_several[split] if len(titles) > 1 else []
        return str(rng.choice([*phrases[split], *several]))

    parts: list[str] = []
    asked: tuple[str, ...] = ()
    if "history" in kind:
        parts.append(_filled(choose(words["histories"], words["histories_of_several"]), "{titles}", listing(titles)))
    if "words" in kind:
        wanted = wish(facts()[films[-1]], liked, avoids, split, rng)
        said = content(f"{wanted.text} {wanted.unwanted}")
        inside = not wanted.open and len(wanted.text.split()) <= SHORT
        ends = [r for r in words["requests"][split] if inside or r.split("{wish}")[1][0] in ENDS]
        sentence = str(rng.choice([request for request in ends if not content(request) & said] or ends))
        parts.append(_request(sentence, wanted, str(rng.choice(words["negations"][split])), rng.random() < 0.5))
        asked = wanted.asked
    else:
        parts.append(choose(words["next"], words["next_of_several"]))
    return Asked(" ".join(parts), kind, asked)


def _filled(template: str, place: str, text: str) -> str:
    """A sentence with a text in its place; what the text ends with is not doubled ("I loved Mamma Mia!")."""
    before, after = template.split(place)
    if text[-1] in ".!?" and after[:1] in (".", "!"):
        after = after[1:]
    return before + text + after


def _request(template: str, wanted: Wish, negation: str, in_one: bool) -> str:
    """A sentence that asks for a wish; what it should not be comes at its end or as a sentence of its own."""
    before, after = template.split("{wish}")
    text = wanted.text
    if wanted.unwanted and in_one and after == ".":
        return _capital(f"{before}{text}, but {wanted.unwanted}.")
    sentence = _capital(before + text + after)
    return f"{sentence} {_capital(negation.replace('{avoid}', wanted.unwanted))}" if wanted.unwanted else sentence


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
