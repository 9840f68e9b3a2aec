"""Every reader of files that people write, on mutated files: each is read right, or refused by an error that names it.

The mutations are drawn by a fixed seed. Where a mutated file is taken, its content is compared with what the standard
library, or another reader of the same data, makes of it.
"""

import copy
import csv
import io
import json
import os
import random
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from instructrec_jax.answering.desk import read_actions
from instructrec_jax.answering.new_items import with_new_items
from instructrec_jax.answering.records import read_records
from instructrec_jax.answering.requests import Request, read_requests
from instructrec_jax.data.example import BadExample
from instructrec_jax.data.fields import FieldsConfig
from instructrec_jax.data.rows import open_rows
from instructrec_jax.data.source_config import SourceConfig
from instructrec_jax.data.sources import open_sources
from instructrec_jax.parsing import read_yaml
from instructrec_jax.preparation import readers
from instructrec_jax.preparation.readers import BadLines
from instructrec_jax.preparation.wording import wordings
from instructrec_jax.preparation.wording.tags import read_tags
from instructrec_jax.ranking.candidates import _read_own
from instructrec_jax.ranking.catalogue import Catalogue, Interactions, Splits, load_examples
from instructrec_jax.runs.config import Config, parse, to_yaml

MUTATIONS = 500
PIECES = [
    *(
        b"\x00",
        b"\xff",
        b"\xef\xbb\xbf",
        b"\r\n",
        b"\n",
        b"\n\n",
        b'"',
        b"'",
        b"\t",
        b",",
        b"::",
        b"|",
        b"{",
        b"}",
        b"[",
    ),
    *(b"]", b":", b": ", b"- ", b"&a ", b"*a", b"<<: ", b"!!int ", b"# ", b"null", b"NaN", b"-1", b"1e999", b"9" * 400),
    *(
        b"\\ud800",
        b"yes",
        b"no",
        b"true",
        b"[" * 2000,
        b"{a: " * 300,
        "电\u2028".encode(),
        b"\xe7\x94",
        b" ",
        b"0x",
        b"~",
    ),
]
VALUES: list[Any] = [
    None,
    "",
    " ",
    "x",
    "a\x00b",
    0,
    -1,
    3.0,
    1.5,
    10**30,
    True,
    [],
    ["x"],
    [None],
    [["x"]],
    {},
    {"x": 1},
]


def mutated(data: bytes, draw: random.Random) -> bytes:
    """The same bytes after one to three accidents."""
    for _ in range(draw.choice((1, 1, 2, 3))):
        first, last = sorted(draw.randrange(len(data) + 1) for _ in range(2))
        last = min(last, first + 40)
        kind = draw.randrange(6)
        if kind == 0 and data:
            place = draw.randrange(len(data))
            data = data[:place] + bytes([data[place] ^ 1 << draw.randrange(8)]) + data[place + 1 :]
        elif kind == 1:
            data = data[:first] + data[last:]
        elif kind == 2:
            data = data[:last] + data[first:last] + data[last:]
        elif kind == 3:
            data = data[:first]
        elif kind == 4:
            lines = data.splitlines(keepends=True)
            draw.shuffle(lines)
            data = b"".join(lines)
        else:
            data = data[:first] + draw.choice(PIECES) + data[first if draw.random() < 0.5 else last :]
    return data


def altered(tree: Any, draw: random.Random) -> Any:
    """The same tree of mappings and lists with one value replaced, removed or added."""
    tree = copy.deepcopy(tree)
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], dict | list):
                walk(node[key])

    walk(tree)
    node, key = draw.choice(places)
    if draw.random() < 0.2:
        del node[key]
    elif isinstance(node, dict) and draw.random() < 0.2:
        node[draw.choice(["x", "", "title ", 3])] = node.pop(key)
    else:
        node[key] = draw.choice(VALUES)
    return tree


# ------------------------------------------------------------------ what is read, and what it should be


@dataclass(frozen=True)
class Door:
    """A reader of one file of a folder.

    Attributes:
      files: name -> content of all files of the folder; the first is the one that is mutated.
      read: of the folder.
      right: whether the content that was read is what the file's bytes say.
    """

    files: dict[str, bytes]
    read: Callable[[Path], Any]
    right: Callable[[bytes, Any], bool]


def lines_of(records: list[Any]) -> bytes:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()


def json_by_line(data: bytes) -> list[Any]:
    text = data.removeprefix(b"\xef\xbb\xbf").decode()
    return [json.loads(line) for line in text.split("\n") if line.strip()]


def rows(name: str) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        """All rows; a bad one is raised with its place, as a source does."""
        opened, found = open_rows(str(folder / name)), []
        for number in range(len(opened)):
            try:
                found.append(opened.row(number))
            except BadExample as error:
                raise BadExample(error.field, error.reason, error.detail, opened.where(number)) from None
        return found

    return read


