"""scripts/few_labels.py: the split by seed, both runs, and the interval."""

import importlib.util
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from tiny_runs import tiny_run, write_settings

from instructrec_jax.files import read_json, read_jsonl

PATH = Path(__file__).parents[1] / "scripts" / "few_labels.py"
spec = importlib.util.spec_from_file_location("few_labels", PATH)
assert spec is not None and spec.loader is not None
few_labels = importlib.util.module_from_spec(spec)
spec.loader.exec_module(few_labels)


@pytest.fixture
def settings(checkpoint: Path, tmp_path: Path) -> Path:
    config = tiny_run("classification", checkpoint, tmp_path, steps=2, evaluation__every=0)
    path = Path(config.data.train[0].path)
    rows = read_jsonl(path)
    leak = read_jsonl(Path(config.data.test[0].path))[0]
    every = [*rows, *rows[:4], {**leak, "instruction": f"{leak['instruction']}!", "id": "leak"}]
    path.write_text("".join(json.dumps({**row, "id": str(n)}) + "\n" for n, row in enumerate(every)))
    return write_settings(config, tmp_path / "settings.yaml")


def test_both_runs_on_one_split(
    settings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = [str(settings), "--labels", "2", "--seeds", "3", "--out", str(out), "--augment", "{swap: 0.5}"]
    words += [
        "--way",
        "supervised",
        "{}",
        "--way",
        "uda",
        "{semi_supervised.method: uda, semi_supervised.threshold: 0.1}",
    ]
    words += ["--way", "fitted", "{task.type: vector_classification, init_from: null}"]
    words += ["--steps", "3", "--begin", "2"]
    monkeypatch.setattr(sys, "argv", ["few_labels.py", *words])
    few_labels.main()
    labeled, unlabeled = (read_jsonl(out / f"seed-3/{name}.jsonl") for name in ("labeled", "unlabeled"))
    said = [str(row["output"]) for row in labeled]
    assert {said.count(label) for label in said} == {2}
    ids = [row["id"] for row in (*labeled, *unlabeled)]
    assert len(ids) == len(set(ids)) == 28, "the case of the test is left out"
    for name in ("supervised", "uda"):
        assert len(read_jsonl(out / f"seed-3/{name}/metrics.jsonl")) == 3
        assert f"init_from: {out}/seed-3/begin" in (out / f"seed-3/{name}/config.yaml").read_text()
        measured: Any = read_json(out / f"seed-3/{name}/evaluation.json")
        assert any(row["name"] == "after tuning" for row in measured["rows"])
        method = "uda" if name == "uda" else "none"
        assert f"method: {method}" in (out / f"seed-3/{name}/config.yaml").read_text()
    found = capsys.readouterr().out
    assert re.search(
        r"seed 3: supervised 0\.\d+, uda 0\.\d+, fitted 0\.\d+, logistic head on frozen vectors 0\.\d+", found
    )
    assert "| fitted | " in found


def test_a_call_without_ways_is_refused(settings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["few_labels.py", str(settings), "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="at least one --way"):
        few_labels.main()


def test_the_interval_is_students_over_paired_seeds() -> None:
    base, more = np.array([0.7, 0.72, 0.69]), np.array([0.75, 0.79, 0.73])
    rows = [{"supervised": a, "fixmatch": b} for a, b in zip(base, more, strict=True)]
    low, high = stats.ttest_rel(100 * more, 100 * base).confidence_interval(0.95)
    gain = 100 * np.mean(more - base)
    assert f"| fixmatch | 75.7, {gain:+.1f} ({low:+.1f} to {high:+.1f}) |" in few_labels.table(rows)
    assert few_labels.table(rows[:1]).endswith("| fixmatch | 75.0, +5.0 |")
