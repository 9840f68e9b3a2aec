import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from instructrec_jax.data.example import Example
from instructrec_jax.ranking.catalogue import (
    Catalogue,
    Interactions,
    Splits,
    load_card,
    load_examples,
    save_prepared,
)


@pytest.fixture
def films():
    return Catalogue(
        ["1", "2", "3"],
        ["Alien", "Heat", "Amélie"],
        ["Alien (1979).", "Heat.", "Amélie (2001)."],
        {"year": [1979, None, 2001], "genres": [["Horror", "Sci-Fi"], [], ["Romance"]]},
    )


def test_numbers_names_and_take(films):
    assert films.numbers(["3", "1"]).tolist() == [2, 0]
    assert [films.name(number) for number in range(3)] == ["Alien (1979)", "Heat", "Amélie (2001)"]
    some = films.take([2, 0])
    assert some.ids == ["3", "1"] and some.facts["genres"] == [["Romance"], ["Horror", "Sci-Fi"]]
    with pytest.raises(ValueError, match="'9'"):
        films.numbers(["9"])


def test_fingerprint_follows_ids_and_texts(films):
    assert films.fingerprint() == films.take([0, 1, 2]).fingerprint()
    assert films.fingerprint() != films.take([1, 0, 2]).fingerprint()
    retold = Catalogue(films.ids, films.titles, ["x", *films.texts[1:]])
    assert films.fingerprint() != retold.fingerprint()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ((["1"], ["a", "b"], ["a"]), "'titles'"),
        ((["1", "1"], ["a", "b"], ["a", "b"]), "'1'"),
        ((["1"], [" "], ["a"]), "title"),
        ((["1"], ["a"], [""]), "text"),
        ((["1"], ["a"], ["a"], {"id": ["x"]}), "'id'"),
    ],
)
def test_catalogue_refuses(columns, message):
    with pytest.raises(ValueError, match=message):
        Catalogue(*columns)


def write(folder, films, rating=3.5):
    folder.mkdir()
    interactions = Interactions(
        ["anna", "bo"],
        np.array([0, 0, 0, 1], np.int32),
        np.array([1, 0, 2, 2], np.int32),
        np.array([1.0, 2.0, 3.0, 1.0]),
        np.array([rating, 4, 5, 1], np.float32),
    )
    one = np.array([0], np.int32)
    splits = Splits(["anna", "bo"], [one + 1, one + 2], [one, one[:0]], [one + 2, one[:0]])
    examples = {
        "train": [],
        "validation": [Example(instruction="Heat. And now?", output="1", history=("2",))],
        "test": [Example(instruction="Heat; Alien. And now?", output="3", history=("2", "1"))],
    }
    card = save_prepared(folder, films, interactions, splits, examples, source="tiny", settings={"k_core": 1})
    return interactions, splits, examples, card


def test_layout_reads_back(tmp_path, films):
    interactions, splits, examples, card = write(tmp_path / "a", films)
    assert Catalogue.load(tmp_path / "a") == films
    again = Interactions.load(tmp_path / "a", films)
    assert again.user_ids == interactions.user_ids
    for name in ("user", "item", "timestamp", "rating"):
        np.testing.assert_array_equal(getattr(again, name), getattr(interactions, name))
    read = Splits.load(tmp_path / "a", films)
    for name in ("train", "validation", "test"):
        assert [x.tolist() for x in getattr(read, name)] == [x.tolist() for x in getattr(splits, name)]
        assert load_examples(tmp_path / "a", name) == examples[name]
    assert load_card(tmp_path / "a") == card
    assert card["users"] == 2 and card["items"] == 3 and card["interactions"] == 4
    assert card["density"] == pytest.approx(4 / 6) and card["examples"] == {
        "train": 0,
        "validation": 1,
        "test": 1,
    }


def test_hash_follows_content(tmp_path, films):
    first = write(tmp_path / "a", films)[-1]["sha256"]
    assert write(tmp_path / "b", films)[-1]["sha256"] == first
    assert write(tmp_path / "c", films, rating=1)[-1]["sha256"] != first