def by_csv(data: bytes, found: Any) -> bool:
    text = data.removeprefix(b"\xef\xbb\xbf").decode()
    header, *cells = [record for record in csv.reader(io.StringIO(text, newline=""), strict=True)]
    while cells and not "".join(cells[-1]).strip() and len(found) < len(cells):
        cells.pop()
    return found == [dict(zip(header, record, strict=True)) for record in cells]


def by_tabs(data: bytes, found: Any) -> bool:
    lines = data.removeprefix(b"\xef\xbb\xbf").decode().rstrip().split("\n")
    return len(found) == len(lines) - 1 and [tuple(row.values()) for row in found] == [
        tuple(line.rstrip("\r").split("\t")) if n < len(found) - 1 else tuple(row.values())
        for n, (line, row) in enumerate(zip(lines[1:], found, strict=True))
    ]


RECORDS = [
    {"instruction": f"Recommend film {n}", "input": "a, b", "output": "good", "id": n, "history": ["1", "2"]}
    for n in range(4)
]
CELLS = [["text", "label"], ["one, two", "a"], ['"quoted"', "b"], ["電影", "c"], ["two\nlines", "d"]]


def as_csv(cells: list[list[str]]) -> bytes:
    stream = io.StringIO(newline="")
    csv.writer(stream).writerows(cells)
    return stream.getvalue().encode()


def as_parquet(columns: Any) -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.table(columns), stream, compression="none")
    return stream.getvalue()


def source(folder: Path) -> list[Any]:
    fields = FieldsConfig(label_names={})
    opened: Any = open_sources([SourceConfig(path=str(folder / "data.jsonl"), fields=fields)])
    return [opened[n] for n in range(len(opened))]


def by_records(data: bytes, found: Any) -> bool:
    records = json_by_line(data)
    return [x.instruction for x in found] == [r.get("instruction") or "" for r in records] and len(found) > 0


ITEMS = {"id": ["1", "2", "3"], "title": ["Alien", "Heat", "Up"], "text": ["Alien.", "Heat.", "Up."]}
FACTS = {"year": [1979, None, 2009], "genres": [["Horror"], [], ["Family", "Fun"]], "director": ["Scott", None, "D"]}
CATALOGUE = Catalogue(*ITEMS.values(), FACTS)  # type: ignore[arg-type]
SPLIT = lines_of([{"user": "u1", "items": ["1", "2"]}, {"user": "u2", "items": ["3"]}])
REQUESTS = [{"id": "r1", "history": ["Alien"], "k": 3}, {"user": "u1", "where": ["year>1980"], "instruction": "fun"}]
NEW = [{"title": "Moon (2009)", "genres": ["Drama"]}, {"id": "m2", "title": "Sun", "year": 2007, "director": "B"}]
ACTIONS = {
    "hand_over": {"action": "human", "reply": "A person will answer."},
    "intents": {"pay": {"action": "pay", "reply": "Order {order}.", "requires": {"order": "Which order?"}}},
    "slots": {"order": r"\b(\d{4})\b"},
}
SETTINGS = {
    "steps": 3,
    "task": {"type": "classification", "labels": ["yes", "no"]},
    "data": {"train": [{"path": "a.jsonl", "weight": 1.5, "fields": {"label_names": {0: "no", 1: "yes"}}}]},
    "optimizer": {"learning_rate": 1e-4, "decay_exclude": ["bias$"]},
    "lora": {"rank": 2, "targets": ["query"]},
}
TEMPLATE = {
    "nouns": {
        "song": {
            "en": {
                "a_noun": "a song",
                "noun": "song",
                "nouns": "songs",
                "do": "hear",
                "did": "heard",
                "doing": "hearing",
            },
            "zh": {"noun": "歌", "measure": "首", "do": "听", "genre": "类", "open": "《", "close": "》"},
        }
    },
    "cells": [
        {
            "form": "matching",
            "preference": "implicit",
            "intention": "none",
            "templates": [{"name": "own", "en": "I {did} {history}; which {noun}?", "zh": "{do}了{history}之后？"}],
        }
    ],
    "stop_words": "the a",
}
MOVIES = 'movieId,title,genres\n1,Amélie (2001),Comedy|Romance\n7,"Matrix, The (1999)",Action\n'.encode()
RATINGS = b"userId,movieId,rating,timestamp\n10,7,4.5,1000000000\n10,1,3.0,1000000100\n3,1,5.0,1000000200\n"
INTER = b"user_id:token\tartist_id:token\tdate:float\nu1\tB1\t1.3e9\nu1\tB2\t1300000100\n"
ARTISTS = b"artist_id:token\tname:token\ttags:token_seq\nB1\tOne\tfast loud\nB2\tTwo\t\n"
REVIEWS = [{"user_id": "u", "parent_asin": a, "rating": 5.0, "timestamp": 1600000000000} for a in ("A", "B")]
META = [{"parent_asin": a, "title": f"Thing {a}", "categories": ["Toys"], "price": "$3.50"} for a in ("A", "B")]
TAGS = b'userId,movieId,tag,timestamp\n2,60,"dark, funny",1\n7,61,slow,2\n'


