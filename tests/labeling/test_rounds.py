"""Rounds of labeling with a run: what it believes of a pool, and the training that follows.

(`instructrec_jax.label`)
"""

import io
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from helpers import task_config
from tiny_runs import tiny_run, untrained_run, write_examples

from instructrec_jax.files import read_jsonl, write_jsonl
from instructrec_jax.label import main
from instructrec_jax.labeling.rounds import beliefs_of, check_task, left_to_ask, next_settings, read_pool
from instructrec_jax.labeling.session import About, Session
from instructrec_jax.labeling.strategies import select
from instructrec_jax.runs.data import RunData
from instructrec_jax.runs.run import Run


@pytest.fixture
def run(checkpoint: Path, tmp_path: Path) -> Path:
    """An untrained classifier, whose settings are those of a tiny run."""
    config = tiny_run("classification", checkpoint, tmp_path)
    sources = {f"data__{split}": getattr(config.data, split) for split in ("train", "validation", "test")}
    return untrained_run(
        Path(config.run_dir),
        config.task,
        checkpoint,
        32,
        steps=2,
        optimizer=config.optimizer,
        evaluation=config.evaluation,
        checkpoint=config.checkpoint,
        tracking=config.tracking,
        **sources,
    )


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    return write_examples(tmp_path / "pool.jsonl", "classification", 10, 9)


def test_what_a_run_believes(run: Path, pool: Path) -> None:
    opened = Run.open(run)
    texts = read_pool(opened, str(pool))
    left = [1, 4, 5, 8]
    shares = beliefs_of(opened, "entropy", texts, left, [], 0).shares
    assert shares is not None
    answers = opened.predict([{"instruction": texts.texts[number]} for number in left])
    for row, answer in zip(shares, answers, strict=True):
        assert dict(zip(opened.task.labels, row.tolist(), strict=True)) == pytest.approx(answer.probabilities)
    drawn = beliefs_of(opened, "bald", texts, left, [], 0).draws
    assert drawn is not None and drawn.shape == (8, 4, 5) and np.ptp(drawn, axis=0).max() > 1e-4
    for strategy in ("badge", "core_set"):
        beliefs = beliefs_of(opened, strategy, texts, left, [0, 2], 0)  # type: ignore[arg-type]
        assert sorted(select(strategy, beliefs, 4, 0)) == [0, 1, 2, 3]  # type: ignore[arg-type]


def test_a_training_keeps_the_labels_it_began_with(run: Path, pool: Path, tmp_path: Path) -> None:
    opened = Run.open(run)
    texts = read_pool(opened, str(pool))
    config = next_settings(opened.config, run, tmp_path / "s" / "round-1", texts, {3: "war", 1: "love"})
    assert config.init_from == str(run) and config.run_dir == str(tmp_path / "s" / "round-1")
    examples = list(RunData(config).examples("train"))
    assert len(examples) == 26 and [e.output for e in examples[-2:]] == ["war", "love"]
    assert examples[-2].instruction == texts.texts[3]
    next_settings(opened.config, run, tmp_path / "s" / "round-1", texts, {})
    assert len(read_jsonl(tmp_path / "s" / "round-1.jsonl")) == 2


def test_bad_input_is_named(run: Path, pool: Path, checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs --out FOLDER, and one --strategy"):
        main([str(run), "--pool", str(pool)])
    with pytest.raises(ValueError, match="--who is empty"):
        main([str(run), "--pool", str(pool), "--out", str(tmp_path / "out")])
    write_jsonl(tmp_path / "empty.jsonl", [])
    with pytest.raises(ValueError, match="empty"):
        read_pool(Run.open(run), str(tmp_path / "empty.jsonl"))
    other = untrained_run(tmp_path / "other", task_config("regression", tmp_path), checkpoint, 32)
    with pytest.raises(ValueError, match="task.type regression, but label asks for one label"):
        check_task(Run.open(other))


def test_texts_that_the_run_is_measured_on_are_not_labeled(run: Path, pool: Path, tmp_path: Path) -> None:
    opened, mixed = Run.open(run), tmp_path / "mixed.jsonl"
    mixed.write_text(pool.read_text() + (tmp_path / "test.jsonl").read_text())
    with pytest.raises(ValueError, match=r"12 texts of the pool are cases.*mixed\.jsonl, line 11: .* in data\.test"):
        read_pool(opened, str(mixed))
    skips = Run.open(run, ["--data.on_bad_example", "skip"])
    assert read_pool(skips, str(mixed)).texts == read_pool(opened, str(pool)).texts
    with pytest.raises(ValueError, match="the pool is empty"):
        read_pool(skips, str(tmp_path / "test.jsonl"))


def test_equal_texts_are_asked_once(run: Path, tmp_path: Path) -> None:
    texts = ["good film", "bad", " Good  film", "old", "bad"]
    write_jsonl(tmp_path / "again.jsonl", [{"instruction": text} for text in texts])
    pool = read_pool(Run.open(run), str(tmp_path / "again.jsonl"))
    with closing(Session.open(tmp_path / "s", About(pool="p", fingerprint="f", labels=["war", "love"]))) as session:
        assert left_to_ask(session, pool) == [0, 1, 3]
        session.say(4, "label", "ada", label="war")
        session.say(0, "skip", "ada")
        assert left_to_ask(session, pool) == [3]


def test_a_pool_that_was_asked_is_no_error(
    run: Path, pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("s\n" * 10))
    main([str(run), "--pool", str(pool), "--out", str(tmp_path / "s"), "--who", "ada", "--batch", "10"])
    said = capsys.readouterr().out
    assert "every text of the pool was asked" in said and "0 labels" in said


@pytest.mark.slow
def test_a_session_goes_on_and_trains(
    run: Path, pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "session"
    command = [str(run), "--pool", str(pool), "--out", str(out), "--who", "ada", "--batch", "3", "--rounds", "2"]

    def typed(text: str, *more: str) -> str:
        monkeypatch.setattr("sys.stdin", io.StringIO(text))
        main([*command, *more])
        return capsys.readouterr().out

    assert "1 labels" in typed("1\n") and not (out / "round-1").exists()
    chosen = read_jsonl(out / "rounds.jsonl")[0]["numbers"]
    said = typed("1\n2\nq\n")
    assert read_jsonl(out / "rounds.jsonl")[0]["numbers"] == chosen and "[2 of 3]" in said
    assert Run.open(out / "round-1").config.init_from == str(run)
    assert len(read_jsonl(out / "round-1.jsonl")) == 3
    second = read_jsonl(out / "rounds.jsonl")[1]
    assert second["model"] == str(out / "round-1") and not set(second["numbers"]) & set(chosen)
    said = typed("s\ns\n1\n")
    assert (out / "round-2").exists() and "4 labels" in said and len(read_jsonl(out / "round-2.jsonl")) == 4
    said = typed("1\n" * 9, "--second", "--who", "bob")
    assert "bob and ada agree on" in said
    assert len(read_jsonl(out / "labels.jsonl")) == 6 + 6
