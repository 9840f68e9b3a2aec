"""Requests from records and files, and files of answers."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from instructrec_jax.answering.evidence import Evidence, Part
from instructrec_jax.answering.requests import (
    COLUMNS,
    Answer,
    Recommendation,
    Request,
    check_out,
    read_requests,
    split_titles,
    write_answers,
)
from instructrec_jax.answering.titles import Titles
from instructrec_jax.files import read_jsonl
from instructrec_jax.ranking.catalogue import Catalogue

# ------------------------------------------------------------------ records


def test_one_text_is_one_title_not_its_letters() -> None:
    request = Request(history="Moon", exclude="Alien", where="year>1990")
    assert (request.history, request.exclude, request.where) == (("Moon",), ("Alien",), ("year>1990",))


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({}, Request()),
        ({"user": 7, "id": [1]}, Request(user="7", id=[1])),
        ({"user": "ann", "k": "3"}, Request(user="ann", k=3)),
        ({"k": 3.0}, Request(k=3)),
        ({"history": None, "instruction": "", "where": [], "k": ""}, Request()),
        ({"history": ["a", "b"], "where": "x=1"}, Request(history=("a", "b"), where=("x=1",))),
        ({"prompt": "whole", "exclude": ("a",)}, Request(prompt="whole", exclude=("a",))),
    ],
)
def test_a_request_from_a_record(record: dict[str, Any], expected: Request) -> None:
    assert Request.from_record(record) == expected


@pytest.mark.parametrize(
    ("record", "named"),
    [
        ({"histroy": "a"}, "'histroy'.*\"history\""),
        ({"user": True}, "user"),
        ({"user": 1.5}, "user"),
        ({"instruction": 3}, "instruction"),
        ({"history": [3]}, "history"),
        ({"history": {"a": 1}}, "history"),
        ({"k": True}, "k"),
        ({"k": "many"}, "k"),
        *[({"k": value}, "k") for value in (1.5, float("nan"), float("inf"), "1.5", [3])],
    ],
)
def test_a_record_that_is_no_request_names_the_field(record: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=f"^.*{named}"):
        Request.from_record(record)


# ------------------------------------------------------------------ titles


def test_semicolons_separate_titles_unless_they_are_part_of_one() -> None:
    titles = Titles(Catalogue(["a", "b", "c"], ["Stop; Go", "Moon", "Alien"], ["x", "y", "z"]))
    assert split_titles(titles, ["Moon; Alien"]) == ["Moon", "Alien"]
    assert split_titles(titles, ["Stop; Go", "Moon"]) == ["Stop; Go", "Moon"]
    assert split_titles(titles, [" Moon ; ;Nothing known;"]) == ["Moon", "Nothing known"]
    assert split_titles(titles, ["", " ; "]) == split_titles(titles, []) == []


# ------------------------------------------------------------------ files of requests


def file(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_an_invalid_record_is_an_answer_with_an_error(tmp_path: Path) -> None:
    lines = ['{"id": "a", "user": "ann"}', '{"user": ', '{"instruction": "x"}', '{"id": "d", "k": "many"}']
    a, broken, numbered, bad = read_requests(file(tmp_path / "in.jsonl", *lines))
    assert a == Request(user="ann", id="a") and numbered == Request(instruction="x", id=3)
    assert isinstance(broken, Answer) and broken.id is None and "in.jsonl, line 2" in str(broken.error)
    assert isinstance(bad, Answer) and bad.id == "d" and "line 4: k" in str(bad.error)


@pytest.mark.parametrize("ending", ["csv", "tsv"])
def test_cells_of_tables(ending: str, tmp_path: Path) -> None:
    comma = {"csv": ",", "tsv": "\t"}[ending]
    rows = [["user", "history", "where", "k"], ["ann", "", "genre=war; year>1991", "2"], ["", "Moon; Alien", "", ""]]
    first, second = read_requests(file(tmp_path / f"in.{ending}", *[comma.join(row) for row in rows]))
    assert first == Request(user="ann", where=("genre=war", "year>1991"), k=2, id=1)
    assert second == Request(history=("Moon; Alien",), id=2)


@pytest.mark.parametrize(
    ("lines", "named"),
    [
        (["id,title", "1,Moon"], "in.csv.*'title'"),
        (["id,usr", "1,ann"], 'in.csv.*"user"'),
        (["id,k", "1,2"], "in.csv.*user, history, instruction, prompt"),
    ],
)
def test_a_table_of_other_columns_is_refused_as_a_whole(lines: list[str], named: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=named):
        read_requests(file(tmp_path / "in.csv", *lines))


# ------------------------------------------------------------------ files of answers

FOUND = [
    Recommendation("i1", "Moon (2009)", 1.5, 1, [Evidence(Part("word", "good"), 0.5)]),
    Recommendation("i2", '太空, "🚀"', -0.25, 2),
]
ANSWERS = [
    Answer("a", "ann", "a wish", ["Alien"], FOUND, ["one", "two"]),
    Answer({"x": [1]}, None, "no luck", notes=["nothing left"]),
    Answer(None, None, error="line 2: no JSON"),
]


def test_answers_as_json_lines(tmp_path: Path) -> None:
    write_answers(tmp_path / "out.jsonl", ANSWERS)
    first, second, third = read_jsonl(tmp_path / "out.jsonl")
    assert first == json.loads(json.dumps(ANSWERS[0].to_record()))
    assert list(first) == ["id", "user", "prompt", "history", "recommendations", "notes"]
    evidence = [{"kind": "word", "text": "good", "contribution": 0.5}]
    assert first["recommendations"][0] == {  # type: ignore[index]
        "rank": 1, "item": "i1", "title": "Moon (2009)", "score": 1.5, "evidence": evidence,
    }  # fmt: skip
    assert (
        "user" not in second and second["recommendations"] == [] and third == {"id": None, "error": "line 2: no JSON"}
    )


def test_answers_as_a_table_have_a_line_per_item_and_one_without_items(tmp_path: Path) -> None:
    write_answers(tmp_path / "out.csv", ANSWERS)
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert list(rows[0]) == list(COLUMNS) and len(rows) == 4
    assert [(row["id"], row["rank"], row["title"], row["score"]) for row in rows] == [
        ("a", "1", "Moon (2009)", "1.5"),
        ("a", "2", '太空, "🚀"', "-0.25"),
        ('{"x": [1]}', "", "", ""),
        ("null", "", "", ""),
    ]
    assert rows[0]["notes"] == "one two" and "good" in rows[0]["evidence"] and rows[3]["error"] == "line 2: no JSON"


def test_where_answers_may_be_written(tmp_path: Path) -> None:
    for name in ("out.jsonl", "out.csv"):
        check_out(tmp_path / name)
        (tmp_path / name).touch()
        with pytest.raises(ValueError, match=f"{name}.*--out"):
            check_out(tmp_path / name)
    for name in ("out.txt", "out", "out.jsonl.gz"):
        with pytest.raises(ValueError, match=f"--out .*{name}.*.jsonl"):
            check_out(tmp_path / name)
