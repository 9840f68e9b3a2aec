"""Columns of usual names are found without `fields`, and a missing column is one line."""

import csv
import json
import logging

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from instructrec_jax.data.fields import FieldMapper, FieldsConfig
from instructrec_jax.data.source_config import SourceConfig
from instructrec_jax.data.sources import open_sources
from instructrec_jax.data.usual_columns import usual_fields

TALK = [{"from": "human", "value": "Hi."}, {"from": "gpt", "value": "Hello."}]
SQUAD = {"text": ["Po"], "answer_start": [4]}


def table(path, header, *rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return str(path)


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ({"text": "a", "label": "x"}, {"instruction": "text", "output": "label"}),
        ({"Review": "a", "Sentiment": "x"}, {"instruction": "Review", "output": "Sentiment"}),
        ({"id": 1, "content": "a", "category": "x"}, {"instruction": "content", "output": "category"}),
        ({"sentence": "a", "score": 0.5}, {"instruction": "sentence", "output": "score"}),
        ({"prompt": "a", "completion": "b"}, {"instruction": "prompt", "output": "completion"}),
        ({"query": "a", "response": "b"}, {"instruction": "query", "output": "response"}),
        ({"question": "a", "answer": "b"}, {"instruction": "question", "output": "answer"}),
        (
            {"question": "a", "context": "b", "answer": "c"},
            {"instruction": "question", "input": "context", "output": "answer"},
        ),
        (
            {"question": "a", "context": "The Po", "answers": SQUAD},
            {"instruction": "question", "input": "context", "output": "answers.text", "origin": "answers"},
        ),
        (
            {"premise": "a", "hypothesis": "b", "label": 0},
            {"instruction": "premise", "input": "hypothesis", "output": "label"},
        ),
        ({"tokens": ["a", "b"], "ner_tags": [0, 1]}, {"input": "tokens", "output": "ner_tags"}),
        ({"conversations": TALK}, {"messages": "conversations"}),
        # the user's own settings and default columns stay
        ({"instruction": "a", "label": "x"}, {"output": "label"}),
        ({"instruction": "a", "output": "b", "text": "c", "label": "d"}, {}),
        ({"messages": TALK, "text": "c"}, {}),
        # several columns fit: none is taken
        ({"text": "a", "label": "x", "category": "y"}, {"instruction": "text"}),
        ({"text": "a", "review": "b", "verdict": "y"}, {}),
        ({"tokens": ["a"], "ner_tags": [0], "pos_tags": [1]}, {"input": "tokens"}),
    ],
)
def test_usual_columns(row, found):
    assert usual_fields(FieldsConfig(), list(row), row) == FieldsConfig(**found)


def test_settings_of_the_user_are_kept():
    row = {"text": "a", "label": "x", "story": "b"}
    assert usual_fields(FieldsConfig(instruction="story"), list(row), row) == FieldsConfig("story", output="label")
    assert usual_fields(FieldsConfig(output=None), list(row), row).output is None


@pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet", "jsonl", "json"])
def test_every_kind_of_file(tmp_path, suffix, caplog):
    path = tmp_path / f"reviews.{suffix}"
    rows = [{"text": "dull film", "label": "bad", "more": "1"}, {"text": "warm film", "label": "good", "more": "2"}]
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif suffix in ("csv", "tsv"):
        with path.open("w", newline="") as file:
            csv.writer(file, delimiter="\t" if suffix == "tsv" else ",").writerows(
                [list(rows[0]), *map(dict.values, rows)]
            )
    else:
        text = json.dumps(rows) if suffix == "json" else "\n".join(map(json.dumps, rows))
        path.write_text(text)
    with caplog.at_level(logging.WARNING):
        mixture = open_sources([SourceConfig(path=str(path))])
    assert [(mixture[i].instruction, mixture[i].output) for i in range(2)] == [
        ("dull film", "bad"),
        ("warm film", "good"),
    ]
    said = [record.getMessage() for record in caplog.records]
    assert sum("instruction: text, output: label" in line for line in said) == 1


def test_data_sets(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
    )
    data = datasets.Dataset.from_dict({"text": ["dull", "warm"], "label": [0, 1]}, features=features)
    data.save_to_disk(str(tmp_path / "data"))
    mixture = open_sources([SourceConfig(path=str(tmp_path / "data"), kind="datasets")])
    assert [(mixture[i].instruction, mixture[i].output) for i in range(2)] == [("dull", "bad"), ("warm", "good")]


def test_a_missing_column_is_one_line_with_the_setting(tmp_path):
    rows = [[f"film {i}", "x"] for i in range(50)]
    for skip in ("error", "skip"):
        with pytest.raises(ValueError, match="fields.instruction") as error:
            open_sources(
                [SourceConfig(path=table(tmp_path / "a.csv", ["story", "verdict"], *rows))], on_bad_example=skip
            )
        assert "{instruction: story, output: verdict}" in str(error.value)
        assert str(error.value).count("story, verdict") == 1
        assert len(str(error.value).splitlines()) == (1 if skip == "error" else 2)


def test_an_input_without_instruction():
    mapper = FieldMapper(FieldsConfig())
    example = mapper({"input": ["send", "it"], "output": ["O", "O"]})
    assert (example.instruction, example.input, example.output) == ("", "send it", ("O", "O"))
    assert FieldMapper(FieldsConfig(instruction=None))({"input": "a", "output": "b"}).input == "a"
    for record in ({"output": "b"}, {"input": "", "output": "b"}, {"instruction": "", "input": "a", "output": "b"}):
        with pytest.raises(ValueError, match="instruction"):
            mapper(record)
    with pytest.raises(ValueError, match="instruction"):
        FieldMapper(FieldsConfig(instruction="ask"))({"ask": None, "input": "a", "output": "b"})


def test_numbers_of_text_cells(tmp_path):
    path = table(tmp_path / "a.csv", ["text", "score"], ["dull", "1"], ["warm", " 4.5 "], ["fine", "3e0"])
    mixture = open_sources([SourceConfig(path=path, task="stars")], numbers=lambda task: task == "stars")
    assert [mixture[i].output for i in range(3)] == [1, 4.5, 3.0]
    mixture = open_sources([SourceConfig(path=path, task="other")], numbers=lambda task: task == "stars")
    assert [mixture[i].output for i in range(3)] == ["1", " 4.5 ", "3e0"]
    bad = table(tmp_path / "b.csv", ["text", "score"], ["dull", "1"], ["warm", "five"])
    with pytest.raises(ValueError, match="b.csv, line 3.*output"):
        open_sources([SourceConfig(path=bad)], numbers=lambda task: True)
