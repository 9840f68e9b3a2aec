"""SASRec, P5 and TSV sequences, against the sequences that the tests write themselves."""

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest

from instructrec_jax.preparation.readers import BadLines, read_p5, read_sasrec, read_sequences

TITLES = {"1": "Chess", "2": "Go &amp; Friends", "3": "Sims, The (2000)", "4": "Tetris"}
HISTORIES = {"7": ["3", "1", "2"], "5": ["1", "4"]}


def of(interactions, catalogue):
    """user id → item ids in order"""
    found = {user: [] for user in interactions.user_ids}
    for user, item in zip(interactions.user.tolist(), interactions.item.tolist(), strict=True):
        found[interactions.user_ids[user]].append(catalogue.ids[item])
    return found


def write_titles(path, header=""):
    path.write_text(header + "".join(f"{item}\t{title}\n" for item, title in TITLES.items()), encoding="utf-8")


def write_sasrec(folder):
    (folder / "games.txt").write_text("7 3\n5 1\n7 1\n7 2\n5 4\n")
    write_titles(folder / "items.txt")


def write_p5(folder):
    (folder / "sequential_data.txt").write_text("7 3 1 2\n5 1 4\n")
    (folder / "items.json").write_text(json.dumps(TITLES))


def write_sequences(folder):
    with gzip.open(folder / "sequences.tsv.gz", "wt") as file:
        file.write("user\titems\n7\t3 1 2\n5\t1 4\n")
    write_titles(folder / "items.tsv", "item\ttitle\n")


LAYOUTS = [(read_sasrec, write_sasrec), (read_p5, write_p5), (read_sequences, write_sequences)]


@pytest.mark.parametrize(("read", "write"), LAYOUTS)
def test_every_layout_reads_alike(tmp_path, read, write):
    write(tmp_path)
    items, interactions = read(tmp_path)
    assert items.ids == list(TITLES)
    assert items.titles == ["Chess", "Go & Friends", "The Sims", "Tetris"]
    assert items.texts == ["Chess.", "Go & Friends.", "The Sims (2000).", "Tetris."]
    assert items.facts == {"year": [None, None, 2000, None]}
    assert of(interactions, items) == HISTORIES and interactions.user_ids == ["7", "5"]
    assert interactions.timestamp is None and interactions.rating is None


@pytest.mark.parametrize(("read", "write"), LAYOUTS)
def test_a_file_and_its_titles_may_be_named(tmp_path, read, write):
    write(tmp_path)
    [data] = [p for p in tmp_path.iterdir() if not p.name.startswith("items")]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    data.rename(elsewhere / data.name)
    [titles] = [p for p in tmp_path.iterdir() if p.is_file()]
    with pytest.raises(ValueError, match="--items"):
        read(elsewhere / data.name)
    items, interactions = read(elsewhere / data.name, items=titles)
    assert of(interactions, items) == HISTORIES
    with pytest.raises(ValueError, match="item file"):
        read(elsewhere / data.name, items=tmp_path / "nowhere.tsv")


def test_item_tables_may_have_more_columns(tmp_path):
    write_sequences(tmp_path)
    (tmp_path / "items.tsv").write_text(
        "item_id\tmaker\tname\tgenres\n" + "".join(f"{i}\tM{i}\tN{i}\tA|B\n" for i in TITLES)
    )
    items, _ = read_sequences(tmp_path)
    assert items.titles[0] == "N1" and items.texts[0] == "N1. Genres: A, B."
    assert items.facts == {"maker": ["M1", "M2", "M3", "M4"], "genres": [["A", "B"]] * 4}
    items, _ = read_sequences(tmp_path, title_column="maker", text_columns=["name"])
    assert items.texts[0] == "M1. Name: N1."


@pytest.mark.parametrize("header", ["", "item\ttitle\n", "sku\tName\n"])
@pytest.mark.parametrize("name", ["items.txt", "items.tsv"])
def test_a_header_is_no_item(tmp_path, header, name):
    write_sequences(tmp_path)
    (tmp_path / "items.tsv").unlink()
    write_titles(tmp_path / name, header)
    assert read_sequences(tmp_path)[0].ids == list(TITLES)


def test_p5_with_its_own_metadata(tmp_path):
    """datamaps.json numbers the items, meta.json.gz (Python dicts) names them by asin."""
    (tmp_path / "sequential_data.txt").write_text("1 2 1\n2 1\n")
    (tmp_path / "datamaps.json").write_text(json.dumps({"id2item": {"1": "B01", "2": "B02"}, "user2id": {}}))
    with gzip.open(tmp_path / "meta.json.gz", "wt") as file:
        file.write("{'asin': 'B02', 'title': \"Doll's house\", 'categories': [['Toys', 'Dolls']], 'brand': 'Acme'}\n")
        file.write("{'asin': 'B77', 'salesRank': {'Toys': 3}}\n")  # no title, but nobody asks for it
        file.write('{"asin": "B01", "title": "Kite"}\n')
    items, interactions = read_p5(tmp_path)
    assert items.ids == ["2", "1"] and items.titles == ["Doll's house", "Kite"]
    assert items.texts[0] == "Doll's house. Categories: Toys, Dolls. Brand: Acme."
    assert of(interactions, items) == {"1": ["2", "1"], "2": ["1"]}
    (tmp_path / "datamaps.json").write_text(json.dumps({"item2id": {"B01": 1, "B02": 2}}))
    assert read_p5(tmp_path)[0].ids == ["2", "1"]
    (tmp_path / "datamaps.json").write_text("{}")
    with pytest.raises(ValueError, match="id2item.*item2id"):
        read_p5(tmp_path)


