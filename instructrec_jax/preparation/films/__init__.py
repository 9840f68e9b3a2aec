"""The embedded data set: real films, simulated viewers, and the backbone pretrained on the project's own text.

The 460 films are real and described by facts (title, year, director, genres, themes) and one sentence written for
this project. The viewers are SIMULATED: each has a taste that can be read in a sentence, and picks films by it. What
they ask for is put together from everyday wordings in `wordings.json`.

Films, viewers and wordings are split before anything is generated: training sees neither the test viewers, nor the
held-out wordings, nor a tenth of the films (except as candidates, by their text). Some training wishes quote the
glossary, sentences of general English that the backbone was pretrained on.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from instructrec_jax.data.example import Example
from instructrec_jax.files import write_jsonl
from instructrec_jax.preparation.demos import Demo, register
from instructrec_jax.preparation.prepare_data import whole_or_nothing
from instructrec_jax.ranking.catalogue import Catalogue, Interactions, Splits, save_prepared

HERE = Path(__file__).parent
BACKBONE = HERE / "backbone"
SOURCE = "films (embedded: real films, simulated viewers)"
VIEWERS = {"train": 800, "validation": 100, "test": 300}
HELD_OUT_FILMS = 0.1  # share of the films that no training viewer has seen or wanted
TITLES_IN_PROMPT = 5
WORDINGS_OF_A_CASE = 2  # training examples made of each choice of a training viewer
QUOTED = 0.6  # share of a training wish's clauses that quote the glossary instead of a phrase


@cache
def facts() -> list[dict[str, Any]]:
    """The films as written in films.jsonl."""
    return [json.loads(line) for line in (HERE / "films.jsonl").read_text(encoding="utf-8").splitlines()]


@cache
def wordings() -> dict[str, Any]:
    return json.loads((HERE / "wordings.json").read_text(encoding="utf-8"))


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
    def collect(node: Any, held_out: bool) -> set[str]:
        if isinstance(node, dict):
            return {text for key, below in node.items() for text in collect(below, held_out or key == "held_out")}
        return {bare(str(text)) for text in node} if held_out else set()

    return frozenset(collect(wordings(), False))


def catalogue() -> Catalogue:
    films = facts()
    texts = [
        f"{f['title']} ({f['year']}), {', '.join(f['genres'])}, by {f['director']}. "
        f"{f['blurb']} Themes: {', '.join(f['themes'])}."
        for f in films
    ]
    ids = [
        "-".join([*"".join(c if c.isalnum() else " " for c in f["title"].lower()).split(), str(f["year"])])
        for f in films
    ]
    names = ("year", "director", "genres", "themes")
    return Catalogue(ids, [f["title"] for f in films], texts, {name: [f[name] for f in films] for name in names})


# ------------------------------------------------------------------ viewers


@dataclass(frozen=True)
class Viewer:
    """A taste."""

    name: str
    themes: tuple[str, ...]
    genres: tuple[str, ...]
    avoids: str
    era: str

    def describe(self) -> str:
        return (
            f"{self.name} likes {', '.join(self.genres)} films and the themes {', '.join(self.themes)}, "
            f"most of all {self.era} ones, and avoids films that are or have: {self.avoids}."
        )

    def appeal(self) -> np.ndarray:
        """How much each film appeals, float64 [films]: the points of its themes, genres and years."""
        low, high = wordings()["eras"][self.era]["years"]
        return np.array(
            [
                1.2 * len(set(self.themes) & set(f["themes"]))
                + 0.8 * len(set(self.genres) & set(f["genres"]))
                + 0.5 * (low <= f["year"] <= high)
                - 3.0 * (self.avoids in f["themes"])
                for f in facts()
            ]
        )


def make_viewer(name: str, rng: np.random.Generator) -> Viewer:
    words = wordings()
    avoids = rng.choice(list(words["avoid"]))
    themes = rng.choice([t for t in words["themes"] if t != avoids], 4, replace=False)
    genres = rng.choice(list(words["genres"]), 2, replace=False)
    return Viewer(
        name,
        tuple(map(str, themes)),
        tuple(map(str, genres)),
        str(avoids),
        str(rng.choice(list(words["eras"]))),
    )


def watch(viewer: Viewer, fame: np.ndarray, available: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The films a viewer picks, int32, oldest first: by taste, fame and likeness to the last film; none twice."""
    themes = [set(f["themes"]) for f in facts()]
    utility = viewer.appeal() + fame
    utility[~available] = -np.inf
    picked: list[int] = []
    for _ in range(int(rng.integers(5, 13))):
        alike = np.array([len(t & themes[picked[-1]]) for t in themes]) if picked else 0
        pick = int(np.argmax(utility + 0.4 * alike + rng.gumbel(size=len(utility))))  # a softmax draw
        utility[pick] = -np.inf
        picked.append(pick)
    return np.array(picked, np.int32)


