"""Requests are worded as the instructions of the prepared folder that a run was trained on."""

from pathlib import Path
from typing import Any

import pytest

from instructrec_jax.answering.phrasing import wording_of
from instructrec_jax.files import write_json
from instructrec_jax.preparation import demos
from instructrec_jax.ranking.catalogue import Catalogue

TITLES = ["Moon", "Space", "{history}", "太空 🚀"]
ITEMS = Catalogue(list("abcd"), TITLES, TITLES, {"year": [2009, 1992, None, 1997]})


def card(folder: Path, **settings: Any) -> Path:
    write_json(folder / "card.json", {"settings": settings})
    return folder


def test_the_wording_follows_the_prepared_folder(tmp_path: Path) -> None:
    wording = wording_of(card(tmp_path, noun="film", preferences=["implicit"], titles_in_prompt=3))
    assert wording.titles == 3 and wording.always_told
    assert wording.prompt(ITEMS, [1], "") == "I have recently watched Space (1992). What should I watch next?"
    assert wording.prompt(ITEMS, [], "") == "Which film comes next for this person?"
    assert wording.prompt(ITEMS, [], "a thriller") == "a thriller"
    assert "Wanted: any war film? Which" in wording.prompt(ITEMS, [1], "any war film?")
    assert not wording_of(card(tmp_path, noun="film", preferences=["none"])).always_told


def test_without_a_card_items_are_items(tmp_path: Path) -> None:
    wording = wording_of(tmp_path)
    assert wording.prompt(ITEMS, [], "") == "Which item comes next for this person?"
    assert wording.titles == 10 and not wording.always_told


def test_all_told_titles_are_named_oldest_first(tmp_path: Path) -> None:
    wording = wording_of(card(tmp_path, noun="film"))
    assert "Moon (2009); Space (1992); Moon (2009)" in wording.prompt(ITEMS, [0, 1, 0], "")


@pytest.mark.parametrize(("wish", "shown"), [("a film", "a film."), ("a film.", "a film."), ("why?", "why?")])
def test_a_wish_ends_with_one_mark(wish: str, shown: str, tmp_path: Path) -> None:
    prompt = wording_of(tmp_path).prompt(ITEMS, [1], wish)
    assert f"Wanted: {shown} " in prompt and ".." not in prompt and "?." not in prompt


def test_a_chinese_wish_gets_chinese_words(tmp_path: Path) -> None:
    wording = wording_of(card(tmp_path, noun="film"))
    assert wording.prompt(ITEMS, [1], "恐怖片").startswith("看过的：《Space (1992)》")
    assert wording.prompt(ITEMS, [3], "a film").startswith("Already watched: 太空 🚀 (1997).")  # the wish decides


def test_braces_of_titles_and_wishes_are_only_braces(tmp_path: Path) -> None:
    prompt = wording_of(tmp_path).prompt(ITEMS, [2], "{intention} {x} {{}}")
    assert "{history}. Wanted: {intention} {x} {{}}." in prompt


def test_an_own_noun_of_the_users_templates(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(
        "nouns:\n  song:\n"
        "    en: {a_noun: a song, noun: song, nouns: songs, do: hear, did: heard, doing: hearing}\n"
        '    zh: {noun: 歌, measure: 首, do: 听, genre: "{genre}歌曲", open: 《, close: 》}\n',
        encoding="utf-8",
    )
    wording = wording_of(card(tmp_path, noun="song", templates=str(own)))
    assert wording.prompt(ITEMS, [], "") == "Which song comes next for this person?"
    gone = wording_of(card(tmp_path, noun="song", templates=str(tmp_path / "gone.yaml")))
    assert gone.prompt(ITEMS, [], "") == "Which item comes next for this person?"


@pytest.mark.parametrize("name", demos.names())
def test_a_demo_has_its_own_wording(name: str, tmp_path: Path) -> None:
    demo = demos.find(name, "x")
    write_json(tmp_path / "card.json", {"source": demo.source, "settings": {}})
    wording = wording_of(tmp_path)
    nothing, history, _ = demo.instructions
    assert wording.prompt(ITEMS, [], "") == nothing and wording.titles == demo.titles_in_prompt
    assert wording.prompt(ITEMS, [0, 1], "") == history.replace("{history}", demo.listing(["Moon", "Space"]))


def test_a_damaged_card_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="card.json.*noun"):
        wording_of(card(tmp_path, noun=3))
