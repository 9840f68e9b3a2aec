"""Randomly damaged files of a run directory: readers name the file or get valid values."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import mutations

from instructrec_jax.answering.out_of_scope import TunedThreshold
from instructrec_jax.answering.ranker import read_fusions
from instructrec_jax.data.skipped import read_skipped
from instructrec_jax.evaluation import charts, report
from instructrec_jax.files import read_json, write_json, write_jsonl, write_text
from instructrec_jax.runs.directory import read_record
from instructrec_jax.runs.kept_calibration import read_calibration
from instructrec_jax.runs.model import frozen_fingerprint
from instructrec_jax.training.tracking import read_metrics

WHOLE: dict[str, Any] = {
    "protocol": "Rank 412 films.",
    "metrics": ["NDCG@10", "mse"],
    "rows": [
        {"name": "popularity", "values": {"NDCG@10": 0.1, "mse": 1.25}, "intervals": {"mse": [1.0, 1.5]}},
        {"name": "after tuning", "values": {"NDCG@10": 0.3, "mse": None}, "protocol": ""},
    ],
    "differences": [{"name": "a − b", "metric": "NDCG@10", "mean": 0.2, "low": 0.1, "high": 0.3}],
    "report": "precision recall",
    "segments": [
        {"name": "old", "cases": 3, "metric": "a", "values": {"x": 0.5}, "shown": "x", "low": 0.1, "high": 0.9},
    ],
    "all_metrics": ["NDCG@10", "mse", "gain"],
    "charts": {
        "confusion": {"labels": ["a", "b"], "counts": [[1, 2], [3, 4]]},
        "calibration": {"bins": [{"cases": 3, "confidence": 0.5, "accuracy": 0.4}]},
    },
}
EXAMPLES = [{"instruction": "something", "wanted": "Moon", "answers": [{"text": "Alien", "score": 2.5}]}]
SKIPPED = [{"where": "a.jsonl, line 1", "field": "output", "reason": "missing", "detail": ""}]
METRICS = [
    {"kind": "train", "step": 1, "loss": 0.5, "learning_rate": 0.1, "tokens_per_second": 3.0, "input_share": 0.1},
    {"kind": "evaluation", "step": 1, "accuracy": 0.5, "loss": None},
]
CASES: dict[str, tuple[Any, Callable[[Path], Any]]] = {
    "evaluation.json": (WHOLE, report.write_report),
    "examples.json": (EXAMPLES, report.write_report),
    "summary.json": ({"title": "run", "facts": {"devices": "8", "steps": 3}}, report.write_report),
    "metrics.jsonl": (METRICS, lambda run: (read_metrics(run / "metrics.jsonl"), report.write_report(run))),
    "skipped.jsonl": (SKIPPED, lambda run: (read_skipped(run), report.write_report(run))),
    "run.json": ({"format": 2, "status": "begun", "overwrite": False}, read_record),
    "backbone/weights.json": ({"folder": "/x", "fingerprint": "0f"}, frozen_fingerprint),
    "fusions.json": (
        {"hybrid: bm25": {"name": "bm25", "weight": 0.5, "k": None, "validation_cases": 9, "checkpoints": [30]}},
        lambda run: read_fusions(run / "fusions.json"),
    ),
    "calibration.json": (
        {
            "way": "temperature",
            "labels": ["a", "b"],
            "scale": [0.5],
            "bias": [0.0],
            "checkpoint": 30,
            "weights": "0f",
            "data": "0f",
            "cases": 9,
            "before": {"nll": 1.0, "ece": 0.5},
            "after": {"nll": 0.9, "ece": 0.1},
        },
        lambda run: read_calibration(run, ["a", "b"], lambda: 30, lambda: "0f"),
    ),
    "uncertainty.json": (
        {"split": "test", "tables": [{"title": "a", "text": "b", "rows": [["x", "y"], ["1", "2"]]}]},
        report.write_report,
    ),
    "threshold.json": (
        {"score": "max_probability", "threshold": 0.5, "fpr": 0.1},
        lambda run: read_json(run / "threshold.json", TunedThreshold),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_damaged_file_is_named_or_read(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """500 mutations of values and 100 of bytes, without the slow plotting of checked numbers."""
    monkeypatch.setattr(charts, "_image", lambda *_, **__: "")
    whole, read = CASES[name]
    write = write_jsonl if name.endswith("jsonl") else write_json
    path, draw, named = tmp_path / name, random.Random(name), 0
    (tmp_path / "backbone").mkdir()
    write(path, whole)
    read(tmp_path)
    text = path.read_bytes()
    damaged = [json.dumps(mutant) for mutant in mutations(whole, 500, draw)]
    if name.endswith("jsonl"):
        damaged = ["".join(json.dumps(row) + "\n" for row in mutant) for mutant in mutations(whole, 500, draw)]
    for mutant in [*damaged, *(flipped(text, draw) for _ in range(100))]:
        path.write_bytes(mutant.encode() if isinstance(mutant, str) else mutant)
        try:
            read(tmp_path)
        except ValueError as error:
            assert path.name in str(error) and len(str(error)) < 500, error
            named += 1
    assert named > 50


def flipped(content: bytes, draw: random.Random) -> bytes:
    damaged = bytearray(content)
    damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
    return bytes(damaged[: draw.choice([len(damaged), draw.randrange(len(damaged))])])


def test_a_chart_that_cannot_be_drawn_is_named(tmp_path: Path) -> None:
    for data in ({"labels": [], "counts": []}, {"labels": ["a"], "counts": [[1, 2]]}, {"labels": ["a"]}):
        write_json(tmp_path / "evaluation.json", WHOLE | {"charts": {"confusion": data}})
        with pytest.raises(ValueError, match="evaluation.json"):
            report.write_report(tmp_path)
    for bins in ([], [{"cases": 0, "confidence": 0.5, "accuracy": 0.5}]):
        write_json(tmp_path / "evaluation.json", WHOLE | {"charts": {"calibration": {"bins": bins}}})
        with pytest.raises(ValueError, match="evaluation.json"):
            report.write_report(tmp_path)


def test_settings_that_are_no_text_are_shown_as_they_are(tmp_path: Path) -> None:
    write_text(tmp_path / "evaluation.json", json.dumps(WHOLE | {"charts": {}}))
    (tmp_path / "config.yaml").write_bytes(b"a: \xff")
    assert "a: �" in report.write_report(tmp_path).read_text()