def sound(_: bytes, found: Any) -> bool:
    """Of a catalogue with interactions: texts without damage, numbers in range."""
    catalogue, interactions = found
    texts = [*catalogue.ids, *catalogue.titles, *catalogue.texts, *interactions.user_ids, *map(str, catalogue.facts)]
    whole = all(text.strip() and "\x00" not in text for text in texts)
    finite = interactions.timestamp is None or bool(np.isfinite(interactions.timestamp).all())
    return whole and finite and bool((interactions.item < len(catalogue)).all()) and len(interactions) > 0


def always(_: bytes, found: Any) -> bool:
    return found is not None


def prepared(reader: Any, **settings: Any) -> Callable[[Path], Any]:
    return lambda folder: reader(folder, BadLines(), **settings)


def config_of(folder: Path) -> Any:
    return parse(Config, ["--config_path", str(folder / "a.yaml")], default=None)


def same_config(_: bytes, found: Any) -> bool:
    Path("again.yaml").write_text(to_yaml(found), encoding="utf-8")
    return bool(parse(Config, ["--config_path", "again.yaml"], default=None) == found)


def dump(tree: Any) -> bytes:
    return yaml.safe_dump(tree, allow_unicode=True).encode()


DOORS: dict[str, Door] = {
    "jsonl": Door({"a.jsonl": lines_of(RECORDS)}, rows("a.jsonl"), lambda data, found: found == json_by_line(data)),
    "json": Door(
        {"a.json": json.dumps(RECORDS).encode()},
        rows("a.json"),
        lambda data, found: found == json.loads(data.decode("utf-8-sig")),
    ),
    "csv": Door({"a.csv": as_csv(CELLS)}, rows("a.csv"), by_csv),
    "tsv": Door({"a.tsv": b'text\tlabel\n"Go\tpos\nthe "cat"\tneg\nlast\tx\n'}, rows("a.tsv"), by_tabs),
    "parquet": Door(
        {"a.parquet": as_parquet({"text": ["a", "b", None], "n": [1, None, 3]})},
        rows("a.parquet"),
        lambda data, found: found == pq.read_table(io.BytesIO(data)).to_pylist(),
    ),
    "source": Door({"data.jsonl": lines_of(RECORDS)}, source, by_records),
    "records": Door(
        {"a.jsonl": lines_of(RECORDS)},
        lambda folder: list(read_records(str(folder / "a.jsonl"))),
        lambda _, found: all(isinstance(record, dict | BadExample) for _, record in found),
    ),
    "items": Door({"items.parquet": as_parquet(ITEMS | FACTS)}, Catalogue.load, lambda _, found: len(found) > 0),
    "interactions": Door(
        {"interactions.parquet": as_parquet({"user": ["u", "v"], "item": ["1", "3"], "timestamp": [1.0, 2.0]})},
        lambda folder: Interactions.load(folder, CATALOGUE),
        lambda _, found: bool((found.item < 3).all()) and all(user.strip() for user in found.user_ids),
    ),
    "splits": Door(
        {"splits/test.jsonl": SPLIT, "splits/train.jsonl": SPLIT, "splits/validation.jsonl": SPLIT},
        lambda folder: Splits.load(folder, CATALOGUE),
        lambda data, found: all(
            [CATALOGUE.ids[item] for item in found.test[found.user_ids.index(row["user"])]] == row["items"]
            for row in json_by_line(data)
        ),
    ),
    "instructions": Door(
        {"instructions/test.jsonl": lines_of([{**record, "id": str(record["id"])} for record in RECORDS])},
        lambda folder: load_examples(folder, "test"),
        by_records,
    ),
    "candidates": Door(
        {"own.jsonl": lines_of([{"user": "u1", "candidates": ["1", 2]}, {"user": 7, "candidates": ["3"]}])},
        lambda folder: _read_own(folder / "own.jsonl", CATALOGUE),
        lambda data, found: all(
            [CATALOGUE.ids[item] for item in found[str(row["user"])]] == [str(i) for i in row["candidates"]]
            for row in json_by_line(data)
        ),
    ),
    "candidate lines": Door(
        {"own.tsv": b"u1\t1 2\nu2\t3\n"}, lambda folder: _read_own(folder / "own.tsv", CATALOGUE), always
    ),
    "requests": Door(
        {"ask.jsonl": lines_of(REQUESTS)},
        lambda folder: read_requests(folder / "ask.jsonl"),
        lambda _, found: all(isinstance(one, Request) or "ask.jsonl" in (one.error or "") for one in found),
    ),
    "new items": Door(
        {"new.jsonl": lines_of(NEW)},
        lambda folder: with_new_items(CATALOGUE, folder / "new.jsonl"),
        lambda data, found: len(found) == 3 + len(json_by_line(data)) and all(found.titles),
    ),
    "yaml": Door({"a.yaml": dump(SETTINGS)}, lambda folder: [read_yaml(folder / "a.yaml")], always),
    "settings": Door({"a.yaml": dump(SETTINGS)}, config_of, same_config),
    "actions": Door(
        {"act.yaml": dump(ACTIONS)},
        lambda folder: read_actions(folder / "act.yaml", ["pay", "stop"]),
        lambda _, found: bool(found.hand_over.name.strip()),
    ),
    "templates": Door(
        {"own.yaml": dump(TEMPLATE)},
        lambda folder: wordings.load_wordings(folder / "own.yaml"),
        lambda _, found: all(isinstance(t.texts[language], str) for t in found.templates for language in ("en", "zh")),
    ),
    "movielens": Door({"movies.csv": MOVIES, "ratings.csv": RATINGS}, prepared(readers.read_movielens), sound),
    "ratings": Door({"ratings.csv": RATINGS, "movies.csv": MOVIES}, prepared(readers.read_movielens), sound),
    "recbole": Door({"a.inter": INTER, "a.item": ARTISTS}, prepared(readers.read_recbole), sound),
    "recbole items": Door({"a.item": ARTISTS, "a.inter": INTER}, prepared(readers.read_recbole), sound),
    "amazon": Door(
        {"Toys.jsonl": lines_of(REVIEWS), "meta_Toys.jsonl": lines_of(META)}, prepared(readers.read_amazon), sound
    ),
    "amazon items": Door(
        {"meta_Toys.jsonl": lines_of(META), "Toys.jsonl": lines_of(REVIEWS)}, prepared(readers.read_amazon), sound
    ),
    "sequences": Door(
        {"sequences.tsv": b"u1\t1 2\nu2\t2\n", "items.tsv": b"1\tOne\n2\tTwo\n"},
        prepared(readers.read_sequences),
        sound,
    ),
    "table": Door(
        {
            "items.parquet": as_parquet({"id": ["1", "2"], "title": ["One", "Two"], "price": [1.5, 2.0]}),
            "interactions.csv": b"user,item,time\nu,1,1.6e9\nv,2,1600000001\n",
        },
        prepared(readers.read_table),
        sound,
    ),
    "titles": Door(
        {"items.json": b'{"1": "One", "2": "Two"}', "sequences.tsv": b"u1\t1 2\nu2\t2\n"},
        prepared(readers.read_sequences),
        sound,
    ),
    "tags": Door({"tags.csv": TAGS}, lambda folder: read_tags(folder / "tags.csv"), always),
}


