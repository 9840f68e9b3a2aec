"""Another file that a run is evaluated on or asked about has the columns of its training data."""

import csv
from pathlib import Path

import pytest

from instructrec_jax.data.fields import FieldMapper, FieldsConfig
from instructrec_jax.data.rows import open_rows
from instructrec_jax.data.usual_columns import RecordMapper
from instructrec_jax.files import write_text
from instructrec_jax.runs.config import Config, parse, to_yaml
from instructrec_jax.runs.data import RunData
from instructrec_jax.runs.predictions import Asker, without_target
from instructrec_jax.runs.run import run_settings

OWN = {"instruction": "Is it good? {story}", "output": "verdict"}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    sources = f"[{{path: train.csv, fields: {{instruction: '{OWN['instruction']}', output: verdict}}, task: mood}}]"
    config = parse(Config, ["--task.type", "classification", "--data.train", sources, "--data.test", "old.csv"])
    write_text(tmp_path / "run" / "config.yaml", to_yaml(config))
    return tmp_path / "run"


def table(path: Path, *rows: list[str]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return path


def test_numbers_are_read_from_text_cells_where_the_task_wants_numbers(tmp_path: Path) -> None:
    path = str(table(tmp_path / "stars.csv", ["text", "stars"], ["dull", "1"], ["warm", "4.5"]))
    config = parse(Config, ["--task.type", "regression", "--data.train", path])
    assert [example.output for example in RunData(config).examples("train")] == [1, 4.5]
    tasks = [{"name": "mood", "task": {"type": "classification"}}, {"name": "stars", "task": {"type": "regression"}}]
    sources = [{"path": path, "task": "stars"}, {"path": path, "task": "mood"}]
    args = ["--task.type", "multitask", "--task.tasks", str(tasks), "--data.train", str(sources)]
    outputs = [(e.task, e.output) for e in RunData(parse(Config, args)).examples("train")]
    assert sorted(map(str, outputs)) == ["('mood', '1')", "('mood', '4.5')", "('stars', 1)", "('stars', 4.5)"]


def test_places_of_answers_are_no_input() -> None:
    own = FieldsConfig("question", "context", "answers.text", origin="answers")
    assert FieldMapper(without_target(own))({"question": "a", "context": "b"}).input == "b"


def test_a_plain_path_is_a_source() -> None:
    config = parse(Config, ["--task.type", "classification", "--data.train", "[a.csv, {path: b.csv}]"])
    assert [source.path for source in config.data.train] == ["a.csv", "b.csv"]
    assert parse(Config, ["--task.type", "classification", "--data.test", "a.csv"]).data.test[0].path == "a.csv"


def test_the_runs_own_fields_are_the_default(run: Path, tmp_path: Path) -> None:
    new = table(tmp_path / "new.csv", ["story", "verdict"], ["dull", "bad"])
    [source] = run_settings(run, ["--data.test", str(new)]).data.test
    assert (source.fields, source.task) == (FieldsConfig(**OWN), "mood")
    chosen = f"[{{path: {new}, fields: {{instruction: story, output: verdict}}}}]"
    assert run_settings(run, ["--data.test", chosen]).data.test[0].fields.instruction == "story"
    assert run_settings(run).data.test[0].path == "old.csv"  # a run's own files may be gone


def test_records_with_usual_columns_are_asked(tmp_path: Path) -> None:
    class Task:
        has_answers = True

        def unanswered(self, example: object) -> object:
            return example

    asker = Asker(Task(), None, RecordMapper(FieldsConfig(output=None)))  # type: ignore[arg-type]
    rows = open_rows(str(table(tmp_path / "new.csv", ["text", "label"], ["dull", ""])))
    assert asker.example(rows.row(0), "row 1").instruction == "dull"
    assert asker.example({"instruction": "warm"}, "row 2").instruction == "warm"
    with pytest.raises(ValueError, match="row 3.*instruction"):
        asker.example({"story": "warm"}, "row 3")