def test_open_p5(tmp_path):
    (tmp_path / "user_sequence.txt").write_text("A1 B1 B2\nA2 B2 B3\n")
    (tmp_path / "item_plain_text.txt").write_text(
        "B1 title: shea butter; brand: na; categories: beauty, skin care; description: soft; price: 3\n"
        "B2 title: lip balm\nB3 Plain name\n"
    )
    items, interactions = read_p5(tmp_path)
    assert items.titles == ["shea butter", "lip balm", "Plain name"]
    assert items.texts[0] == "shea butter. Categories: beauty, skin care."
    assert of(interactions, items) == {"A1": ["B1", "B2"], "A2": ["B2", "B3"]}


@pytest.mark.parametrize(
    ("read", "write", "name", "more", "message"),
    [
        (read_sasrec, write_sasrec, "games.txt", "5 9\n", "games.txt:6: .*'9'"),
        (read_sasrec, write_sasrec, "games.txt", "5 1 99\n", "games.txt:6: .*fields"),
        (read_sasrec, write_sasrec, "games.txt", "  \n", "games.txt:6: .*fields"),
        (read_sasrec, write_sasrec, "items.txt", "5\tHex\tBoard\n", "items.txt:5: .*fields"),
        (read_sasrec, write_sasrec, "items.txt", "4\tHex\n", "items.txt:5: .*'4'"),
        (read_sasrec, write_sasrec, "items.txt", "5\t\n", "items.txt:5: .*'5'"),
        (read_sasrec, write_sasrec, "items.txt", "\tHex\n", "items.txt:5: .*item"),
        (read_sasrec, write_sasrec, "items.txt", "5\tHe\0x\n", "items.txt:5: .*'5'"),
        (read_p5, write_p5, "sequential_data.txt", "6 1 9\n", "sequential_data.txt:3: .*'9'"),
        (read_p5, write_p5, "sequential_data.txt", "7 4\n", "sequential_data.txt:3: .*'7'"),
        (read_p5, write_p5, "sequential_data.txt", "6\n", "sequential_data.txt:3: .*'6'"),
        (read_sequences, write_sequences, "items.tsv", "5\n", "items.tsv:6: .*fields"),
    ],
)
def test_broken_lines(tmp_path, read, write, name, more, message):
    write(tmp_path)
    with open(tmp_path / name, "a") as file:
        file.write(more)
    with pytest.raises(ValueError, match=message):
        read(tmp_path)
    bad = BadLines(skip=True)
    items, interactions = read(tmp_path, bad)
    assert len(bad.skipped) == 1 and len(items) == 4
    histories = of(interactions, items)
    assert {user: histories[user] for user in HISTORIES} == HISTORIES


def test_no_data_names_what_was_looked_for(tmp_path):
    write_titles(tmp_path / "items.tsv")
    with pytest.raises(ValueError, match="sequential_data.txt.*user_sequence.txt"):
        read_p5(tmp_path)
    with pytest.raises(ValueError, match="sequences.tsv"):
        read_sequences(tmp_path)
    with pytest.raises(ValueError, match=r"\*\.txt"):
        read_sasrec(tmp_path)
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("1 1\n")
    with pytest.raises(ValueError, match="a.txt, b.txt"):
        read_sasrec(tmp_path)
    with pytest.raises(ValueError, match="nowhere"):
        read_sequences(tmp_path / "nowhere")


def test_titles_that_are_no_map(tmp_path):
    write_p5(tmp_path)
    for text, message in (("[1]", "items.json"), ("{", "items.json"), ('{"1": 5}', "'1'")):
        (tmp_path / "items.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            read_p5(tmp_path)


def test_real_games():
    folder = Path(os.environ.get("INSTRUCTREC_DATA", "")) / "amazon-games-instructrec"
    if "INSTRUCTREC_DATA" not in os.environ or not folder.is_dir():
        pytest.skip("INSTRUCTREC_DATA/amazon-games-instructrec is not there")
    items, interactions = read_sequences(folder)
    assert (len(interactions.user_ids), len(items), len(interactions)) == (50_546, 16_859, 440_264)
    # the paper's own count, with each sequence cut to 20
    assert np.minimum(np.bincount(interactions.user), 20).sum() == 410_907
    assert not any("&amp;" in title for title in items.titles)
