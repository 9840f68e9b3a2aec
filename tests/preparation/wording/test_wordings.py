"""The templates and the vocabulary of instructions, those of the project and those of a user."""

import re
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from own_wordings import OWN

from instructrec_jax.preparation.wording.grammar import RANKING_FORMS, TEXT_FORMS
from instructrec_jax.preparation.wording.wordings import (
    INTENTIONS,
    LANGUAGES,
    PREFERENCES,
    Template,
    load_wordings,
    slots,
)

CHINESE = re.compile("[\u4e00-\u9fff]")


def test_enough_templates_in_every_cell():
    templates = load_wordings().templates
    grammar = [t for t in templates if t.form in RANKING_FORMS]
    for language in LANGUAGES:
        assert len({t.texts[language] for t in grammar}) >= 45
        texts = [t.texts[language] for t in templates]
        assert len(set(texts)) == len(texts)
    assert 0.15 < np.mean([t.wording == "held_out" for t in templates]) < 0.3
    for form, preference, intention in product(RANKING_FORMS, PREFERENCES, INTENTIONS):
        wordings = [t.wording for t in templates if t.serves(form, preference, intention)]
        if (preference, intention) == ("none", "none") and form != "matching":
            assert not wordings
        else:
            assert wordings.count("train") >= 3 and wordings.count("held_out") >= 1
    for form in TEXT_FORMS:
        assert {t.wording for t in templates if t.form == form} == {"train", "held_out"}


def test_wordings_of_training_and_of_testing_differ():
    def bare(text):
        return "".join(c for c in re.sub(r"\{\w+\}", "", text).lower() if c.isalnum())

    templates = load_wordings().templates
    for language, form in product(LANGUAGES, [*RANKING_FORMS, *TEXT_FORMS, "tags"]):
        of = {
            w: {bare(t.texts[language]) for t in templates if t.form == form and t.wording == w}
            for w in ("train", "held_out")
        }
        assert not of["train"] & of["held_out"]


def test_every_template_can_be_filled_in_both_languages():
    wordings = load_wordings()
    content = ["history", "preference", "intention", "candidate", "candidates", "first", "second", "tags"]
    for template, noun, language in product(wordings.templates, wordings.nouns.values(), LANGUAGES):
        values = {**noun[language], **{name: f"<{name}>" for name in content}}
        text = template.texts[language].format_map(values)
        assert not re.search(r"[{}]|  ", text) and text == text.strip()
        assert bool(CHINESE.search(text)) == (language == "zh")
        same = [{s for s in slots(template.texts[x]) if s in content} for x in LANGUAGES]
        assert same[0] == same[1]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("{history}: which {noun}?", "{history}: which {nuon}?", "'my-own': en: .*'nuon'.*\"noun\""),
        ('        zh: "{history}之后再来一{measure}？"\n', "", "'my-own': .*zh"),
        ("name: my-own", "name: my-own\n        wordign: held_out", "'my-own': .*'wordign'.*\"wording\""),
        ("{history}之后", "之后", "'my-own': zh: .*{history}"),
        ("which {noun}?", "{intention}?", "'my-own': en: .*{intention}"),
        ("which {noun}?", "which {noun?", "'my-own': en: .*braces"),
        ("which {noun}?", "which {noun:>9}?", "'my-own': en: "),
        ("name: my-own", "name: my-own\n        wording: new", "'my-own': wording"),
        ("name: my-own", "name: matching-short", "'matching-short' .*matching.yaml"),
        ("form: matching", "form: machting", "form .*matching"),
        ("intention: none", "intention: nonne", "cell matching implicit nonne: intention"),
        ("cells:", "celsl:", "'celsl'.*\"cells\""),
        ("measure: 首, ", "", "nouns: song: zh"),
        ("cells:", "cells: [", "line 7"),
        ("noun: song", "noun: 3", "nouns: song: en: noun"),
        ("cells:", "kinds: {Opera: {as: [opera], zh: 歌剧}}\ncells:", "kinds: Opera: as"),
        ("cells:", "phrases: {mostly: {en: [1], zh: [x]}}\ncells:", "phrases: mostly: en"),
        ("cells:", "contexts: [{name: rain, en: 1, zh: 雨}]\ncells:", "contexts: rain: en"),
        ("cells:", "contexts: [{name: rain, en: Rain., zh: 雨, suits: Drama}]\ncells:", "contexts: rain: suits"),
        ("cells:", 'answers: {"yes": {en: 1, zh: 是}}\ncells:', "answers: yes: en"),
        ("cells:", "facts: {label: {en: on it, zh: 是}}\ncells:", "facts: label: en"),
    ],
)
def test_broken_template_files(tmp_path, old, new, message):
    path = tmp_path / "own.yaml"
    assert OWN.count(old) == 1
    path.write_text(OWN.replace(old, new), encoding="utf-8")
    escaped = re.sub(r"([{}])", r"\\\1", message)
    with pytest.raises(ValueError, match=rf"(?s)own\.yaml.*{escaped}"):
        load_wordings(path)


def own(path: Path, text: str = OWN) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_what_a_user_adds_joins_the_projects(tmp_path: Path) -> None:
    alone, project = load_wordings(own(tmp_path / "own.yaml")), load_wordings()
    assert load_wordings(tmp_path) == load_wordings(str(tmp_path / "own.yaml")) == alone
    (added,) = [t for t in alone.templates if t not in project.templates]
    assert added.name == "my-own" and added.wording == "train"
    assert alone.noun("song")["en"]["did"] == "heard" and "song" not in project.nouns
    with pytest.raises(ValueError, match="'song'.*templates"):
        project.noun("song")


def test_a_later_file_may_redefine_a_noun(tmp_path: Path) -> None:
    text = OWN.replace("song:", "film:")
    changed = load_wordings(own(tmp_path / "own.yaml", text))
    assert changed.noun("film")["en"]["noun"] == "song"
    assert "film" not in changed.genre_nouns and "film" in load_wordings().genre_nouns


@pytest.mark.parametrize("place", ["nowhere.yaml", "empty"])
def test_a_place_without_templates_is_named(place: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=f"templates: .*{place}"):
        load_wordings(tmp_path / place)


def test_cells_that_a_template_serves() -> None:
    template = Template("x", "matching", "implicit", "any", "train", {})
    assert template.serves("matching", "implicit", "vague") and template.serves("matching", "implicit", "specific")
    for cell in (("matching", "implicit", "none"), ("matching", "none", "vague"), ("pairwise", "implicit", "vague")):
        assert not template.serves(*cell)


def test_slots() -> None:
    assert slots("{a} and {b}, {{c}}: {a}") == ["a", "b", "a"] and slots("none") == []