def variants(name: str, door: Door) -> Iterator[bytes]:
    """Mutated contents of the door's first file: of its bytes, and where it holds a tree, of that."""
    draw = random.Random(name)
    file, data = next(iter(door.files.items()))
    for number in range(MUTATIONS):
        if number % 2 and file.endswith(".jsonl"):
            yield lines_of(altered(json_by_line(data), draw))
        elif number % 2 and file.endswith(".json"):
            yield json.dumps(altered(json.loads(data), draw)).encode()
        elif number % 2 and file.endswith(".yaml"):
            yield dump(altered(yaml.safe_load(data), draw))
        elif number % 2 and file.endswith(".parquet"):
            try:
                yield as_parquet(altered(pq.read_table(io.BytesIO(data)).to_pydict(), draw))
            except (pa.ArrowException, TypeError, ValueError, AttributeError, OverflowError):
                yield mutated(data, draw)  # such a table cannot be written
        else:
            yield mutated(data, draw)


@pytest.fixture
def in_memory(tmp_path: Path) -> Iterator[Path]:
    """A folder to write thousands of small files to: where the system has one, in memory."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else tmp_path) as folder:
        yield Path(folder)


@pytest.mark.parametrize("name", DOORS)
def test_each_file_is_read_right_or_refused_by_name(
    name: str, in_memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(in_memory)
    (in_memory / "none").mkdir()
    monkeypatch.setattr(wordings, "FOLDER", in_memory / "none")
    door, folder = DOORS[name], in_memory / "given"
    for file, data in door.files.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(data)
    file, whole = next(iter(door.files.items()))
    assert door.right(whole, door.read(folder))
    taken = 0
    for data in variants(name, door):
        (folder / file).write_bytes(data)
        try:
            found = door.read(folder)
        except (ValueError, OSError) as error:
            assert str(folder) in str(error), (data, error)
        else:
            assert door.right(data, found), (data, found)
            taken += 1
    assert taken < MUTATIONS
