"""An evaluation as an object and as files: the table, the records of the shown row, and the headline."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from instructrec_jax.evaluation.evaluator import ScoredRow
from instructrec_jax.evaluation.results import results_of, show_results
from instructrec_jax.files import read_json, read_jsonl
from instructrec_jax.tasks.scores import Scores


def scores(*values: float, protocol: str = "", owners: Any = None) -> Scores:
    each = np.array(values)
    records = [{"id": str(n), "prediction": value} for n, value in enumerate(values)]
    found = Scores({"gain": float(each.mean())}, {"gain": each}, records, protocol=protocol)
    return found.owned_by(None if owners is None else np.array(owners))


ROWS = [ScoredRow("before tuning", {"": scores(0, 0, 1, 0)}), ScoredRow("after tuning", {"": scores(1, 0, 1, 1)})]


def results(rows: list[ScoredRow], tuned: str = "after tuning") -> Any:
    return results_of(rows, metric="gain", measured_on="test", tuned=tuned)


def test_records_are_those_of_the_shown_row() -> None:
    assert [row["prediction"] for row in results(ROWS).predictions] == [1, 0, 1, 1]
    assert [row["prediction"] for row in results(ROWS, "before tuning").predictions] == [0, 0, 1, 0]


def test_records_name_their_segment() -> None:
    parts = {"seen": scores(1.0, 0.0), "unseen": scores(0.5)}
    found = results([ScoredRow("after tuning", parts)])
    assert [(row["segment"], row["prediction"]) for row in found.predictions] == [
        ("seen", 1.0), ("seen", 0.0), ("unseen", 0.5),
    ]  # fmt: skip
    assert found.evaluation["protocol"].startswith("2 cases (seen); 1 case (unseen)")


def test_the_protocol_is_told_once_with_the_cases_and_their_owners() -> None:
    parts = {"a": scores(1, 0, 1, 1, protocol="by hand", owners=[0, 0, 1, 1]), "b": scores(1, protocol="by hand")}
    protocol = results([ScoredRow("after tuning", parts)]).evaluation["protocol"]
    assert protocol.count("by hand") == 1 and "4 cases (a); 1 case (b); intervals resample their 2 " in protocol


def test_printed_it_is_the_table_and_metrics_are_those_of_the_first_row() -> None:
    found = results(ROWS)
    assert str(found) == repr(found) and "after tuning" in str(found) and "0.7500" in str(found)
    assert found.metrics == {"gain": 0.25}


def test_a_row_that_is_not_there_is_an_error() -> None:
    with pytest.raises(StopIteration):
        results(ROWS, "another row")


def test_files_and_what_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    examples: list[dict[str, Any]] = [
        {"instruction": "a good film?", "wanted": "yes", "answers": [{"text": "no", "score": 0.0, "measure": "gain"}]}
    ]
    said = show_results(tmp_path, ROWS, examples, metric="gain", measured_on="test", greater=True)
    printed = capsys.readouterr().out
    assert "after tuning" in printed and "a good film?" in printed and said not in printed
    assert said.startswith("Result       gain 0.7500")
    evaluation = read_json(tmp_path / "evaluation.json", dict[str, object])
    assert evaluation == json.loads(json.dumps(results(ROWS).evaluation))
    assert [row["prediction"] for row in read_jsonl(tmp_path / "predictions.jsonl")] == [1, 0, 1, 1]
    assert read_json(tmp_path / "examples.json", list[object]) == examples


def test_only_the_first_process_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("instructrec_jax.evaluation.results.is_first", lambda: False)
    said = show_results(tmp_path, ROWS, [], metric="gain", measured_on="test", greater=True)
    assert said.startswith("Result") and not list(tmp_path.iterdir()) and capsys.readouterr().out == ""
