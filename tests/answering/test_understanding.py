"""Conditions that are read out of a request's words, what is left of it, and what is said about it."""

import numpy as np
import pytest

from instructrec_jax.answering.titles import Titles
from instructrec_jax.answering.understanding import Reading, Understanding, stems, tidy
from instructrec_jax.preparation import films
from instructrec_jax.preparation.films import slices
from instructrec_jax.preparation.films.texts import Split
from instructrec_jax.ranking.catalogue import Catalogue

FILMS = [
    ("Alien", 1979, ["horror"], "Ridley Scott", 117, "A crew meets a monster on a ship."),
    ("The Matrix", 1999, ["science fiction"], "Lana Wachowski", 136, "A hacker wakes up."),
    ("It", 2017, ["horror"], "Andy Muschietti", 135, "Clowns frighten children."),
    ("Some Like It Hot", 1959, ["comedy"], "Billy Wilder", 121, "Two musicians flee from gangsters."),
    ("No Country for Old Men", 2007, ["thriller"], "Joel Coen", 122, "A bag of money."),
    ("Dracula", 1931, ["horror"], "Tod Browning", 75, "A count comes to town."),
    ("Dracula", 1992, ["horror"], "Francis Coppola", 128, "A count comes to London."),
]


@pytest.fixture(scope="module")
def understanding() -> Understanding:
    names, years, genres, directors, runtimes, texts = (list(column) for column in zip(*FILMS, strict=True))
    facts = {"year": years, "genres": genres, "director": directors, "runtime": runtimes}
    texts = [f"{name}. {text}" for name, text in zip(names, texts, strict=True)]
    return Understanding(Titles(Catalogue([f"f{n}" for n in range(len(names))], names, texts, facts)))


def left(understanding: Understanding, reading: Reading) -> set[int]:
    return set(np.flatnonzero(understanding.allowed(reading, np.ones(len(FILMS), bool))[0]).tolist())


@pytest.mark.parametrize(
    ("text", "wish", "items"),
    [
        ("Something scary, but nothing with clowns.", "Something scary.", {0, 1, 3, 4, 5, 6}),
        ("Something scary, nothing with clowns, please.", "Something scary.", {0, 1, 3, 4, 5, 6}),
        ("No horror! Something else.", "Something else.", {1, 3, 4}),
        ("A film that is not horror", "", {1, 3, 4}),
        ("Some fun without comedies or thrillers", "Some fun", {0, 1, 2, 5, 6}),
        ("Spare me the gangsters: a thriller", "A thriller", {0, 1, 2, 4, 5, 6}),
        ("Horror, anything but Alien", "Horror", {1, 2, 3, 4, 5, 6}),
        ("nothing by Ridley Scott", "", {1, 2, 3, 4, 5, 6}),
        ("Horror from before 1980", "Horror", {0, 3, 5}),
        ("Horror under two hours", "Horror", {0, 5}),
        ("Horror, not newer than 1999 and no monsters.", "Horror.", {1, 3, 5, 6}),
        ("Something like Alien but funny", "Something funny", {1, 2, 3, 4, 5, 6}),
        ("something like alien, only newer", "", {1, 2, 4, 6}),
        ("A film in the vein of The Matrix, though older.", "", {0, 3, 5, 6}),
        ("Films like Dracula (1992)", "", {0, 1, 2, 3, 4, 5}),
        ("Something in the style of Alien and The Matrix, from 1959", "", {3}),
        ("The Matrix but funny", "Something funny", {0, 2, 3, 4, 5, 6}),
        ("Something like It but funny", "Something funny", {0, 1, 3, 4, 5, 6}),
        ("A heist that isn't horror, not by Lana Wachowski", "A heist", {3, 4}),
    ],
)
def test_conditions_are_read(understanding: Understanding, text: str, wish: str, items: set[int]) -> None:
    reading = understanding.read(text)
    assert reading.conditional and reading.notes
    assert reading.wish == wish and left(understanding, reading) == items


@pytest.mark.parametrize(
    "text",
    [
        "Nothing would make me happier than a musical.",
        "I loved No Country for Old Men.",
        "I'd like something funny",
        "it feels like a dream",
        "somebody who is not sane",
        "A war film set in 1944",
        "nothing like Alien",
        "It was great. A film of the same kind, please.",
        "Something like it, please.",
        "A man who has no money",
        "The dinner was great. Something sad, but short.",
    ],
)
def test_what_is_no_condition_stays_with_the_network(understanding: Understanding, text: str) -> None:
    assert understanding.read(text) == Reading(text)


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ("Horror without unicorns", '"without unicorns" is not read as a condition'),
        ("Films like Dracula", '"Dracula" could be Dracula (1931) [id:f5]; Dracula (1992) [id:f6]'),
        ("Films like Zzyzx Qqq", '"Zzyzx Qqq" is not one title of the catalogue, so nothing is compared with it.'),
    ],
)
def test_what_cannot_be_read_is_told(understanding: Understanding, text: str, note: str) -> None:
    reading = understanding.read(text)
    assert not reading.conditional and reading.wish == text
    assert note in reading.notes[0]


