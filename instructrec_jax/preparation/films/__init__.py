"""The embedded data set: real films, simulated viewers, and the backbone pretrained on the project's own text.

The 460 films are real and described by facts (title, year, director, genres, themes) and one sentence written for
this project. The viewers are SIMULATED: each has a taste that can be read in a sentence, and picks films by it. What
they ask for is put together from everyday wordings in `wordings.json` (see `wishes`).

Films, viewers and wordings are split before anything is generated: training sees neither the test viewers, nor the
held-out wordings, nor a tenth of the films (except as candidates, by their text).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from instructrec_jax.data.example import Example
from instructrec_jax.files import write_jsonl
from instructrec_jax.preparation import demos
from instructrec_jax.preparation.demos import Demo, register
from instructrec_jax.preparation.films.slices import slice_examples
from instructrec_jax.preparation.films.texts import HERE, Split, facts, wordings
from instructrec_jax.preparation.films.wishes import TITLES_IN_PROMPT, ask, listing
from instructrec_jax.preparation.prepare_data import whole_or_nothing
from instructrec_jax.ranking.catalogue import Catalogue, Fact, Interactions, Splits, load_card, save_prepared

BACKBONE = HERE / "backbone"
SOURCE = "films (embedded: real films, simulated viewers)"
VIEWERS = {"train": 800, "validation": 100, "test": 300}
HELD_OUT_FILMS = 0.1  # share of the films that no training viewer has seen or wanted
WORDINGS = {"train": "seen phrasings", "held_out": "unseen phrasings"}  # as reports say
SLICES: dict[Split, str] = {"held_out": "instructions/slices.jsonl", "train": "instructions/slices_validation.jsonl"}
WORDINGS_OF_A_CASE = 2  # training examples made of each choice of a training viewer


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
    columns: dict[str, Sequence[Fact]] = {
        "year": [f["year"] for f in films],
        "director": [f["director"] for f in films],
        "genres": [f["genres"] for f in films],
        "themes": [f["themes"] for f in films],
    }
    return Catalogue(ids, [f["title"] for f in films], texts, columns)


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


# ------------------------------------------------------------------ the folder


@dataclass(frozen=True)
class Simulation:
    """Viewers and what they watched. The lists have one entry a viewer.

    Attributes:
      viewers: tastes.
      splits: the split that each viewer belongs to.
      seen: numbers of films, int32, oldest first.
      known: whether training may show a film, bool [films].
    """

    viewers: list[Viewer]
    splits: list[str]
    seen: list[np.ndarray]
    known: np.ndarray


def simulate(seed: int) -> Simulation:
    """All viewers of `VIEWERS`, by a seed. Viewers of training see known films alone."""
    count = len(facts())
    rng = np.random.default_rng(seed)
    fame = rng.normal(0, 1.0, count)
    known, everything = np.ones(count, bool), np.ones(count, bool)
    known[rng.permutation(count)[: round(HELD_OUT_FILMS * count)]] = False
    names = [(split, f"{split}-viewer-{i}") for split, size in VIEWERS.items() for i in range(size)]
    viewers = [make_viewer(name, rng) for _, name in names]
    seen = [
        watch(viewer, fame, known if split == "train" else everything, rng)
        for viewer, (split, _) in zip(viewers, names, strict=True)
    ]
    return Simulation(viewers, [split for split, _ in names], seen, known)


def examples(simulation: Simulation, films: Catalogue, split: str, seed: int) -> Iterator[Example]:
    """What the viewers of a split ask for: each choice of a training viewer, the last three of the others.

    A training case is worded `WORDINGS_OF_A_CASE` times, a test case once in known and once in held-out wordings.
    """
    wordings_of: dict[str, list[Split]] = {
        "train": ["train"] * WORDINGS_OF_A_CASE,
        "validation": ["train"],
        "test": ["train", "held_out"],
    }
    for number, (viewer, its_split) in enumerate(zip(simulation.viewers, simulation.splits, strict=True)):
        if its_split != split:
            continue
        seen = simulation.seen[number]
        for position in range(0 if split == "train" else len(seen) - 3, len(seen)):
            for variant, wording in enumerate(wordings_of[split]):
                draw = np.random.default_rng([seed, number, position, variant])
                said = ask(seen[: position + 1], viewer.themes, viewer.avoids, wording, draw)
                origin = {
                    "wording": WORDINGS[wording],
                    "kind": said.kind,
                    "viewer": viewer.name,
                    "film": "known" if simulation.known[seen[position]] else "held-out",
                }
                yield Example(
                    instruction=said.instruction,
                    output=films.ids[seen[position]],
                    history=tuple(films.ids[i] for i in seen[:position]),
                    task="recommendation",
                    id=f"{viewer.name}-{position}-{variant}",
                    origin=origin | ({"asked": ", ".join(said.asked)} if said.asked else {}),
                )


def prepare(out: str | Path, *, seed: int = 0) -> dict[str, object]:
    """Writes the prepared layout of `ranking.catalogue` into a new folder; returns its card.

    In instructions/test.jsonl every case stands twice: in wordings known from training and in held-out ones
    (`origin["wording"]`). `origin["asked"]` lists the film's themes and genres that an instruction was made of.
    instructions/slices.jsonl has further test cases (see `slices`); settings are chosen on slices_validation.jsonl.
    """
    films, simulation = catalogue(), simulate(seed)
    names, seen, nothing = [viewer.name for viewer in simulation.viewers], simulation.seen, np.empty(0, np.int32)
    its_splits = [
        [films if its == split else nothing for films, its in zip(seen, simulation.splits, strict=True)]
        for split in VIEWERS
    ]
    users = np.repeat(np.arange(len(names), dtype=np.int32), [len(films) for films in seen])

    def write(folder: Path) -> dict[str, object]:
        tastes = ({"name": viewer.name, "taste": viewer.describe()} for viewer in simulation.viewers)
        write_jsonl(folder / "viewers.jsonl", tastes)
        _write_slices(folder, films, seed)
        return save_prepared(
            folder,
            films,
            Interactions(names, users, np.concatenate(seen)),
            Splits(names, *its_splits),
            {split: examples(simulation, films, split, seed) for split in VIEWERS},
            source=SOURCE,
            settings={
                "seed": seed,
                "viewers": VIEWERS,
                "held_out_films": [films.ids[i] for i in np.flatnonzero(~simulation.known)],
            },
        )

    return whole_or_nothing(Path(out).absolute(), write)


def complete(folder: str | Path) -> None:
    """Writes the slices into a folder that an earlier version prepared."""
    there = (Path(folder) / "card.json").is_file() and not (Path(folder) / SLICES["held_out"]).exists()
    card = load_card(folder) if there else {}
    if demos.demo_of(card) is None:
        return
    settings = card.get("settings")
    seed = settings.get("seed", 0) if isinstance(settings, dict) else 0
    _write_slices(Path(folder), catalogue(), seed)


def _write_slices(folder: Path, films: Catalogue, seed: int) -> None:
    for split, name in SLICES.items():
        write_jsonl(folder / name, (example.to_record() for example in slice_examples(films.ids, split, seed)))


def _instructions() -> tuple[str, str, str]:
    """See `Demo.instructions`: the first of the training wordings."""
    history, ask = wordings()["histories"]["train"][0].replace("{titles}", "{history}"), wordings()["next"]["train"][0]
    return ask, f"{history} {ask}", f"{history} {{intention}}"


register(Demo("films", SOURCE, BACKBONE, prepare, complete, _instructions(), listing, TITLES_IN_PROMPT))
