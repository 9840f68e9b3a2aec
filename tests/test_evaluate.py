"""What the verb evaluate prints is what the run said, and what its predictions say when they are counted by hand."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import write_settings

from instructrec_jax import evaluate
from instructrec_jax.config import Config
from instructrec_jax.files import read_json, read_jsonl


def numbers(folder: str | Path, name: str) -> dict[str, float]:
    return next(row["values"] for row in read_json(Path(folder) / "evaluation.json")["rows"] if row["name"] == name)


def test_a_run_is_reproduced(finished: Config, tmp_path: Path) -> None:
    evaluate.main([finished.run_dir, "--out", str(tmp_path)])
    assert numbers(tmp_path, "tuned") == numbers(finished.run_dir, "after tuning")
    for name in ("most frequent label", "TF-IDF + logistic regression"):
        assert numbers(tmp_path, name) == numbers(finished.run_dir, name)


def test_predictions_add_up_to_the_metrics(finished: Config) -> None:
    predictions = read_jsonl(Path(finished.run_dir) / "predictions.jsonl")
    assert [p["id"] for p in predictions] == [f"test-{number}" for number in range(12)]
    references = {row["id"]: row["output"] for row in read_jsonl(finished.data.test[0].path)}
    assert all(p["reference"] == references[p["id"]] for p in predictions)
    said = numbers(finished.run_dir, "after tuning")
    assert said["accuracy"] == pytest.approx(sum(p["reference"] == p["prediction"] for p in predictions) / 12)
    f1 = []
    for label in finished.task.labels:  # type: ignore[attr-defined]
        hits = sum(p["reference"] == p["prediction"] == label for p in predictions)
        either = sum((p["reference"] == label) + (p["prediction"] == label) for p in predictions)
        f1.append(2 * hits / either if either else 0.0)
    assert said["macro_f1"] == pytest.approx(sum(f1) / len(f1))


def test_a_folder_gives_the_numbers_before_tuning(finished: Config, checkpoint: Path, tmp_path: Path) -> None:
    settings = write_settings(finished, tmp_path / "settings.yaml")
    out = tmp_path / "out"
    evaluate.main([str(checkpoint), "--config_path", str(settings), "--out", str(out), "--no_baselines"])
    assert numbers(out, "untuned") == numbers(finished.run_dir, "before tuning")
    assert len(read_json(out / "evaluation.json")["rows"]) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data.test", "[]"], "data.test lists no sources.*--split validation"),
        (["--step", "5"], r"no checkpoint of step 5; it has \[.*6\]"),
        (["--data.test", "[{path: nowhere.jsonl}]"], "nowhere.jsonl"),
    ],
)
def test_what_is_missing_is_named(arguments: list[str], message: str, finished: Config, tmp_path: Path) -> None:
    with pytest.raises((ValueError, OSError), match=message):
        evaluate.main([finished.run_dir, "--out", str(tmp_path / "out"), *arguments])
    assert not (tmp_path / "out").exists()


def test_a_path_that_is_neither_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a folder"):
        evaluate.main([str(tmp_path / "nowhere")])


def test_other_devices_than_the_run_had(finished: Config, tmp_path: Path) -> None:
    """Any mesh gives the same numbers, and a run's own need not fit the machine that evaluates it."""
    arguments: list[Any] = ["--mesh.data", "2", "--mesh.fsdp", "2", "--mesh.tensor", "2", "--no_baselines"]
    evaluate.main([finished.run_dir, "--out", str(tmp_path), *arguments])
    assert numbers(tmp_path, "tuned") == pytest.approx(numbers(finished.run_dir, "after tuning"))
    with pytest.raises(ValueError, match="mesh.tensor"):
        evaluate.main([finished.run_dir, "--out", str(tmp_path), "--mesh.tensor", "3"])
    of_a_pod = tmp_path / "of_a_pod"
    shutil.copytree(finished.run_dir, of_a_pod)
    settings = of_a_pod / "config.yaml"
    settings.write_text(settings.read_text().replace("fsdp: 1", "fsdp: 128"))
    evaluate.main([str(of_a_pod), "--no_baselines"])
    assert numbers(of_a_pod / "evaluation", "tuned") == pytest.approx(numbers(finished.run_dir, "after tuning"))