def test_reading_names_what_is_missing(tmp_path, films):
    with pytest.raises(ValueError, match="instructrec_jax.prepare"):
        Catalogue.load(tmp_path)
    write(tmp_path / "a", films)
    with pytest.raises(ValueError, match="'dev'"):
        load_examples(tmp_path / "a", "dev")
    path = tmp_path / "a" / "instructions" / "test.jsonl"
    path.write_text(json.dumps({"instruction": "x", "output": "1"}) + "\n{broken\n")
    with pytest.raises(ValueError, match="test.jsonl:2: "):
        load_examples(tmp_path / "a", "test")


# ------------------------------------------------------------------ files that others wrote

GOOD = {"id": ["1", "2", "3"], "title": ["Alien", "Heat", "Up"], "text": ["a", "b", "c"], "year": [1979, None, 2009]}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"id": [1, 2, 3]}, "row 1: id .*'1'"),
        ({"id": [1.0, 2.0, 3.0]}, "row 1: id"),
        ({"id": ["1", None, "3"]}, "row 2: id"),
        ({"id": ["1", "2", "2"]}, "'2'"),
        ({"title": ["Alien", "Heat", None]}, "row 3: title"),
        ({"title": ["Alien", " ", "Up"]}, "row 2: .*title"),
        ({"text": ["a", "b", ""]}, "row 3: .*text"),
        ({"text": ["a", "b\0", "c"]}, "row 2: .*text.*NUL"),
        ({"title": [["Alien"], ["Heat"], ["Up"]]}, "row 1: title"),
        ({"year": [{"of": 1}, None, None]}, "row 1: .*year"),
        ({"year": [[1], [2], [3]]}, "row 1: .*year"),
        ({name: [] for name in GOOD}, ""),
        ({"text": None}, "'text'"),
    ],
)
def test_a_damaged_items_parquet_is_named(tmp_path, change, named):
    columns = {name: column for name, column in (GOOD | change).items() if column is not None}
    pq.write_table(pa.table(columns), tmp_path / "items.parquet")
    with pytest.raises(ValueError, match=rf"items\.parquet.*{named}"):
        Catalogue.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"user": [["u"], ["v"]]}, "row 1: user"),
        ({"user": ["u", None]}, "row 2: user"),
        ({"user": ["u", ""]}, "row 2: .*user"),
        ({"user": [1, 2]}, "row 1: user"),
        ({"item": [1.0, 2.0]}, "row 1: item"),
        ({"item": ["1", "9"]}, "row 2: .*'9'"),
        ({"timestamp": [1.0, None]}, "row 2: timestamp"),
        ({"timestamp": ["a", "b"]}, "row 1: timestamp"),
        ({"rating": [float("nan"), 1.0]}, "row 1: rating"),
    ],
)
def test_damaged_interactions_are_named(tmp_path, films, change, named):
    columns = {"user": ["u", "v"], "item": ["1", "2"], "timestamp": [1.0, 2.0]} | change
    pq.write_table(pa.table(columns), tmp_path / "interactions.parquet")
    with pytest.raises(ValueError, match=rf"interactions\.parquet, {named}"):
        Interactions.load(tmp_path, films)


@pytest.mark.parametrize(
    "row",
    [{"user": ["u"], "items": ["1"]}, {"user": "u", "items": "1"}, {"user": "u", "items": [1]}, {"items": ["1"]}]
    + [{"user": "u", "items": ["9"]}, {"user": "v", "items": ["1"]}],
)
def test_a_damaged_line_of_the_splits_is_named(tmp_path, films, row):
    (tmp_path / "splits").mkdir()
    for name in ("train", "validation", "test"):
        (tmp_path / "splits" / f"{name}.jsonl").write_text('{"user": "v", "items": ["2"]}\n' + json.dumps(row) + "\n")
    with pytest.raises(ValueError, match=r"train\.jsonl:2: "):
        Splits.load(tmp_path, films)


def test_a_damaged_example_is_named(tmp_path):
    (tmp_path / "instructions").mkdir()
    (tmp_path / "instructions" / "test.jsonl").write_text('{"instruction": "a"}\n{"instruction": ""}\n')
    with pytest.raises(ValueError, match=r"test\.jsonl:2, field 'instruction'"):
        load_examples(tmp_path, "test")
