"""Runs whose batches are full rows (`data.batch_rows`): exact when they go on, the same on any number of devices."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from helpers import assert_close, examples
from tiny_runs import changed, final_parameters, rows, tiny_run

from instructrec_jax import train
from instructrec_jax.data.hold_out import HoldOutConfig
from instructrec_jax.data.loader import HostBatch
from instructrec_jax.data.source_config import SourceConfig
from instructrec_jax.distributed.mesh import data_shards, make_mesh
from instructrec_jax.files import read_json, read_jsonl, write_jsonl
from instructrec_jax.runs import data as run_data
from instructrec_jax.runs import model as models
from instructrec_jax.runs.config import Config
from instructrec_jax.runs.training_data import TrainingData
from instructrec_jax.tasks import LanguageModelConfig
from instructrec_jax.training.checkpoint import Checkpoints
from instructrec_jax.training.interrupt import Interrupt, Interrupted

STEPS = 5
STOP = 3


def row_run(kind: str, checkpoint: Path, folder: Path, **changes: Any) -> Config:
    """Ragged examples in rows of 64 tokens, less than two batches an epoch, so that every stop is inside of one."""
    config = tiny_run(
        kind,
        checkpoint,
        folder,
        steps=STEPS,
        evaluation__every=0,
        data__validation=[],
        data__test=[],
        data__batch_size=None,
        data__batch_rows=8,
        data__max_length=64,
    )
    records = [example.to_record() for example in examples(kind, 36)]
    write_jsonl(Path(config.data.train[0].path), records)
    return changed(config, **changes)


def stop_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """As if SIGTERM arrived while the loop was at its next step."""
    seen = iter(range(steps))
    requested = property(lambda self: None if next(seen, None) is not None else "SIGTERM")
    monkeypatch.setattr(Interrupt, "requested", requested, raising=False)
    monkeypatch.setattr(Interrupt, "__init__", lambda self: setattr(self, "_before", {}))


def training_data(config: Config, row_multiple: int = 1) -> run_data.TrainingData:
    task = models.open_task(config, Path(config.backbone.path))
    return run_data.RunData(config).training(task, row_multiple)


def batches(config: Config, start: int, stop: int) -> list[HostBatch]:
    return list(training_data(config).batches(start, stop, None))


@pytest.fixture(scope="module")
def on_eight(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    config = row_run("classification", checkpoint, tmp_path_factory.mktemp("rows"))
    train.train(config)
    return config


@pytest.mark.parametrize(
    "devices", [2, pytest.param(1, marks=pytest.mark.slow), pytest.param(8, marks=pytest.mark.slow)]
)
def test_a_stopped_run_ends_like_one_that_was_not(
    devices: int, on_eight: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "make_mesh", lambda config: make_mesh(config, jax.devices()[:devices]))
    whole = changed(on_eight, run_dir=str(tmp_path / "whole"), checkpoint__every=STEPS)
    stopped = changed(whole, run_dir=str(tmp_path / "stopped"))
    if devices == 8:
        whole = on_eight
    else:
        train.train(whole)
    with monkeypatch.context() as patched:
        stop_after(patched, STOP)
        with pytest.raises(Interrupted, match="SIGTERM: saved step"):
            train.train(stopped)
    assert 0 < Checkpoints(Path(stopped.run_dir)).steps()[-1] < STEPS
    train.train(stopped)
    assert rows(stopped.run_dir) == rows(whole.run_dir)
    assert_close(final_parameters(stopped.run_dir, STEPS), final_parameters(whole.run_dir, STEPS), atol=0)
    for mine, theirs in zip(rows(whole.run_dir), rows(on_eight.run_dir), strict=True):
        assert mine.pop("kind") == theirs.pop("kind") and mine == pytest.approx(theirs, rel=1e-4)


def test_it_goes_on_with_another_number_of_devices(
    on_eight: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same batches: tokens of the steps are equal, losses to rounding."""
    config = changed(on_eight, run_dir=str(tmp_path / "run"))
    with monkeypatch.context() as patched:
        patched.setattr(train, "make_mesh", lambda config: make_mesh(config, jax.devices()[:2]))
        stop_after(patched, STOP)
        with pytest.raises(Interrupted, match="SIGTERM: saved step"):
            train.train(config)
    train.train(config)
    for mine, theirs in zip(rows(config.run_dir), rows(on_eight.run_dir), strict=True):
        assert mine.pop("kind") == theirs.pop("kind") and mine == pytest.approx(theirs, rel=1e-4)
        assert mine["tokens"] == theirs["tokens"]


def test_a_run_tells_how_full_its_rows_are(on_eight: Config) -> None:
    facts = read_json(Path(on_eight.run_dir) / "summary.json")["facts"]
    data = training_data(on_eight)
    total = sum(len(e.text.tokens) for e in data.encoded)
    one_row = [batch.tokens for batch in batches(changed(on_eight, data__batch_rows=1), 0, 36)]
    count = 1 + int(np.searchsorted(np.cumsum(one_row), total))  # rows until every example was there
    assert sum(one_row[:count]) == total and 8 < count < 16
    share = total / (count * 64)
    assert facts["examples"] == (
        f"36 examples with {total:,} tokens packed into {count} rows of 64 ({1 - share:.1%} padding); "
        f"{count / 8:.1f} steps per epoch"
    )
    assert facts["steps"] == "5 × 8 rows of 64 tokens"
    assert {batch.shape for batch in batches(on_eight, 0, 6)} == {(8, 64)}


