"""The named slices: requests whose positive films follow from the records, in wordings that training never sees."""

import re
from collections import Counter
from pathlib import Path

import pytest

from instructrec_jax.files import read_jsonl
from instructrec_jax.preparation import films
from instructrec_jax.preparation.films.slices import (
    ALIKE,
    CASES,
    MOST_POSITIVES,
    SLICES,
    WORDING,
    cases,
    has,
    slice_examples,
    words,
)
from instructrec_jax.preparation.films.texts import Split, bare, facts

BOTH = [(name, split) for name in SLICES for split in ("train", "held_out")]


@pytest.mark.parametrize(("name", "split"), BOTH)
def test_cases_are_sentences_with_films_that_fit(name: str, split: Split) -> None:
    made = list(cases(name, split, 0))
    assert len(made) == CASES == len({case.instruction for case in made})
    assert made == list(cases(name, split, 0)) != list(cases(name, split, 1))
    for case in made:
        assert re.search(r"[.!?]$", case.instruction) and "{" not in case.instruction, case.instruction
        assert case.instruction[0].upper() == case.instruction[0]
        assert 0 < len(case.films) <= MOST_POSITIVES and not set(case.films) & set(case.nearly)
        if name != "mixed languages":
            every = {n for n, own in enumerate(has()) if own.issuperset(case.asked)} if case.asked else None
            assert every is None or every == {*case.films, *case.nearly}, case.instruction


def test_a_negation_has_something_to_rule_out() -> None:
    """Films have all that is asked for and what is not wanted: one fact that no positive film has."""
    for case in cases("negation", "held_out", 0):
        assert case.nearly
        ruled_out = set.intersection(*(set(has()[n]) for n in case.nearly)) - set.union(
            *(set(has()[n]) for n in case.films)
        )
        assert ruled_out & set(words()["negation"]["words"]), case.instruction


def test_an_era_has_films_of_other_years() -> None:
    for case in cases("era", "held_out", 0):
        inside, outside = ({facts()[n]["year"] for n in some} for some in (case.films, case.nearly))
        assert outside and not inside & outside
        assert not any(min(inside) <= year <= max(inside) for year in outside), case.instruction


def test_a_comparison_names_a_film_that_does_not_count() -> None:
    for case in cases("comparison", "held_out", 0):
        named = [n for n, film in enumerate(facts()) if film["title"] in case.instruction]
        assert named
        known = max(named, key=lambda n: len(facts()[n]["title"]))
        assert known not in case.films
        assert all(len(has()[n] & has()[known]) >= ALIKE for n in case.films), case.instruction


def test_mixed_requests_have_both_scripts() -> None:
    for case in cases("mixed languages", "held_out", 0):
        assert re.search("[\u4e00-\u9fff]", case.instruction) and re.search("[a-z]{4}", case.instruction)


def test_held_out_sentences_and_words_are_not_those_of_training() -> None:
    """But for the plain names of facts, "aliens", which any wording needs: their sentences are other ones."""
    for slice_ in words().values():
        assert not {bare(text) for text in slice_["train"]} & {bare(text) for text in slice_["held_out"]}
    for name in ("comparison", "mood", "era"):
        for phrases in words()[name]["words"].values():
            new = {bare(text) for text in phrases["held_out"]} - {bare(text) for text in phrases["train"]}
            assert new, (name, phrases)


def test_no_training_example_has_a_sentence_of_the_slices() -> None:
    simulation, catalogue = films.simulate(0), films.catalogue()
    told = "\n".join(f" {bare(e.instruction)} " for e in films.examples(simulation, catalogue, "train", 0))
    for slice_ in words().values():
        for text in slice_["held_out"]:
            for part in re.split(r"\{\w+\}", text):
                assert len(bare(part).split()) < 3 or f" {bare(part)} " not in told, part


def test_the_folder_has_them_beside_the_cases_of_viewers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """test.jsonl is untouched, so its two figures are comparable; a folder without slices is completed."""
    monkeypatch.setattr(films, "VIEWERS", {"train": 4, "validation": 2, "test": 2})
    films.prepare(tmp_path / "data")
    folder = tmp_path / "data/instructions"
    for name in films.SLICES.values():
        assert len(read_jsonl(tmp_path / "data" / name)) == CASES * len(SLICES)
    assert "slice" not in (folder / "test.jsonl").read_text(encoding="utf-8")
    made = list(slice_examples(films.catalogue().ids, "held_out", 0))
    assert Counter(e.origin["slice"] for e in made) == dict.fromkeys(SLICES, CASES)
    assert {e.origin["wording"] for e in made} == {WORDING} and len({e.id for e in made}) == len(made)
    before = (folder / "slices.jsonl").read_bytes()
    for name in films.SLICES.values():
        (tmp_path / "data" / name).unlink()
    films.complete(tmp_path / "data")
    assert (folder / "slices.jsonl").read_bytes() == before
    (folder / "slices.jsonl").write_bytes(b"mine")
    films.complete(tmp_path / "data")
    assert (folder / "slices.jsonl").read_bytes() == b"mine"
