"""Run directories in a bucket: the bucket is enough to resume, evaluate and export, whenever the process was killed."""

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import jax
import numpy as np
import pytest
from processes import Processes
from tiny_runs import changed, final_parameters, rows, start, tiny_run, verb, write_settings

import instructrec_jax.runs.bucket_lock as bucket_lock
from instructrec_jax.evaluate import main as evaluate
from instructrec_jax.export import main as export
from instructrec_jax.files import append_jsonl, read_json, write_text
from instructrec_jax.predict import main as predict
from instructrec_jax.remote import cache_folder, run_folder, with_urls
from instructrec_jax.runs.bucket import Mirror, local_run, send
from instructrec_jax.runs.directory import RunLock
from instructrec_jax.runs.run import Run, require_finished
from instructrec_jax.train import train, train_run
from instructrec_jax.training.training_config import OptimizerConfig


@pytest.fixture
def another_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Calling it leaves nothing local."""
    counted = iter(range(100))

    def move() -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"machine-{next(counted)}"))

    return move


@pytest.fixture(params=["bucket", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of an empty folder."""
    if request.param == "bucket":
        yield request.getfixturevalue("bucket")
        return
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield f"memory://{tmp_path.name}"
    fsspec.filesystem("memory").store.clear()


@pytest.fixture
def run(place: str) -> str:
    return f"{place}/run"


def names(url: str) -> set[str]:
    files = fsspec.filesystem(url.partition(":")[0])
    files.invalidate_cache()
    return {path.partition("/run/")[2] for path in files.find(url)}


def fill(url: str, *steps: int, settings: str = "a") -> Path:
    """A working copy as training leaves it."""
    folder = run_folder(url)
    write_text(folder / "config.yaml", settings)
    append_jsonl(folder / "metrics.jsonl", [{"step": step} for step in steps])
    for step in steps:
        write_text(folder / "checkpoints" / str(step) / "state" / "d", f"{settings} {step}")
        write_text(folder / "checkpoints" / str(step) / "progress", "{}")
    return folder


def trained(url: str, *steps: int) -> Mirror:
    """A mirror that has pushed, and holds the lock."""
    mirror = Mirror(url)
    mirror.open()
    fill(url, *steps)
    mirror.push()
    return mirror


# ---------------------------------------------------------------- whole runs


