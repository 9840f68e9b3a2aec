"""Simulated labeling by the verb: the pool, the curves and their table."""

import shutil
from pathlib import Path

import pytest
import yaml
from tiny_runs import write_examples

from instructrec_jax.files import read_json, read_jsonl, write_jsonl
from instructrec_jax.label import main
from instructrec_jax.runs.config import Config


def test_curves_of_a_folder(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pool, test = (
        write_examples(tmp_path / f"{name}.jsonl", "classification", 40, seed)
        for seed, name in enumerate(("pool", "test"))
    )
    main(
        [str(checkpoint), "--pool", str(pool), "--data.test", str(test), "--simulate", "--out", str(tmp_path / "out")]
        + ["--strategy", "entropy", "bald", "--first", "10", "--batch", "5", "--rounds", "2", "--seeds", "2"]
    )
    found = read_json(tmp_path / "out" / "curves.json", dict[str, object])
    assert set(found["curves"]) == {"entropy", "bald", "random"}  # type: ignore[call-overload]
    assert [curve["labels"] for curve in found["curves"]["bald"]] == [[10, 15, 20]] * 2  # type: ignore[index]
    printed = capsys.readouterr().out
    assert "2 seeds" in printed and "labels to 0.8" in printed and "− random" in printed


def test_a_pool_has_the_columns_of_the_run(finished: Config, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished.run_dir, folder)
    renamed = {}
    for name in ("pool", "test"):
        plain = read_jsonl(write_examples(tmp_path / f"plain-{name}.jsonl", "classification", 40, len(name)))
        renamed[name] = tmp_path / f"{name}.jsonl"
        write_jsonl(renamed[name], [{"review": row["instruction"], "subject": row["output"]} for row in plain])
    settings = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    settings["data"]["train"][0]["fields"] = {"instruction": "review", "output": "subject"}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    command = [str(folder), "--pool", str(renamed["pool"]), "--data.test", str(renamed["test"]), "--simulate"]
    main([*command, "--out", str(tmp_path / "out"), "--first", "10", "--batch", "5", "--rounds", "1", "--seeds", "1"])
    assert (tmp_path / "out" / "curves.json").is_file()


def test_bad_input_is_named(checkpoint: Path, tmp_path: Path) -> None:
    pool = write_examples(tmp_path / "pool.jsonl", "classification", 8, 0)
    write_jsonl(tmp_path / "test.jsonl", [{"instruction": "a text", "output": "unheard"}])
    command = [str(checkpoint), "--pool", str(pool), "--simulate", "--data.test", str(tmp_path / "test.jsonl")]
    with pytest.raises(ValueError, match="unheard"):
        main(command)
    with pytest.raises(ValueError, match="needs task.type classification, not regression"):
        main([*command, "--task.type", "regression"])
