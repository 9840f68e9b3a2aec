"""What is said of items and histories, on a catalogue whose facts are written out here."""

from typing import Any

import numpy as np
import pytest

from instructrec_jax.preparation.wording.intentions import Describer, Fact, names_title
from instructrec_jax.preparation.wording.wordings import load_wordings
from instructrec_jax.ranking.catalogue import Catalogue

HORROR, WESTERN, CRIME, NOTHING, ODD = 0, 1, 2, 3, 4
GENRES: list[Any] = [["Horror"], ["Western"], ["Crime", "Drama"], [], ["IMAX", "Drama"]]
YEARS = [1974, 1952, 2009, None, 1066]
DIRECTORS = ["Ann Lee", "Ann Lee", "Bo Kim", None, None]
TITLES = ["Alien", "Ride - PlayStation 2", "Heat", "Nothing At All", "IMAX"]


def films(copies: int = 6) -> Catalogue:
    """Five kinds of films, each several times; film n is of kind n % 5."""
    every = range(5 * copies)
    titles = [f"{TITLES[n % 5]}" for n in every]
    facts = {"genres": [GENRES[n % 5] for n in every], "year": [YEARS[n % 5] for n in every]}
    facts["director"] = [DIRECTORS[n % 5] for n in every]
    return Catalogue([f"i{n}" for n in every], titles, titles, facts)


def describer(noun: str = "film", catalogue: Catalogue | None = None) -> Describer:
    return Describer(catalogue or films(), load_wordings(), noun)


def said(item: int, kind: str, language: str = "en", noun: str = "film", draws: int = 60) -> set[str]:
    own = describer(noun)
    found = [own.intention(item, kind, language, np.random.default_rng(seed)) for seed in range(draws)]
    return {each.text for each in found if each is not None}


def tastes(history: list[int], language: str = "en", draws: int = 30) -> set[str]:
    own = describer()
    found = [own.preference(history, language, np.random.default_rng(seed)) for seed in range(draws)]
    return {each.text for each in found if each is not None}


# ------------------------------------------------------------------ titles


@pytest.mark.parametrize(
    ("text", "title", "expected"),
    [
        ("I liked ALIEN, really", "Alien", True),
        ("I liked aliens", "Alien", False),
        ("a heat wave", "Heat", True),
        ("the old man", "The Old Man and the Sea", False),
        ("the old man and the sea!", "The Old Man and the Sea", True),
        ("anything", "", False),
        ("anything", "!?", False),
    ],
)
def test_a_title_is_named_by_all_its_words(text: str, title: str, expected: bool) -> None:
    assert names_title(text, title) == expected


# ------------------------------------------------------------------ requests


def test_vague_requests_state_one_broad_fact() -> None:
    decade = {f"{what} from {when}" for what in ("a film", "something") for when in ("the seventies", "the 1970s")}
    assert said(HORROR, "vague") == {"a horror film"} | decade
    assert said(CRIME, "vague") == {"a crime film", "a drama", "a film from the 2000s", "something from the 2000s"}
    assert said(HORROR, "vague", "zh") == {"一部恐怖片", "一部上世纪七十年代的电影", "一部20世纪70年代的电影"}


def test_specific_requests_state_two_to_four_true_facts() -> None:
    own = describer()
    for item in (HORROR, WESTERN, CRIME):
        for seed in range(60):
            found = own.intention(item, "specific", "en", np.random.default_rng(seed))
            assert found is not None and 2 <= len(found.facts) <= 4 and own.fits(item, found.facts)
    texts = said(CRIME, "specific")
    assert "a crime drama by Bo Kim" in texts and "a crime drama from 2009" in texts
    assert "一部Bo Kim 执导的犯罪剧情片" in {text.replace("部 Bo", "部Bo") for text in said(CRIME, "specific", "zh")}


def test_facts_are_true_of_the_right_films_alone() -> None:
    own = describer()
    truths = {
        Fact("genres", "Horror"): {HORROR},
        Fact("genres", "Drama"): {CRIME, ODD},
        Fact("decade", 1970): {HORROR},
        Fact("year", 1952): {WESTERN},
        Fact("director", "Ann Lee"): {HORROR, WESTERN},
        Fact("year", 1066): set(),  # no year of a film
    }
    for fact, films_with_it in truths.items():
        assert {item for item in range(5) if own.fits(item, [fact])} == films_with_it, fact
    assert own.fits(HORROR, [Fact("genres", "Horror"), Fact("year", 1974)]) and own.fits(NOTHING, [])
    assert not own.fits(HORROR, [Fact("genres", "Horror"), Fact("year", 1952)])


