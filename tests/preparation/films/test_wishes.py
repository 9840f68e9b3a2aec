"""What the embedded viewers say: grammar, and nothing that does not hold for the film they want."""

import re
from collections import defaultdict
from functools import cache
from typing import Any

import numpy as np
import pytest

from instructrec_jax.data.example import Example
from instructrec_jax.preparation import films
from instructrec_jax.preparation.films.texts import bare, facts, wordings
from instructrec_jax.preparation.films.wishes import ASIDES, KINDS, ask, listing, phrase, sensible_to_avoid, wish

PLACES = set(
    "aboard after along amid among behind beyond by crossing deep far from in many of on out set somewhere surrounded "
    "under up way".split()
)
DANGLING = "a|an|and|or|the|with|without|about|of|set|where|kind that|plus|but|is|nothing|no"


@cache
def said() -> list[tuple[Example, dict[str, Any], str]]:
    """All test examples and as many of training: each with the film it wants, and its text without listed titles."""
    simulation, catalogue = films.simulate(0), films.catalogue()
    found = []
    for split in ("train", "test"):
        for number, e in enumerate(films.examples(simulation, catalogue, split, 0)):
            if number == 3000:
                break
            titles = [catalogue.titles[catalogue.index[item]] for item in e.history[-5:]]
            text = e.instruction.replace(listing(titles), "TITLES") if "history" in e.origin["kind"] else e.instruction
            found.append((e, facts()[catalogue.index[str(e.output)]], text))
    return found


def phrases_of(kind: str) -> dict[str, set[str]]:
    """Bare phrase -> the themes (or genres, or eras) that it stands for, in any wording."""
    found: dict[str, set[str]] = defaultdict(set)
    for name, entry in wordings()[kind].items():
        lists = entry.values() if kind == "themes" else [entry["noun"]] if kind == "genres" else [entry]
        for choices in lists:
            for split in ("train", "held_out"):
                for text in choices[split]:
                    found[bare(text)].add(name)
    return found


def test_sentences_begin_and_end() -> None:
    for e, _, text in said():
        assert re.match(r"[A-Z0-9]", e.instruction) and re.search(r"[.!?]$", e.instruction), e.instruction
        assert not re.search(r"[{}]|  |[,;:]\s*[,;:.!?]|[.!?][.!?]|\s[,.;:!?]", text), text
        assert not re.search(r"[.!?] [a-z]", text), text


def test_no_word_twice_and_no_word_left_hanging() -> None:
    for _, _, text in said():
        assert not re.search(r"\b(\w+) \1\b", text.lower()), text
        assert not re.search(rf"\b({DANGLING})[,.;:!?]", text.lower()), text
        assert not re.search(
            r"\b((with|without|about|plus) (and|or|but|plus|with|about)|(and|or) (and|or|but|plus))\b", text
        ), text
        for phrase_ in ("with", "about"):
            assert len(re.findall(rf"\b{phrase_}\b", text)) <= 5, text


def test_articles_agree() -> None:
    for _, _, text in said():
        assert not re.search(r"\b[Aa] [aeiou](?!ne\b|ne-)", text), text
        assert not re.search(r"\b[Aa]n (?!hour\b)[^aeiou]", text), text


def test_what_a_wish_says_holds_for_the_film() -> None:
    """The facts it is made of, and every phrase in it that stands for a theme, a genre or an era."""
    own = {kind: phrases_of(kind) for kind in ("themes", "genres", "eras")}
    years = {era: entry["years"] for era, entry in wordings()["eras"].items()}
    telling = [(f" {text} ", names) for kind in own for text, names in own[kind].items() if len(text.split()) > 2]
    telling.sort(key=lambda pair: -len(pair[0]))
    avoid = wordings()["avoid"].values()
    ruled_out = sorted((x for entry in avoid for s in ("train", "held_out") for x in entry[s]), key=len, reverse=True)
    for e, film, text in said():
        has = {*film["themes"], *film["genres"]}
        has |= {era for era, (low, high) in years.items() if low <= film["year"] <= high}
        asked = e.origin.get("asked", "").split(", ") if "words" in e.origin["kind"] else []
        assert set(asked) <= has and ("words" not in e.origin["kind"] or len(asked) >= 2), e.instruction
        for theme in asked:
            assert film["title"] not in wordings()["unsaid"].get(theme, ()), (theme, e.instruction)
        for unwanted in ruled_out:
            text = text.replace(unwanted, "").replace(unwanted.capitalize(), "")
        words = f" {bare(text)} "
        for phrase_, names in telling:
            assert names & has or phrase_ not in words, (phrase_, film["title"], e.instruction)
            words = words.replace(phrase_, " | ")  # a shorter phrase inside it says nothing more


def test_what_is_ruled_out_makes_sense_and_holds() -> None:
    avoid = wordings()["avoid"]
    by_phrase = {text: name for name, entry in avoid.items() for s in ("train", "held_out") for text in entry[s]}
    assert len(by_phrase) == sum(len(entry["train"]) + len(entry["held_out"]) for entry in avoid.values())
    count = 0
    for e, film, text in said():
        if "words" not in e.origin["kind"]:
            continue
        tail = re.split(r"[.!?] (?=[A-Z])|, but ", text)[-1]
        found = [x for x in by_phrase if f" {bare(x)} " in f" {bare(tail)} " and len(tail) < len(x) + 30]
        for unwanted in {by_phrase[max(found, key=len)]} if found else ():
            count += 1
            asked, has = set(e.origin["asked"].split(", ")), {*film["themes"], *film["genres"]}
            assert unwanted not in has and not set(avoid[unwanted]["unless"]) & has, e.instruction
            assert set(avoid[unwanted]["near"]) & asked, e.instruction
    assert 0.05 < count / len(said()) < 0.3


