"""Items added to a catalogue: at its end, with the facts of its columns, or refused by file and line."""

import json
from pathlib import Path
from typing import Any

import pytest

from instructrec_jax.answering.new_items import with_new_items
from instructrec_jax.ranking.catalogue import Catalogue

FACTS: dict[str, Any] = {
    "year": [1979, None],
    "genres": [["Horror"], None],
    "brand": ["Acme", None],
    "price": [9.5, None],
    "pages": [None, 100],
}
OLD = Catalogue(["i0", "i1"], ["Alien", "Moon"], ["Alien (1979). Genres: Horror.", "Moon"], FACTS)


def joined(path: Path, *records: dict[str, Any]) -> Catalogue:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return with_new_items(OLD, path)


def facts_of(catalogue: Catalogue, item: int) -> dict[str, Any]:
    return {name: column[item] for name, column in catalogue.facts.items()}


def test_old_items_stay_and_new_ones_follow(tmp_path: Path) -> None:
    found = joined(tmp_path / "new.jsonl", {"title": "Heat (1995)", "id": "h", "text": "a heist"}, {"title": "Up"})
    assert found.ids == ["i0", "i1", "h", "new-2"] and found.titles == ["Alien", "Moon", "Heat", "Up"]
    assert found.texts == [*OLD.texts, "a heist", "Up."]
    for item in (0, 1):
        assert facts_of(found, item) == facts_of(OLD, item)
    assert len(OLD) == 2 and len(OLD.facts["year"]) == 2  # the catalogue of before is as it was


def test_a_text_is_made_as_the_readers_make_it(tmp_path: Path) -> None:
    record = {"title": "Heat (1995)", "genres": ["Crime", "Drama"], "brand": "Warner"}
    assert joined(tmp_path / "new.jsonl", record).texts[-1] == "Heat (1995). Genres: Crime, Drama. Brand: Warner."


def test_the_year_of_the_title_or_of_its_own_field(tmp_path: Path) -> None:
    records = [{"title": "Heat (1995)"}, {"title": "Heat", "year": 1995}, {"title": "Heat (1995)", "year": 1996}]
    found = joined(tmp_path / "new.jsonl", *records, {"title": "Heat"})
    assert [facts_of(found, item)["year"] for item in range(2, 6)] == [1995, 1995, 1996, None]
    assert found.texts[4].startswith("Heat (1996)")


def test_cells_of_a_table_become_values_of_the_catalogues_types(tmp_path: Path) -> None:
    path = tmp_path / "new.csv"
    path.write_text("title,year,genres,price,pages\nHeat,1995, Crime;; Drama ,7.25,12\nUp,,,,\n", encoding="utf-8")
    found = with_new_items(OLD, path)
    assert facts_of(found, 2) == {
        "year": 1995, "genres": ["Crime", "Drama"], "brand": None, "price": 7.25, "pages": 12,
    }  # fmt: skip
    assert set(facts_of(found, 3).values()) == {None}


def test_numbers_of_json_become_the_catalogues_type(tmp_path: Path) -> None:
    record = {"title": "Heat", "price": 7, "brand": 3}
    found = facts_of(joined(tmp_path / "new.jsonl", record), 2)
    assert found["price"] == 7.0 and isinstance(found["price"], float) and found["brand"] == "3"


@pytest.mark.parametrize(
    ("record", "named"),
    [
        ({}, "title"),
        ({"title": " "}, "title"),
        ({"title": "(1995)", "id": "i1"}, "title|'i1'"),
        ({"title": "x", "id": "i1"}, "'i1'"),
        ({"title": "x", "id": "first"}, "'first'"),
        ({"title": "x", "gnres": "y"}, "'gnres'.*\"genres\""),
        ({"title": "x", "year": "soon"}, "year.*'soon'"),
        ({"title": "x", "year": [1995]}, "year"),
        ({"title": "x", "genres": 3}, "genres.*list"),
        ({"title": "x", "genres": ["a", 3]}, "genres.*list"),
        ({"title": "x", "price": "cheap"}, "price.*float"),
        ({"title": "x", "pages": 1.5}, "pages.*int"),
        ({"title": "x", "brand": ["Acme"]}, "brand.*str"),
        ({"title": "a\x00b"}, "NUL"),
    ],
)
def test_a_record_that_is_no_item_names_its_line(record: dict[str, Any], named: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"new.jsonl, line 2.*({named})"):
        joined(tmp_path / "new.jsonl", {"title": "First", "id": "first"}, record)


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "new.jsonl").write_text('{"title": "a"}\n{"title": \n')
    with pytest.raises(ValueError, match="new.jsonl, line 2"):
        with_new_items(OLD, tmp_path / "new.jsonl")