def test_train_evaluate_predict_and_export_with_a_run_in_a_bucket(
    run: str, checkpoint: Path, tmp_path: Path, another_machine: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    local = tiny_run("classification", checkpoint, tmp_path)
    train(local)
    config = replace(local, run_dir=run)
    folder = train(config)
    assert f"report: {run}/report.html" in capsys.readouterr().out
    assert rows(folder) == rows(local.run_dir)
    there = names(run)
    assert {"config.yaml", "run.json", "metrics.jsonl", "report.html", "checkpoints/6.complete"} <= there
    assert ".lock" not in there

    another_machine()
    evaluate([run])
    assert f"written: {run}/evaluation" in capsys.readouterr().out
    assert "evaluation/evaluation.json" in names(run)
    predict([run, "--input", str(tmp_path / "test.jsonl"), "--out", str(tmp_path / "out.jsonl")])
    export([run, "--out", str(tmp_path / "exported")])
    assert (tmp_path / "exported" / "model.safetensors").is_file()

    another_machine()
    opened = Run.open(run)
    assert opened.checkpoint == Run.open(local.run_dir).checkpoint
    assert read_json(opened.path / "evaluation" / "evaluation.json")
    ours, theirs = (jax.tree.leaves(final_parameters(path, 6)) for path in (opened.path, local.run_dir))
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_a_killed_training_resumes_on_another_machine(
    bucket: str, checkpoint: Path, tmp_path: Path, another_machine: Any
) -> None:
    """As if it had not been killed; the dead process's lock is no obstacle."""
    rate = replace(OptimizerConfig(), schedule="constant", warmup=0.0, learning_rate=3e-3)
    config = tiny_run("classification", checkpoint, tmp_path, optimizer=rate, checkpoint__every=5, evaluation__every=5)
    endless = replace(config, run_dir=f"{bucket}/run", steps=100_000)
    another_machine()
    process = start(verb("train", write_settings(endless, tmp_path / "run.yaml")), tmp_path / "compiled")
    try:
        deadline = time.monotonic() + 150
        while not any(name.endswith(".complete") for name in names(endless.run_dir)):
            assert process.poll() is None and time.monotonic() < deadline, "no checkpoint arrived"
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
    there = names(endless.run_dir)
    saved = [int(name.partition("/")[2].removesuffix(".complete")) for name in there if name.endswith(".complete")]
    assert ".lock" in there

    another_machine()
    resumed, whole = (
        replace(config, run_dir=path, steps=max(saved) + 3) for path in (endless.run_dir, str(tmp_path / "w"))
    )
    folder = train(resumed)
    train(whole)
    assert rows(folder) == rows(whole.run_dir)
    assert "report.html" in names(resumed.run_dir) and ".lock" not in names(resumed.run_dir)


def test_given_examples_lie_in_the_bucket(run: str, checkpoint: Path, tmp_path: Path, another_machine: Any) -> None:
    config = tiny_run("classification", checkpoint, tmp_path, steps=2, evaluation__every=0)
    lines = (tmp_path / "train.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    made = train_run(replace(config, run_dir=run), train=records)
    assert made.config.data.train[0].path == str(made.path / "given" / "train.jsonl")
    another_machine()
    opened = Run.open(run)
    assert len(opened.data.examples("train")) == len(records)
    again = train_run(replace(config, run_dir=run, steps=3), train=records)
    assert again.checkpoint == 3


# ---------------------------------------------------------------- the mirror


def test_a_run_is_held_by_one_process(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket_lock, "BEAT", 0.2)
    with RunLock(run) as lock:
        lock.take()
        fill(run, 1)
        lock.begun()
        with pytest.raises(ValueError, match=rf"{run} is in use by process \d+ on .*another run_dir"):
            Mirror(run).open()
    free = Mirror(run)
    free.open()  # given back
    free.close()


def test_what_fails_at_the_start_gives_the_lock_back(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Mirror, "_pull", lambda self: 1 / 0)
        with pytest.raises(ValueError, match=f"{run}: cannot be read .ZeroDivisionError"), RunLock(run):
            pass
    assert ".lock" not in names(run)


def test_a_run_in_training_is_not_read_without_a_step(run: str, another_machine: Any) -> None:
    mirror = trained(run, 1)
    another_machine()
    with pytest.raises(ValueError, match=r"run is still training \(process \d+ on .*--step"):
        require_finished(run, None)
    require_finished(run, 1)
    mirror.close()
    require_finished(run, None)


def test_a_lock_without_a_beat_is_taken(run: str, monkeypatch: pytest.MonkeyPatch, another_machine: Any) -> None:
    monkeypatch.setattr(bucket_lock, "STALE", 0.1)
    lost = trained(run, 1)
    lost.lock._stop.set()  # its machine was lost
    taker = Mirror(run)
    taker.open()
    with pytest.raises(ValueError, match="another process took .* over"):
        lost.push()
    lost.close()
    assert ".lock" in names(run)
    taker.close()
    assert ".lock" not in names(run)


def test_half_of_a_checkpoint_does_not_exist(run: str, another_machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror = trained(run, 1)
    fill(run, 2)
    upload = fsspec.filesystem(run.partition(":")[0]).put_file

    def broken(local: str, remote: str) -> None:
        if remote.endswith("/2/state/d"):
            raise OSError("the network is gone")
        upload(local, remote)

    with monkeypatch.context() as patch:
        patch.setattr(mirror.files, "put_file", broken)
        with pytest.raises(ValueError, match=f"{run}: cannot be written .*the network is gone"):
            mirror.push()
    mirror.lock._stop.set()
    assert "checkpoints/2/progress" in names(run) and "checkpoints/2.complete" not in names(run)
    another_machine()
    monkeypatch.setattr(bucket_lock, "STALE", 0.1)
    other = Mirror(run)
    other.open()
    assert sorted(path.name for path in (other.folder / "checkpoints").iterdir()) == ["1"]
    assert "checkpoints/2/progress" not in names(run)
    other.close()


def test_deleted_checkpoints_and_files_are_deleted_last(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror = trained(run, 1, 2)
    write_text(mirror.folder / "old.txt", "x")
    mirror.push()
    order: list[str] = []

    def noted(sign: str, do: Any) -> Any:
        return lambda *paths: (order.append(sign + (paths[1] if sign == "+" else paths[0])), do(*paths))[1]

    with monkeypatch.context() as patch:
        for name, sign in {"put_file": "+", "pipe_file": "!", "rm_file": "-"}.items():
            patch.setattr(mirror.files, name, noted(sign, getattr(mirror.files, name)))
        shutil.rmtree(mirror.folder / "checkpoints" / "1")
        (mirror.folder / "old.txt").unlink()
        fill(run, 3)
        mirror.push()
    done = [step.replace(f"{run}/", "") for step in order]
    added = [step for step in done if not step.startswith("-")]
    assert done[: len(added)] == added and done[len(added)] == "-checkpoints/1.complete"
    assert added[-1] == "!checkpoints/3.complete" and added.index("+metrics.jsonl") < added.index(
        "+checkpoints/3/progress"
    )
    assert {name for name in names(run) if name.startswith("checkpoints/1")} == set() and "old.txt" not in names(run)
    mirror.close()


def test_a_new_run_never_meets_the_checkpoints_of_the_old_one(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror = trained(run, 1)
    shutil.rmtree(mirror.folder / "checkpoints")
    write_text(mirror.folder / "config.yaml", "another run")

    def broken(*_: object) -> None:
        raise OSError("killed here")

    with monkeypatch.context() as patch:
        patch.setattr(mirror.files, "put_file", broken)
        with pytest.raises(ValueError, match="killed here"):
            mirror.push()
    assert not any(name.startswith("checkpoints") for name in names(run))
    mirror.close()


def test_unsent_work_is_kept_unless_the_bucket_changed(run: str, another_machine: Any) -> None:
    trained(run, 1).close()
    folder = fill(run, 2)  # and the process was killed
    mirror = Mirror(run)
    mirror.open()
    assert (folder / "checkpoints" / "2").is_dir()
    mirror.close()
    machine = cache_folder()
    another_machine()
    trained(run, 5).close()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(machine.parent))
        assert local_run(run) == folder
        assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["1", "5"]
        assert (folder / "metrics.jsonl").read_text().count("\n") == 2


def test_what_a_verb_writes_is_sent_without_touching_checkpoints(run: str, another_machine: Any) -> None:
    trained(run, 1).close()
    another_machine()
    folder = local_run(run)
    write_text(folder / "evaluation" / "evaluation.json", "{}")
    shutil.rmtree(folder / "checkpoints")
    send(folder)
    assert {"evaluation/evaluation.json", "checkpoints/1/state/d", "checkpoints/1.complete"} <= names(run)
    send(folder.parent)  # the working copy of another run, without files
    send(Path("/nowhere"))


def test_nothing_is_downloaded_twice(run: str, another_machine: Any) -> None:
    trained(run, 1).close()
    another_machine()
    folder = local_run(run)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    trained(run, 3).close()
    local_run(run)
    assert all(path.stat().st_mtime_ns == before[path] for path in before if "checkpoints/1" in str(path))


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("https://host/run", r"https://host/run cannot be a run directory.*s3:// or gs://"),
        ("s3://nothing-there/run", "s3://nothing-there/run: "),
        ("s3://bucket//run", "empty"),
        ("ftp://host/run", "ftp:// is not known"),
    ],
)
def test_what_cannot_be_a_run_directory(url: str, message: str, bucket: str, checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        train(tiny_run("classification", checkpoint, tmp_path, run_dir=url))


def test_a_bucket_without_a_run_is_no_run(run: str) -> None:
    with pytest.raises(ValueError, match=r"is not a run directory"):
        export([run, "--out", "nowhere"])


def test_texts_for_people_name_the_bucket(run: str) -> None:
    assert with_urls(f"see {run_folder(run)}/report.html, {Path('/a/b')}") == f"see {run}/report.html, /a/b"


# ---------------------------------------------------------------- several machines

APART = [
    *(sys.executable, "-c"),
    "import os; os.environ['XDG_CACHE_HOME'] += os.environ['PROCESS_ID']; "
    "from instructrec_jax import train; from instructrec_jax.runs import config; "
    "config.main_guard(train.main, processes=True)",
]


@pytest.mark.slow
def test_two_machines_without_a_shared_disk(
    bucket: str, checkpoint: Path, tmp_path: Path, another_machine: Any
) -> None:
    """The parameters are split across both; then one process alone resumes what they saved."""
    rate = replace(OptimizerConfig(), schedule="constant", warmup=0.0, learning_rate=3e-3)
    alone = tiny_run("classification", checkpoint, tmp_path, optimizer=rate, evaluation__every=3, checkpoint__every=3)
    config = changed(alone, run_dir=f"{bucket}/run")
    settings = write_settings(changed(config, mesh__data=2, mesh__fsdp=2), tmp_path / "run.yaml")
    another_machine()
    with Processes([*APART, "--config_path", str(settings)], 2, 2, tmp_path / "logs") as two:
        assert two.wait() == [0, 0], two.said(0) + two.said(1)
    there = names(config.run_dir)
    assert {"report.html", "checkpoints/6.complete", "checkpoints/3.complete"} <= there
    assert not any(name.startswith(".") for name in there)
    copies = [Path(f"{os.environ['XDG_CACHE_HOME']}{number}") for number in (0, 1)]
    assert all(list(copy.rglob("checkpoints/6/state/checksums.json")) for copy in copies)
    another_machine()
    ours, theirs = (rows(train(replace(each, steps=8))) for each in (config, alone))
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.get("loss", 0) == pytest.approx(other.get("loss", 0), abs=1e-4)