def test_kinds_that_nobody_asks_for_and_common_ones_are_not_said() -> None:
    assert not any("imax" in text.lower() for kind in ("vague", "specific") for text in said(ODD, kind))
    every = Catalogue(["a", "b"], ["Xa", "Xb"], ["Xa", "Xb"], {"genres": [["Drama", "Crime"], ["Drama"]]})
    own = describer(catalogue=every)
    found = {own.intention(0, "vague", "en", np.random.default_rng(seed)) for seed in range(20)}
    assert {each.text for each in found if each} == {"a crime film"}  # a drama is any of them


def test_a_request_never_names_its_title() -> None:
    titles = ["Horror", "Western - DVD", "Crime", "x", "y"]
    named = Catalogue(list("abcde"), titles, titles, {"genres": [["Horror"], ["Western"], ["War"], [], []]})
    own = describer(catalogue=named)
    for seed in range(10):
        rng = np.random.default_rng(seed)
        assert own.intention(0, "vague", "en", rng) is None and own.intention(1, "vague", "en", rng) is None
        war = own.intention(2, "vague", "en", rng)
        assert war is not None and war.text == "a war film"


def test_nothing_is_said_without_facts() -> None:
    assert said(NOTHING, "vague") == said(NOTHING, "specific") == set()


def test_words_that_titles_share_stand_in_for_facts() -> None:
    """At least three titles have the word, at most half of them do; at most half of a title's words are said."""
    titles = ["Dragon Quest Alpha Beta", "Dragon Quest Gamma Delta", "DRAGON Quest Rho Tau", "Dragon"]
    titles += [f"Lonely{n} Word{n} Quest" for n in "abcdefgh"]
    own = describer("game", Catalogue(list("abcdefghijkl"), titles, titles))
    found = {own.intention(0, "vague", "en", np.random.default_rng(seed)) for seed in range(20)}
    assert {each.text for each in found if each} == {'a game with "Dragon" in its name'}  # eleven have "Quest"
    assert own.intention(3, "vague", "en", np.random.default_rng(0)) is None  # it would be the whole title


@pytest.mark.parametrize(("noun", "expected"), [("film", "a western"), ("product", "a Western product")])
def test_kinds_stand_for_a_film_but_not_for_a_product(noun: str, expected: str) -> None:
    assert expected.lower() in {text.lower() for text in said(WESTERN, "vague", noun=noun)}


def test_an_unknown_noun_is_named() -> None:
    with pytest.raises(ValueError, match="noun 'moovie'"):
        describer("moovie")


# ------------------------------------------------------------------ tastes


def test_a_taste_is_of_the_most_telling_kinds() -> None:
    for text in tastes([HORROR, HORROR + 5, HORROR + 10]):
        first, *rest = text.split(", ")
        assert "horror" in first and ("seventies" in first or "1970s" in first)
        assert all("Ann Lee" in each for each in rest)
    assert all("western" in text.split(",")[0] for text in tastes([WESTERN] * 4 + [HORROR]))
    assert all("恐怖片" in text for text in tastes([HORROR, HORROR + 5], "zh"))


def test_an_era_is_of_at_least_half_of_the_history() -> None:
    assert all("1950s" in text or "fifties" in text for text in tastes([WESTERN, WESTERN, HORROR]))
    assert not any("19" in text or "ties" in text for text in tastes([WESTERN, HORROR, CRIME]))


def test_what_is_rarely_watched_is_common_elsewhere() -> None:
    history = [CRIME + 5 * n for n in range(6)] + [CRIME, CRIME]
    rarely = [text for text in tastes(history) if any(w in text for w in ("rarely", "hardly ever", "seldom"))]
    assert rarely
    for text in rarely:
        assert any(kind in text.split(", ")[-1] for kind in ("horror", "western"))
    assert not any("rarely" in text or "seldom" in text for text in tastes(history[:7]))  # too short a history


def test_no_taste_without_facts() -> None:
    assert tastes([NOTHING]) == set()
    assert all('films with "Nothing" in the name' in text for text in tastes([NOTHING, NOTHING + 5]))


def test_facts_of_a_taste_are_those_that_its_text_states() -> None:
    found = describer().preference([HORROR, HORROR, WESTERN], "en", np.random.default_rng(0))
    assert found is not None and Fact("genres", "Horror") in found.facts and found.variant.startswith("genres")
    assert describer().preference([HORROR, HORROR], "en", np.random.default_rng(7)) == describer().preference(
        [HORROR, HORROR], "en", np.random.default_rng(7)
    )