# ------------------------------------------------------------------ words


def wish(film: dict[str, Any], viewer: Viewer, split: str, rng: np.random.Generator) -> str:
    """What someone who would be happy with this film might ask for: a noun phrase in everyday words.

    Args:
      split: "train" or "held_out", which wordings to use.
    """
    words = wordings()

    def say(choices: dict[str, Any]) -> str:
        return str(rng.choice(choices[split]))

    liked = [t for t in film["themes"] if t in viewer.themes]
    themes = [*rng.permutation(liked), *rng.permutation([t for t in film["themes"] if t not in liked])]
    themes = themes[: int(rng.integers(2, 5))]
    adjectives: list[str] = []
    clauses: list[str] = []
    for theme in themes:
        entry = words["themes"][theme]
        if entry["adjective"][split] and len(adjectives) < 2 and rng.random() < 0.5:
            adjectives.append(say(entry["adjective"]))
        else:
            quoted = split == "train" and rng.random() < QUOTED
            clauses.append(quote(theme, rng) if quoted else say(entry["clause"]))
    if not adjectives and rng.random() < 0.4:
        noun = say(words["genres"][str(rng.choice(film["genres"]))]["noun"])
    else:
        noun = " ".join(["something", " and ".join(adjectives)]).strip()
    if rng.random() < 0.2:
        for era in words["eras"].values():
            if era["years"][0] <= film["year"] <= era["years"][1]:
                clauses.append(say(era))
    text = " ".join([noun, " and ".join(clauses)]).strip()
    avoidable = [a for a in words["avoid"] if a not in film["themes"] and a not in themes]
    if rng.random() < 0.3:
        unwanted = viewer.avoids if viewer.avoids in avoidable else str(rng.choice(avoidable))
        text += ", " + say(words["avoid"][unwanted])
    return text


def quote(subject: str, rng: np.random.Generator) -> str:
    """One to six words in a row from the glossary's sentences on a subject; never with a held-out phrase in it."""
    while True:
        words = bare(str(rng.choice(glossary()[subject]))).split()
        size = int(rng.integers(1, 7))
        start = int(rng.integers(0, max(1, len(words) - size + 1)))
        text = " ".join([str(rng.choice(["with", "about", "where", "like"])), *words[start : start + size]])
        if not any(f" {phrase} " in f" {text} " for phrase in held_out_phrases()):
            return text


def listing(titles: Sequence[str]) -> str:
    """Titles as one phrase: "Alien, Brazil and Heat"."""
    return titles[0] if len(titles) == 1 else ", ".join(titles[:-1]) + " and " + titles[-1]


def ask(viewer: Viewer, films: np.ndarray, split: str, rng: np.random.Generator) -> tuple[str, str]:
    """(instruction, kind) with which a viewer who has seen films[:-1] arrives at films[-1]."""
    words = wordings()
    kinds = ["words", "words and history", "history"] if len(films) > 1 else ["words"]
    kind = str(rng.choice(kinds, p=[0.4, 0.4, 0.2] if len(films) > 1 else [1.0]))
    parts = []
    if "history" in kind:
        titles = listing([facts()[i]["title"] for i in films[:-1][-TITLES_IN_PROMPT:]])
        parts.append(str(rng.choice(words["histories"][split])).replace("{titles}", titles))
    if "words" in kind:
        sentence = str(rng.choice(words["requests"][split]))
        parts.append(sentence.replace("{wish}", wish(facts()[films[-1]], viewer, split, rng)))
    else:
        parts.append(str(rng.choice(words["next"][split])))
    return " ".join(parts), kind


