"""`evaluate --by`: from a plain column of the test file to table, files and report."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_runs import language_run, tiny_run

from instructrec_jax import evaluate
from instructrec_jax.answering.comparison import evaluate as evaluate_run
from instructrec_jax.answering.grouping import columns_of, keep_groups, with_columns
from instructrec_jax.files import read_json, read_jsonl, write_json
from instructrec_jax.runs.config import Config
from instructrec_jax.runs.run import Run
from instructrec_jax.train import train

COLUMNS = ("gender", "age", "id_card")


def with_fields(path: Path, times: int = 4) -> Path:
    """The records of a file several times, with columns that no task reads."""
    rows = read_jsonl(path) * times
    made = [
        row | {"gender": ["女", "<b>|m"][n % 2], "age": 20 + n, "id_card": f"c{n}", "id": f"t{n}"}
        for n, row in enumerate(rows)
    ]
    path.write_text("\n".join(json.dumps(row) for row in made), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def run(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    folder = tmp_path_factory.mktemp("by")
    config = tiny_run("classification", checkpoint, folder)
    with_fields(folder / "test.jsonl")
    train(config)
    return config


def test_a_plain_column_becomes_groups(run: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate.main([run.run_dir, "--out", str(tmp_path), "--no_baselines", "--by", "gender", "age"])
    said = capsys.readouterr().out
    assert "By gender: macro_f1 of tuned, and the gap to all other cases" in said and "By age: macro_f1" in said
    evaluation = read_json(tmp_path / "evaluation.json")
    predictions = read_jsonl(tmp_path / "predictions.jsonl")
    right = np.array([row["reference"] == row["prediction"] for row in predictions])
    gender = np.array([row["gender"] for row in read_jsonl(run.data.test[0].path)])
    accuracy = [part for part in evaluation["groups"] if part["metric"] == "accuracy" and part["field"] == "gender"]
    assert {part["value"] for part in accuracy} == {"女", "<b>|m"}
    for part in accuracy:
        own = gender == part["value"]
        assert part["cases"] == own.sum() and part["mean"] == pytest.approx(right[own].mean(), abs=1e-6)
        assert part["gap"] == pytest.approx(right[own].mean() - right[~own].mean(), abs=1e-6)
    kept = read_json(Path(run.run_dir) / "groups.json")
    assert kept == {"split": "test", "sources": [run.data.test[0].path], "groups": evaluation["groups"]}
    page = (Path(run.run_dir) / "report.html").read_text(encoding="utf-8")
    assert "<h2>Groups</h2>" in page and "&lt;b&gt;|m" in page and "<b>|m" not in page


def test_groups_leave_the_table_as_it_is(run: Config, tmp_path: Path) -> None:
    """Also where the column's name would make its values owners of the cases."""
    evaluate.main([run.run_dir, "--out", str(tmp_path / "plain"), "--no_baselines"])
    evaluate.main([run.run_dir, "--out", str(tmp_path / "by"), "--no_baselines", "--by", "gender"])
    rows = [read_json(tmp_path / name / "evaluation.json")["rows"] for name in ("plain", "by")]
    assert rows[0] == rows[1]


def test_fields_that_cannot_be_groups_are_named_before_anything_runs(run: Config, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for field, message in (("gendr", 'Did you mean "gender".*They have'), ("id_card", "none of its 48 values")):
        with pytest.raises(ValueError, match=message):
            evaluate_run(run.run_dir, out, by=[field])
    assert not out.exists()


def test_the_loss_of_a_group_is_that_of_its_own_tokens(language_models: dict[str, Path], tmp_path: Path) -> None:
    config = language_run(language_models["llama"], tmp_path)
    with_fields(tmp_path / "test.jsonl")
    train(config)
    evaluate.main([config.run_dir, "--out", str(tmp_path / "out"), "--no_baselines", "--by", "gender"])
    rows = read_jsonl(tmp_path / "out" / "predictions.jsonl")
    tokens = np.array([row["tokens"] for row in rows])
    totals = tokens * -np.array([row["mean_log_probability"] for row in rows])
    gender = np.array([row["gender"] for row in read_jsonl(tmp_path / "test.jsonl")])
    groups = read_json(tmp_path / "out" / "evaluation.json")["groups"]
    for part in (part for part in groups if part["metric"] == "loss"):
        own = gender == part["value"]
        assert part["mean"] == pytest.approx(totals[own].sum() / tokens[own].sum(), rel=1e-5)


def test_columns_and_kept_groups(run: Config, tmp_path: Path) -> None:
    opened = Run.open(run.run_dir)
    assert with_columns(opened, "test", []) is opened
    kept = with_columns(opened, "test", ["gender"])
    assert [source.fields.keep for source in kept.config.data.test] == [["gender"]]
    assert kept.config.data.train == opened.config.data.train
    assert set(COLUMNS) < set(columns_of(opened, "test"))
    write_json(tmp_path / "evaluation.json", {"split": "test", "groups": []})
    folder = replace(opened, path=tmp_path, trained=False)
    assert "<h2>Groups</h2>" not in keep_groups(folder, "test", tmp_path).read_text(encoding="utf-8")
    assert (tmp_path / "groups.json").exists()