@pytest.mark.parametrize("network", ["llama", "t5"])
def test_rows_of_a_language_model(network: str, language_models: dict[str, Path], tmp_path: Path) -> None:
    """An encoder–decoder's rows come in pairs; the targets have a length of their own."""
    config = row_run("classification", language_models[network], tmp_path, data__max_length=128)
    records = [example.to_record() for example in examples("language_model", 36)]
    write_jsonl(Path(config.data.train[0].path), records)
    target_length = 64 if network == "t5" else None
    config = changed(config, task=LanguageModelConfig(template="plain", max_target_length=target_length))
    data = training_data(config)
    texts = [e.text for e in data.encoded]
    total = sum(len(text.tokens) + (0 if text.target is None else len(text.target)) for text in texts)
    room = "128 + 64" if target_length else "128"
    count = round(data.epoch_steps * 8)
    share = total / (count * (128 + (target_length or 0)))
    assert data.step_size == f"8 rows of {room} tokens" and data.tokens == total
    assert data.packing == f" packed into {count} rows of {room} ({1 - share:.1%} padding)"
    for batch in batches(config, 0, 5):
        assert batch.shape == ((8, 128, 64) if target_length else (8, 128))
        assert (batch.batch.targets is not None) == (network == "t5")
        assert batch.batch.own.supervised.any(1).all()
    assert sum(batch.tokens for batch in batches(changed(config, data__batch_rows=1), 0, count)) == total


def test_examples_dropped_for_their_length_are_in_no_row(on_eight: Config) -> None:
    config = changed(on_eight, data__max_length=32, data__truncate="drop")
    data = training_data(config)
    left = [e for e in training_data(on_eight).encoded if len(e.text.tokens) <= 32]
    assert len(data.encoded) == len(left) < 36
    count = round(data.epoch_steps * 8)
    assert sum(batch.tokens for batch in batches(changed(config, data__batch_rows=count), 0, 1)) == data.tokens


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("classification", {"data__batch_size": 8}, r"data\.batch_size.*data\.batch_rows"),
        ("classification", {"data__batch_rows": 0}, r"data\.batch_rows"),
        (
            "classification",
            {"data__batch_rows": 24, "accumulation": 2},
            r"data\.batch_rows.*24.*16.*accumulation",
        ),
        ("retrieval", {}, r"retrieval.*data\.batch_size.*data\.batch_rows"),
    ],
)
def test_batches_that_cannot_be_are_refused(
    kind: str, changes: dict[str, Any], message: str, checkpoint: Path, tmp_path: Path
) -> None:
    config = row_run(kind, checkpoint, tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        train.train(config)
    assert not Path(config.run_dir).exists()
    assert data_shards(make_mesh(config.mesh)) == 8


@pytest.mark.parametrize("kind", ["file", "datasets", "mixed"])
def test_a_stream_in_rows_resumes_from_every_position(kind: str, checkpoint: Path, tmp_path: Path) -> None:
    """Rows of a stream of files, of `datasets` or of both, without the held-out label, from any checkpoint."""
    config = row_run("classification", checkpoint, tmp_path)
    folder = tmp_path / "stream"
    folder.mkdir()
    Path(config.data.train[0].path).rename(folder / "train.jsonl")
    of_files = SourceConfig(path=str(folder / "*.jsonl"), streaming=True, shuffle_block=7, weight=1.0)
    of_datasets = SourceConfig(path=str(folder), kind="datasets", streaming=True, shuffle_block=5, weight=2.0)
    whole = SourceConfig(path=str(folder / "train.jsonl"), weight=1.0)
    sources = {"file": [of_files], "datasets": [of_datasets], "mixed": [of_files, of_datasets, whole]}[kind]
    left_out = read_jsonl(folder / "train.jsonl")[0]["output"]
    hold_out = HoldOutConfig(labels=[str(left_out)])
    config = changed(config, data__train=sources, data__stream_window=13, data__hold_out=hold_out)

    def made() -> TrainingData:
        return training_data(config)

    steps = 9
    batches = list(made().batches(0, steps, None))
    position = None
    for step in range(steps):
        resumed = list(made().batches(step, steps, position))
        for ours, theirs in zip(resumed, batches[step:], strict=True):
            jax.tree.map(np.testing.assert_array_equal, ours.batch, theirs.batch)
        position = json.loads(json.dumps(resumed[0].position))
        assert len(json.dumps(position)) < 2_000
    length = config.data.max_length
    assert {batch.shape for batch in batches} == {(config.data.batch_rows, length)}
    labels = getattr(config.task, "labels")  # noqa: B009  of a classification
    for batch in batches:
        own = batch.batch.own
        targets = np.asarray(own.targets)[np.asarray(own.weights) > 0]
        assert len(targets) and left_out not in {labels[number] for number in targets}


def test_windows_of_a_stream_are_packed_and_dealt_evenly(checkpoint: Path, tmp_path: Path) -> None:
    config = row_run("classification", checkpoint, tmp_path)
    source = SourceConfig(path=config.data.train[0].path, streaming=True, shuffle_block=1)
    count = len(read_jsonl(config.data.train[0].path))
    data = training_data(changed(config, data__train=[source], data__stream_window=count))
    batches = list(data.batches(0, 40, None))
    window = next(number for number, batch in enumerate(batches) if batch.position and not batch.position["taken"]) + 1
    texts = [int((np.asarray(batch.batch.own.weights) > 0).sum()) for batch in batches[:window]]
    assert sum(texts) == count, "an epoch has every example once"
    used = [int((np.asarray(batch.batch.texts.segment_ids).max(1) > 0).sum()) for batch in batches[:window]]
    assert max(used) - min(used) <= 1
