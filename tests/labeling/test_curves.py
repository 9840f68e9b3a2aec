"""Simulated labeling by the verb: the pool, the curves and their table."""

from pathlib import Path

import pytest
from tiny_runs import write_examples

from instructrec_jax.files import read_json, write_jsonl
from instructrec_jax.label import main


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


def test_bad_input_is_named(checkpoint: Path, tmp_path: Path) -> None:
    pool = write_examples(tmp_path / "pool.jsonl", "classification", 8, 0)
    write_jsonl(tmp_path / "test.jsonl", [{"instruction": "a text", "output": "unheard"}])
    command = [str(checkpoint), "--pool", str(pool), "--simulate", "--data.test", str(tmp_path / "test.jsonl")]
    with pytest.raises(ValueError, match="unheard"):
        main(command)
    with pytest.raises(ValueError, match="needs task.type classification, not regression"):
        main([*command, "--task.type", "regression"])