# ------------------------------------------------------------------ the folder


def prepare(out: str | Path, *, seed: int = 0) -> dict[str, Any]:
    """Writes the prepared layout of `ranking.catalogue` into a new folder; returns its card.

    In instructions/test.jsonl every case stands twice: in wordings known from training and in held-out ones
    (`origin["wording"]`).
    """
    films = catalogue()
    rng = np.random.default_rng(seed)
    fame = rng.normal(0, 1.0, len(films))
    held_out = rng.permutation(len(films))[: round(HELD_OUT_FILMS * len(films))]
    known = np.ones(len(films), bool)
    known[held_out] = False
    names = [(split, f"{split}-viewer-{i}") for split, count in VIEWERS.items() for i in range(count)]
    viewers = [make_viewer(name, rng) for _, name in names]
    everything = np.ones(len(films), bool)
    seen = [
        watch(viewer, fame, known if split == "train" else everything, rng)
        for viewer, (split, _) in zip(viewers, names, strict=True)
    ]

    def examples(split: str) -> Iterator[Example]:
        words = {
            "train": ["train"] * WORDINGS_OF_A_CASE,
            "validation": ["train"],
            "test": ["train", "held_out"],
        }[split]
        for number, (viewer, (its_split, _), films_seen) in enumerate(zip(viewers, names, seen, strict=True)):
            if its_split != split:
                continue
            positions = range(len(films_seen)) if split == "train" else range(len(films_seen) - 3, len(films_seen))
            for position in positions:
                for variant, wording in enumerate(words):
                    draw = np.random.default_rng([seed, number, position, variant])
                    instruction, kind = ask(viewer, films_seen[: position + 1], wording, draw)
                    target = films_seen[position]
                    yield Example(
                        instruction=instruction,
                        output=films.ids[target],
                        history=tuple(films.ids[i] for i in films_seen[:position]),
                        task="recommendation",
                        id=f"{viewer.name}-{position}-{variant}",
                        origin={
                            "wording": {"train": "known wordings", "held_out": "held-out wordings"}[wording],
                            "kind": kind,
                            "viewer": viewer.name,
                            "film": "known" if known[target] else "held-out",
                        },
                    )

    nothing = np.empty(0, np.int32)
    splits = Splits(
        [viewer.name for viewer in viewers],
        *([s if its == split else nothing for s, (its, _) in zip(seen, names, strict=True)] for split in VIEWERS),
    )
    interactions = Interactions(
        [viewer.name for viewer in viewers],
        np.repeat(np.arange(len(viewers), dtype=np.int32), [len(s) for s in seen]),
        np.concatenate(seen),
    )

    def write(folder: Path) -> dict[str, Any]:
        write_jsonl(folder / "viewers.jsonl", ({"name": v.name, "taste": v.describe()} for v in viewers))
        return save_prepared(
            folder,
            films,
            interactions,
            splits,
            {split: examples(split) for split in VIEWERS},
            source=SOURCE,
            settings={
                "seed": seed,
                "viewers": VIEWERS,
                "held_out_films": [films.ids[i] for i in sorted(held_out)],
            },
        )

    return whole_or_nothing(Path(out).absolute(), write)


def pretraining_texts(*, seed: int = 0, requests: int = 6000) -> list[str]:
    """Text for the embedded backbone: film texts, the glossary, and requests in training wordings only."""
    films = facts()
    texts = catalogue().texts + [f["blurb"] for f in films]
    texts += (HERE / "glossary.txt").read_text(encoding="utf-8").splitlines()
    for number in range(requests):
        rng = np.random.default_rng([seed, number, 1])
        viewer = make_viewer("", rng)
        seen = rng.permutation(len(films))[: int(rng.integers(1, 6))]
        texts.append(ask(viewer, seen, "train", rng)[0])
    return texts


def _instructions() -> tuple[str, str, str]:
    """See `Demo.instructions`: the first of the training wordings."""
    history, ask = wordings()["histories"]["train"][0].replace("{titles}", "{history}"), wordings()["next"]["train"][0]
    return ask, f"{history} {ask}", f"{history} {{intention}}"


register(Demo("films", SOURCE, BACKBONE, prepare, _instructions(), listing, TITLES_IN_PROMPT))