def test_what_goes_with_what_is_named_right() -> None:
    known = {*wordings()["themes"], *wordings()["genres"]}
    for name, entry in wordings()["avoid"].items():
        assert name in known and {*entry["near"], *entry["unless"]} <= known
        assert not {name} & set(entry["near"])
    titles = {(theme, film["title"]) for film in facts() for theme in film["themes"]}
    for theme, unsaid in wordings()["unsaid"].items():
        assert {(theme, title) for title in unsaid} <= titles, theme
    for film in facts():
        sayable = [t for t in film["themes"] if film["title"] not in wordings()["unsaid"].get(t, ())]
        assert len(sayable) >= 2, film["title"]


def test_every_clause_is_of_a_kind_that_the_grammar_knows() -> None:
    for theme, entry in wordings()["themes"].items():
        for split in ("train", "held_out"):
            for clause in entry["clause"][split]:
                assert clause.split()[0] in {*KINDS, *ASIDES, *PLACES}, (theme, clause)
                assert clause[-1] not in ",.;" and clause[0].islower(), clause
            for adjective in entry["adjective"][split]:
                assert " " not in adjective or adjective in ("darkly funny", "blackly comic"), adjective


def test_held_out_clauses_are_no_other_form_of_a_training_clause() -> None:
    """ "with grifters" would say nothing new beside "with a grifter"."""

    def told(clause: str) -> frozenset[str]:
        little = {*"a an the of to in on with or for at by and up out his one some where who that about".split()}
        return frozenset(word[:5].rstrip("s") for word in bare(clause).split() if word not in little)

    for theme, entry in wordings()["themes"].items():
        known = {told(clause): clause for clause in entry["clause"]["train"]}
        for clause in entry["clause"]["held_out"]:
            assert told(clause) not in known, (theme, clause, known[told(clause)])


def test_sentences_about_several_films_are_said_of_several() -> None:
    several = [
        re.split(r"\{\w+\}", text) for s in ("train", "held_out") for text in wordings()["histories_of_several"][s]
    ]
    for e, _, text in said():
        if "history" in e.origin["kind"] and len(e.history) == 1:
            assert not any(all(part in text for part in parts) for parts in several), text


@pytest.mark.parametrize(
    ("noun", "adjectives", "time", "clauses", "text", "is_open"),
    [
        ("something", [], "", ["about revenge"], "something about revenge", False),
        ("something", ["sad", "witty"], "", [], "something sad and witty", False),
        ("a film", ["eerie", "sad"], "", ["with ghosts"], "an eerie, sad film with ghosts", False),
        ("a film", [], "", ["about revenge", "about friendship"], "a film about revenge and friendship", False),
        ("a film about love", [], "", ["about grief"], "a film about love and grief", False),
        (
            "a comedy",
            [],
            "from the 80s",
            ["with pals", "set at sea"],
            "a comedy from the 80s set at sea, with pals",
            True,
        ),
        ("something", [], "", ["that is sad", "with wit"], "something with wit, the kind that is sad", True),
        ("something", [], "", ["that grips you"], "something that grips you", False),
        ("something", [], "", ["sweet and tender"], "something sweet and tender", False),
        ("a film", [], "", ["where people dance", "that is sad"], "a film that is sad and where people dance", False),
        ("a film", [], "", ["with cooks and eaters", "with wit"], "a film with cooks and eaters, plus wit", True),
        ("a film", [], "", ["set in a prison", "set in the snow"], "a film set in a prison and in the snow", False),
        ("some crime", [], "", ["full of wit", "full of gore"], "some crime full of wit and gore", False),
    ],
)
def test_grammar(noun: str, adjectives: list[str], time: str, clauses: list[str], text: str, is_open: bool) -> None:
    assert phrase(noun, adjectives, time, clauses) == (text, is_open)


def test_what_is_sensible_to_avoid() -> None:
    by_title = {film["title"]: film for film in facts()}
    alien, amelie = by_title["Alien"], by_title["Amelie"]
    assert "aliens" not in sensible_to_avoid(alien, ["space", "scary"])
    assert "zombies" in sensible_to_avoid(alien, ["horror"]) and not sensible_to_avoid(alien, ["old age"])
    assert "zombies" not in sensible_to_avoid(amelie, amelie["themes"])


def test_wishes_are_made_of_what_they_say() -> None:
    film = next(film for film in facts() if film["title"] == "Jaws")
    for number in range(50):
        for split in ("train", "held_out"):
            found = wish(film, ["monsters"], "zombies", split, np.random.default_rng(number))
            assert found.asked[0] == "monsters" and 2 <= len(found.asked) <= 5
            assert found.open == ("," in found.text.split("film")[-1]) or "," in found.text
            assert not found.unwanted or found.unwanted in {
                text for entry in wordings()["avoid"].values() for text in entry[split]
            }


def test_titles_keep_their_own_marks() -> None:
    number = next(i for i, film in enumerate(facts()) if film["title"] == "Mamma Mia!")
    for seed in range(200):
        text = ask(np.array([number, 0]), [], "", "train", np.random.default_rng(seed)).instruction
        assert not re.search(r"[.!?][.!?]", text), text
