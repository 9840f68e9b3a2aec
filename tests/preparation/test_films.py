"""The embedded data: real films, and splits that let nothing through."""

import csv
import json
import os
import re
import unicodedata
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from instructrec_jax.data.example import Example
from instructrec_jax.preparation import films
from instructrec_jax.preparation.films.pretraining import pretraining_texts
from instructrec_jax.preparation.films.texts import bare, facts, glossary, held_out_phrases, wordings
from instructrec_jax.preparation.films.wishes import TITLES_IN_PROMPT, listing
from instructrec_jax.ranking.catalogue import (
    Catalogue,
    Splits,
    load_card,
    load_examples,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default data set, as `train` without arguments writes it."""
    folder = tmp_path_factory.mktemp("films") / "data"
    films.prepare(folder)
    return folder


@pytest.fixture(scope="module")
def examples(folder: Path) -> dict[str, list[Example]]:
    return {split: load_examples(folder, split) for split in ("train", "validation", "test")}


@pytest.fixture(scope="module")
def held_out_films(folder: Path) -> set[str]:
    return set(load_card(folder)["settings"]["held_out_films"])


@pytest.fixture(scope="module")
def titles(folder: Path) -> dict[str, str]:
    catalogue = Catalogue.load(folder)
    return dict(zip(catalogue.ids, catalogue.titles, strict=True))


def phrases(node: Any, split: str, inside: bool = False) -> list[str]:
    """All wordings of a split, by a walk through wordings.json."""
    if isinstance(node, dict):
        return [text for key, below in node.items() for text in phrases(below, split, inside or key == split)]
    return [text for text in node if isinstance(text, str)] if inside else []


def contains(text: str, phrase: str) -> bool:
    """Whether the words of a phrase stand in a text, one after another."""
    return f" {bare(phrase)} " in f" {bare(text)} "


# ------------------------------------------------------------------ facts and words


def test_at_least_400_films_each_described() -> None:
    entries = facts()
    assert len(entries) >= 400
    assert len({(f["title"], f["year"]) for f in entries}) == len(entries)
    for film in entries:
        assert set(film) == {"title", "year", "director", "genres", "themes", "blurb"}
        assert film["title"].strip() and film["director"].strip() and 1900 <= film["year"] <= 2030
        assert len(film["genres"]) >= 1 and len(film["themes"]) >= 3
        assert len(set(film["genres"])) == len(film["genres"]) and len(set(film["themes"])) == len(film["themes"])
        assert film["blurb"].endswith(".") and len(film["blurb"].split()) >= 8


def test_facts_and_wordings_share_one_vocabulary() -> None:
    words, entries = wordings(), facts()
    themes = Counter(theme for film in entries for theme in film["themes"])
    genres = Counter(genre for film in entries for genre in film["genres"])
    assert set(themes) == set(words["themes"]) and set(genres) == set(words["genres"])
    assert min(themes.values()) >= 4  # a wish can be answered by more than one film
    assert set(words["avoid"]) <= set(words["themes"])
    years = [era["years"] for era in words["eras"].values()]
    for film in entries:
        assert sum(low <= film["year"] <= high for low, high in years) == 1, film["title"]


def test_each_kind_of_wording_has_both_splits() -> None:
    words = wordings()
    kinds = [
        *(words["themes"][t]["clause"] for t in words["themes"]),
        *(words["genres"][g]["noun"] for g in words["genres"]),
        *words["avoid"].values(),
        *words["eras"].values(),
        *(words[name] for name in ("requests", "negations", "histories", "histories_of_several", "next")),
    ]
    for kind in kinds:
        assert kind["train"] and kind["held_out"]
        assert not {bare(t) for t in kind["train"]} & {bare(t) for t in kind["held_out"]}
    places = {"requests": "{wish}", "negations": "{avoid}", "histories": "{titles}", "histories_of_several": "{titles}"}
    for name, place in places.items():
        assert all(text.count(place) == 1 for split in ("train", "held_out") for text in words[name][split])


def test_no_held_out_phrase_is_part_of_a_training_phrase() -> None:
    known = "|".join(f" {bare(text)} " for text in phrases(wordings(), "train"))
    assert not [phrase for phrase in phrases(wordings(), "held_out") if f" {bare(phrase)} " in known]


def test_held_out_phrases_are_all_found() -> None:
    assert held_out_phrases() == {bare(text) for text in phrases(wordings(), "held_out")}


def test_the_glossary_covers_themes_and_genres() -> None:
    subjects = {*wordings()["themes"], *wordings()["genres"]}
    assert set(glossary()) == subjects
    lines = [line for lines in glossary().values() for line in lines]
    assert all(len(lines) == 6 for lines in glossary().values()) and all(line.strip() for line in lines)


# ------------------------------------------------------------------ splits


def test_viewers_are_split(folder: Path, examples: dict[str, list[Example]]) -> None:
    viewers = {split: {e.origin["viewer"] for e in rows} for split, rows in examples.items()}
    assert {split: len(names) for split, names in viewers.items()} == films.VIEWERS
    assert not viewers["train"] & viewers["test"] and not viewers["train"] & viewers["validation"]
    assert not viewers["validation"] & viewers["test"]
    splits = Splits.load(folder, Catalogue.load(folder))
    for name, train, validation, test in zip(
        splits.user_ids, splits.train, splits.validation, splits.test, strict=True
    ):
        assert [bool(len(part)) for part in (train, validation, test)] == [
            name in viewers[split] for split in ("train", "validation", "test")
        ]


def test_held_out_films_are_unknown_to_training(
    folder: Path, examples: dict[str, list[Example]], held_out_films: set[str]
) -> None:
    assert len(held_out_films) == round(0.1 * len(facts()))
    for e in examples["train"]:
        assert e.output not in held_out_films and not held_out_films & set(e.history), e.id
        assert e.origin["film"] == "known"
    catalogue = Catalogue.load(folder)
    for sequence in Splits.load(folder, catalogue).train:
        assert not held_out_films & {catalogue.ids[i] for i in sequence}
    wanted = [e.output in held_out_films for e in examples["test"]]
    assert 0.02 < np.mean(wanted) < 0.3  # they do occur in the test
    for e in examples["test"]:
        assert e.origin["film"] == ("held-out" if e.output in held_out_films else "known")


def without_titles(e: Example, titles: dict[str, str]) -> str:
    """A prompt without its list of films: "The Martian" is a fact, not a wording."""
    seen = [titles[i] for i in e.history[-TITLES_IN_PROMPT:]]
    listed = listing(seen) if seen else ""
    stands = bool(listed) and bool(re.search(rf"(?<!\w){re.escape(listed)}(?!\w)", e.instruction))
    assert ("history" in e.origin["kind"]) == stands, e.id
    return e.instruction.replace(listed, "|") if "history" in e.origin["kind"] else e.instruction


@pytest.mark.parametrize("split", ["train", "validation"])
def test_no_held_out_wording_in_training(
    split: str, examples: dict[str, list[Example]], titles: dict[str, str]
) -> None:
    """Not even by the meeting of two phrases or in a quotation of the glossary."""
    held_out = [piece for text in phrases(wordings(), "held_out") for piece in pieces(text)]
    prompts = [without_titles(e, titles) for e in examples[split]]
    everything = "\n".join(f" {bare(prompt)} " for prompt in prompts)
    for phrase in {f" {bare(phrase)} " for phrase in held_out}:
        assert phrase not in everything, next(prompt for prompt in prompts if contains(prompt, phrase))


def pieces(phrase: str) -> list[str]:
    """A template's words before and after its place, where they are long enough to be telling."""
    parts = re.split(r"\{\w+\}", phrase)
    return [part for part in parts if len(parts) == 1 or len(bare(part).split()) >= 4]


def test_no_held_out_wording_in_the_pretraining_requests() -> None:
    texts = pretraining_texts(requests=300)[-300:]
    held_out = [piece for text in phrases(wordings(), "held_out") for piece in pieces(text)]
    named = [f["title"] for f in facts()]
    held_out = [phrase for phrase in held_out if not any(contains(title, phrase) for title in named)]
    assert len(held_out) > 400
    for text in texts:
        assert not [phrase for phrase in held_out if contains(text, phrase)], text


def test_held_out_cases_use_held_out_wordings_only(examples: dict[str, list[Example]]) -> None:
    """Every test case stands twice, once in each wording, with the same viewer, history and target."""
    groups: dict[str, list[Example]] = defaultdict(list)
    for e in examples["test"]:
        groups[e.id.rsplit("-", 1)[0]].append(e)
    templates = {
        split: [
            [bare(part) for part in re.split(r"\{\w+\}", text)]
            for name in ("requests", "histories", "histories_of_several", "next", "next_of_several")
            for text in wordings()[name][split]
        ]
        for split in ("train", "held_out")
    }

    def uses(e: Example, split: str) -> bool:
        words = f" {bare(e.instruction)} "
        return any(all(not part or f" {part} " in words for part in parts) for parts in templates[split])

    for known, new in groups.values():
        assert (known.output, known.history) == (new.output, new.history)
        assert known.origin["wording"] == "seen phrasings" and new.origin["wording"] == "unseen phrasings"
        assert uses(known, "train") and not uses(known, "held_out"), known.instruction
        assert uses(new, "held_out"), new.instruction
    assert len(groups) == 3 * films.VIEWERS["test"]


# ------------------------------------------------------------------ examples


def test_the_target_is_not_given_away(examples: dict[str, list[Example]], titles: dict[str, str]) -> None:
    spoken = "\n".join(phrases(wordings(), "train") + phrases(wordings(), "held_out"))
    ordinary = {title for title in titles.values() if re.search(rf"\b{re.escape(title)}\b", spoken)}
    assert len(ordinary) < 10, ordinary
    for rows in examples.values():
        for e in rows:
            target = str(e.output)
            assert target not in e.history and len(set(e.history)) == len(e.history)
            # "It" and "Her" are words that people use anyway.
            if titles[target] not in ordinary:
                assert not re.search(rf"\b{re.escape(titles[target])}\b", without_titles(e, titles)), e.instruction


def test_histories_are_what_the_viewer_saw_before(folder: Path, examples: dict[str, list[Example]]) -> None:
    catalogue = Catalogue.load(folder)
    splits = Splits.load(folder, catalogue)
    for split, rows in examples.items():
        seen = dict(zip(splits.user_ids, getattr(splits, split), strict=True))
        for e in rows:
            position = int(e.id.split("-")[-2])
            ids = [catalogue.ids[i] for i in seen[e.origin["viewer"]]]
            assert e.output == ids[position] and list(e.history) == ids[:position]


def test_prompts_are_finished_sentences(examples: dict[str, list[Example]]) -> None:
    for rows in examples.values():
        for e in rows:
            assert "{" not in e.instruction and "  " not in e.instruction and e.instruction == e.instruction.strip()
        assert len({e.instruction for e in rows}) > 0.9 * len(rows)
        assert {e.origin["kind"] for e in rows} == {"words", "words and history", "history"}


def test_viewers_choose_by_their_taste() -> None:
    rng = np.random.default_rng(0)
    gains = []
    for number in range(30):
        viewer = films.make_viewer(f"viewer {number}", rng)
        assert viewer.avoids not in viewer.themes and len(set(viewer.themes)) == 4
        assert all(word in viewer.describe() for word in (*viewer.themes, *viewer.genres, viewer.avoids, viewer.era))
        everything = np.ones(len(facts()), bool)
        picked = films.watch(viewer, np.zeros(len(everything)), everything, rng)
        assert len(set(picked)) == len(picked) >= 5
        gains.append(viewer.appeal()[picked].mean() - viewer.appeal().mean())
    assert np.mean(gains) > 0.5


def test_same_seed_same_bytes(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(films, "VIEWERS", {"train": 20, "validation": 5, "test": 5})
    one, two, other = (tmp_path / name for name in ("one", "two", "other"))
    cards = [films.prepare(one, seed=4), films.prepare(two, seed=4), films.prepare(other, seed=5)]
    files = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert len(files) >= 9
    for name in files:
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
    assert cards[0]["sha256"] == cards[1]["sha256"] != cards[2]["sha256"]
    assert (one / "instructions/train.jsonl").read_bytes() != (other / "instructions/train.jsonl").read_bytes()


def test_the_card_says_that_viewers_are_simulated(folder: Path) -> None:
    card = load_card(folder)
    assert "simulated" in card["source"] and card["items"] == len(facts())
    lines = (folder / "viewers.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == sum(films.VIEWERS.values()) and "likes" in json.loads(lines[0])["taste"]


# ------------------------------------------------------------------ against MovieLens

# Titles that MovieLens files under another name, where ours is not a part of it.
OTHER_TITLES = {"Braindead": "Dead Alive", "Three Colours: Blue": "Three Colors: Blue"}
# Films of the same title alone: MovieLens has a remake, or dates a film by its release abroad.
OTHER_YEARS = {"The Champ", "House", "Andrei Rublev", "Ninja Scroll", "Oldboy", "Parasite"}
OTHER_GENRES = {"Spotlight"}  # a thriller there, a drama of recent history here
GENRES = {"Sci-Fi": "science fiction", "Children": "family", "Film-Noir": "crime"}


def plain(title: str) -> str:
    """A title as words without accents: what two catalogues' titles are compared by."""
    letters = unicodedata.normalize("NFKD", title.replace("&", " and "))
    return bare("".join(c for c in letters if not unicodedata.combining(c)))


def names_of(raw: str) -> tuple[list[str], int]:
    """ "Piano, The (Piano, El) (1993)" -> ["the piano", "el piano"], 1993."""
    found = re.match(r"(.*?)\s*\((\d{4})\)\s*$", raw)
    if not found:
        return [], 0
    parts = [re.sub(r"\([^)]*\)", "", found[1]), *re.findall(r"\(([^)]*)\)", found[1])]
    parts = [re.sub(r"(?i)^a\.?k\.?a\.? ", "", part.strip()) for part in parts]
    return [plain(re.sub(r"^(.*), (\w+'?)$", r"\2 \1", part)) for part in parts], int(found[2])


def test_facts_agree_with_movielens() -> None:
    """Titles, years and genres of the films that MovieLens latest-small has."""
    path = Path(os.environ.get("INSTRUCTREC_DATA", "")) / "ml-latest-small" / "movies.csv"
    if not os.environ.get("INSTRUCTREC_DATA") or not path.is_file():
        pytest.skip("needs ml-latest-small/movies.csv under $INSTRUCTREC_DATA")
    listed: dict[str, list[tuple[int, set[str]]]] = defaultdict(list)
    with path.open(encoding="utf-8", newline="") as rows:
        for row in csv.DictReader(rows):
            names, year = names_of(row["title"])
            for name in names:
                listed[name].append((year, {GENRES.get(g, g.lower()) for g in row["genres"].split("|")}))
    compared = 0
    for film in facts():
        entries = listed.get(plain(OTHER_TITLES.get(film["title"], film["title"])), [])
        if not entries or film["title"] in OTHER_YEARS:
            continue
        compared += 1
        year, genres = min(entries, key=lambda entry: abs(entry[0] - film["year"]))
        assert abs(year - film["year"]) <= 1, (film["title"], film["year"], year)
        assert film["title"] in OTHER_GENRES or genres & set(film["genres"]), (film["title"], film["genres"], genres)
    assert compared > 0.85 * len(facts())