def test_a_title_with_typing_errors_is_compared_with_and_told(understanding: Understanding) -> None:
    reading = understanding.read("Something like Teh Matirx, but funny")
    assert reading.like == (1,) and reading.wish == "Something funny"
    assert reading.notes[0] == '"Teh Matirx" is read as The Matrix (1999).'


def test_every_condition_is_told_as_it_is_read(understanding: Understanding) -> None:
    reading = understanding.read("Like Alien but newer, no comedy, nothing with clowns, under two hours")
    assert reading.where == ("year>1979", "runtime<120", "genres!=comedy") and reading.without == ("clowns",)
    assert " ".join(reading.notes) == (
        'compared with Alien (1979), which is left out. "newer" is read as year>1979. "under two hours" is read as '
        'runtime<120. "no comedy" is read as genres!=comedy. "nothing with clowns" is read as no clowns.'
    )


def test_a_condition_that_leaves_nothing_is_not_applied_and_told(understanding: Understanding) -> None:
    reading = understanding.read("Horror from before 1900, no comedy")
    allowed, notes = understanding.allowed(reading, np.ones(len(FILMS), bool))
    assert notes == ['"year<1900" would leave no item, so it is not applied.']
    assert np.flatnonzero(~allowed).tolist() == [3]


def test_facts_that_the_items_lack_are_told() -> None:
    """The network reads a year (items' texts may have some), and no running time, of which it knows nothing."""
    plain = Understanding(Titles(Catalogue(["a"], ["One"], ["One. A story."])))
    reading = plain.read("A story from before 1980, under two hours")
    assert reading.wish == "A story from before 1980" and not reading.where
    assert ["have no years" in reading.notes[0], "no item has a running time" in reading.notes[1]] == [True, True]
    assert plain.read("A story from before 1980").wish == "A story from before 1980"
    texts = Understanding(Titles(Catalogue(["a"], ["One"], ["One."], {"runtime": ["117 min"], "year": ["1980"]})))
    assert "no item has a running time" in texts.read("under two hours").notes[0] and not texts.dated


def test_long_facts_and_many_texts_are_not_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures and descriptions are no names of facts; a million texts would keep a request waiting."""
    long = "a very long story of ships and men and whales and storms"
    few = Understanding(Titles(Catalogue(["a", "b"], ["One", "Two"], ["One. Ships.", "Two."], {"plot": [long, None]})))
    assert few._values == {}
    assert few.read("a story without ships").without == ("ships",)
    monkeypatch.setattr("instructrec_jax.answering.understanding.MOST_TEXTS", 1)
    reading = few.read("a story without ships")
    assert not reading.conditional and "texts of so many are not searched" in reading.notes[0]


def test_who_cannot_compare_reads_titles_as_words(understanding: Understanding) -> None:
    alone = Understanding(understanding.titles, compares=False)
    assert alone.read("Something like Alien but funny") == Reading("Something like Alien but funny")


def test_the_film_records_have_no_running_times_and_the_slices_no_length() -> None:
    """So a request for a length is answered with a note; no test case asks for one."""
    embedded = Understanding(Titles(films.catalogue()))
    assert "not applied" in embedded.read("something tense under two hours").notes[0]
    assert "length" not in slices.SLICES


@pytest.mark.parametrize(
    ("name", "split", "least"),
    [
        *((name, "train", 1.0) for name in ("negation", "comparison", "era")),
        *((name, "held_out", 1.0) for name in ("comparison", "era")),
        ("negation", "held_out", 0.55),  # others say it in words that no record has: "bloodsuckers"
    ],
)
def test_conditions_of_the_slices_are_read_and_true(name: str, split: Split, least: float) -> None:
    """No film that fits a case is ruled out; every film that fits all but the condition is."""
    embedded, read = Understanding(Titles(films.catalogue())), []
    for case in slices.cases(name, split, 0):
        reading = embedded.read(case.instruction)
        allowed = embedded.allowed(reading, np.ones(len(slices.facts()), bool))[0]
        assert allowed[case.films].all(), case.instruction
        read.append(bool(reading.like) if name == "comparison" else not allowed[case.nearly].any())
    assert np.mean(read) >= least


def test_words_are_compared_without_their_plural() -> None:
    assert stems("Zombies, witches & Comedies") == stems("zombie witch and comedy")
    assert stems("Amélie's horses") == stems("amelies horse")
    assert stems("bus") != stems("bu") and stems("war") != stems("wars on")


def test_a_text_is_a_sentence_again() -> None:
    assert tidy(" , a comedy ,  . please ") == "A comedy. please"
    assert tidy("Something  , ; and more !") == "Something, and more!"
    assert tidy(" . ") == ""
