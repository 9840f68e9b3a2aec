"""Held-out examples are not trained on, do not choose a checkpoint, and are reported separately."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import tiny_run

from instructrec_jax import evaluate
from instructrec_jax.data.example import Example
from instructrec_jax.data.hold_out import HoldOutConfig, is_held_out
from instructrec_jax.files import read_json, read_jsonl, write_jsonl
from instructrec_jax.runs import data as run_data
from instructrec_jax.runs import model as models
from instructrec_jax.runs.config import Config, load
from instructrec_jax.train import train


@pytest.mark.parametrize(
    ("hold_out", "expected"),
    [
        (HoldOutConfig(), []),
        (HoldOutConfig(tasks=["qa*"]), ["a"]),
        (HoldOutConfig(templates=["t[12]", "x"]), ["b"]),
        (HoldOutConfig(labels=["war"]), ["c", "d"]),
        (HoldOutConfig(tasks=["qa_en"], labels=["3"]), ["a", "e"]),
    ],
)
def test_which_examples_are_held_out(hold_out: HoldOutConfig, expected: list[str]) -> None:
    known: list[Any] = [
        Example(instruction="x", task="qa_en", output="love", id="a"),
        Example(instruction="x", output="love", origin={"template": "t2"}, id="b"),
        Example(instruction="x", output="war", id="c"),
        Example(instruction="x", output=("love", "war"), id="d"),
        Example(instruction="x", output=3, id="e"),
    ]
    assert [e.id for e in known if is_held_out(e, hold_out)] == expected


def templates_run(checkpoint: Path, folder: Path, **changes: Any) -> Config:
    """Each row with two templates, one of which is held out."""
    config = tiny_run("classification", checkpoint, folder, **changes)
    for split in ("train", "validation", "test"):
        rows = read_jsonl(folder / f"{split}.jsonl")
        made = [
            row | {"instruction": f"{name} {row['instruction']}", "origin": {"template": name}, "id": row["id"] + name}
            for row in rows
            for name in ("old", "new")
        ]
        write_jsonl(folder / f"{split}.jsonl", made)
    return replace(config, data=replace(config.data, hold_out=HoldOutConfig(templates=["new"])))


def test_seen_and_unseen_side_by_side(checkpoint: Path, tmp_path: Path) -> None:
    config = templates_run(checkpoint, tmp_path)
    run = train(config)
    assert load(run / "config.yaml").data.hold_out.templates == ["new"]
    assert "24 training examples held out" in read_json(run / "summary.json")["facts"]["note"]
    task = models.open_task(config, checkpoint)
    for split, count in (("train", 24), ("validation", 8)):
        cases = run_data.RunData(config).cases(task, split)  # type: ignore[arg-type]
        assert [e.example.origin["template"] for e in cases] == ["old"] * count
    assert task.context.held_out == ()
    labels = replace(config, data=replace(config.data, hold_out=HoldOutConfig(labels=["war"])))
    assert models.open_task(labels, checkpoint).context.held_out == ("war",)
    trained = run_data.RunData(config).training(task, 1)
    assert {e.example.origin["template"] for e in trained.encoded} == {"old"} and len(trained.encoded) == 24
    result = read_json(run / "evaluation.json")
    names = {f"{metric}, {part}" for metric in ("accuracy", "macro_f1") for part in ("seen", "unseen")}
    assert all(names <= set(row["values"]) for row in result["rows"])
    assert {row["name"] for row in result["rows"]} >= {"before tuning", "after tuning"}
    written = read_jsonl(run / "predictions.jsonl")
    assert [(r["segment"], r["id"][-3:]) for r in written] == [("seen", "old")] * 12 + [("unseen", "new")] * 12
    wordings = tmp_path / "wordings.txt"
    wordings.write_text("bright {instruction}\n{instruction} very dull\n")
    evaluate.main([str(run), "--out", str(tmp_path / "out"), "--no_baselines", "--wordings", str(wordings)])
    again = read_json(tmp_path / "out" / "evaluation.json")["rows"]
    by_name = {row["name"]: row["values"] for row in again}
    found = read_json(tmp_path / "out" / "wordings.json")
    for part in ("seen", "unseen"):
        values = [by_name[f"“{w}”"][f"macro_f1, {part}"] for w in ("bright {instruction}", "{instruction} very dull")]
        assert found[part]["mean"] == pytest.approx(sum(values) / 2) and found[part]["worst"] == min(values)


@pytest.mark.parametrize(
    ("hold_out", "words"),
    [
        (HoldOutConfig(templates=["newer"]), "hold_out.templates.*'newer'.*data.test"),
        (HoldOutConfig(templates=["*"]), "data.hold_out.*data.train"),
    ],
)
def test_a_hold_out_that_cannot_be(hold_out: HoldOutConfig, words: str, checkpoint: Path, tmp_path: Path) -> None:
    config = templates_run(checkpoint, tmp_path)
    with pytest.raises(ValueError, match=words):
        train(replace(config, data=replace(config.data, hold_out=hold_out)))
