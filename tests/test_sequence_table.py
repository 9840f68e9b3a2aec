"""scripts/sequence_table.py: what it trains, the means over seeds, and where the table goes."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import tiny_run, write_settings

from instructrec_jax.files import read_json, write_json, write_jsonl

FOLDER = Path(__file__).parents[1] / "scripts"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(FOLDER)
    spec = importlib.util.spec_from_file_location("sequence_table", FOLDER / "sequence_table.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_trains_and_writes_the_table_into_a_page(
    script: Any, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_run("sequence", checkpoint, tmp_path / "data", steps=2, evaluation__every=0)
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- table: tiny -->\nold\n<!-- end of tiny -->\nafter\n")
    words = [str(write_settings(config, tmp_path / "settings.yaml")), "--seeds", "3", "--out", str(tmp_path / "out")]
    words += ["--way", "the head", "{}", "--steps", "3", "--into", str(page), "--table", "tiny"]
    script.main(words)
    run = tmp_path / "out/the_head-3"
    assert "seed: 3" in (run / "config.yaml").read_text() and "steps: 3" in (run / "config.yaml").read_text()
    found: Any = read_json(run / "evaluation.json")
    values = {row["name"]: row["values"] for row in found["rows"]}
    lines = page.read_text().splitlines()
    assert lines[:2] == ["before", "<!-- table: tiny -->"] and lines[-2:] == ["<!-- end of tiny -->", "after"]
    cells = [f"{values['after tuning'][metric]:.4f}".lstrip("0") for metric in ("NDCG@10", "HR@10")]
    assert f"| the head | {cells[0]} | {cells[1]} |" in lines and "old" not in lines
    assert any(line.startswith("| BM25 |") for line in lines)
    assert not any("random" in line or "before tuning" in line for line in lines)
    written = (run / "evaluation.json").stat().st_mtime_ns
    script.main(words)
    assert (run / "evaluation.json").stat().st_mtime_ns == written, "a finished run is not trained again"
    with pytest.raises(SystemExit, match="<!-- table: other -->"):
        script.main([*words[:-1], "other"])


def test_means_and_differences_over_seeds(script: Any, tmp_path: Path) -> None:
    runs: dict[str, list[Path]] = {"ours": [], "theirs": []}
    for seed, (own, mixed) in enumerate([(0.25, 0.5), (0.75, 0.5)]):
        for way, value in (("ours", own), ("theirs", 0.125)):
            folder = tmp_path / f"{way}-{seed}"
            folder.mkdir()
            rows: list[dict[str, object]] = [{"name": "after tuning", "values": {"NDCG@10": value, "HR@10": 1.0}}]
            if way == "ours":
                name = f"hybrid with coKNN (weight 0.{seed}0)"
                rows.append({"name": name, "values": {"NDCG@10": mixed, "HR@10": 1.0}})
            rows += [{"name": "EASE", "values": None}, {"name": "random", "values": {"NDCG@10": 0, "HR@10": 0}}]
            write_json(folder / "evaluation.json", {"rows": rows})
            ranked = [["a", "b"], ["b", "a"]] if way == "ours" else [["b", "a"], ["b", "a"]]
            cases = [{"id": str(n), "reference": ["a"], "prediction": items} for n, items in enumerate(ranked)]
            write_jsonl(folder / "predictions.jsonl", cases)
            runs[way].append(folder)
    assert script.rows_of(runs) == [
        "| 2 seeds | NDCG@10 | HR@10 |",
        "|---|---|---|",
        "| ours | .5000 (.2500 to .7500) | 1.0000 |",
        "| ours, mixed | .5000 | 1.0000 |",
        "| theirs | .1250 | 1.0000 |",
    ]
    (line,) = script.differences(runs)
    assert line.startswith("ours − theirs, NDCG@10: +0.1845 [")  # (1 − 1 / log2(3)) / 2
