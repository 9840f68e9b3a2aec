"""Run directories: the lock, kills at any moment, and settings that may change on resume."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import changed

from instructrec_jax.data.data_config import DataConfig
from instructrec_jax.files import read_json, write_json, write_text
from instructrec_jax.runs import directory
from instructrec_jax.runs.config import Config, load
from instructrec_jax.runs.directory import (
    LEFT_BY_RUNS,
    RunLock,
    check_readable,
    check_run_dir,
    check_settings,
    finish_run_dir,
    is_run_dir,
    resuming,
    start_run_dir,
)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(run_dir=str(tmp_path / "run"), steps=10, data=DataConfig(batch_size=8))


def start(config: Config, *, train: int | None = None, finish: bool = False, data: str = "x") -> Config | None:
    """Starts or resumes training, leaves a checkpoint folder, optionally finishes; returns the settings before."""
    run_dir = check_run_dir(config)
    with RunLock(run_dir) as lock:
        before = start_run_dir(config, run_dir, lock, data)
        if train is not None:
            (run_dir / "checkpoints" / str(train)).mkdir(parents=True)
        if finish:
            finish_run_dir(run_dir)
    return before


# ------------------------------------------------------------------ settings


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("optimizer.learning_rate", [float("inf"), float("nan"), 0.0, -1.0, 1e39, 1e-50]),
        ("optimizer.head_learning_rate", [float("inf"), 0.0]),
        ("optimizer.weight_decay", [float("nan"), -0.1]),
        ("optimizer.beta1", [1.0, -0.1, 0.9999999999]),
        ("optimizer.beta2", [1.0, float("nan")]),
        ("optimizer.epsilon", [0.0, -1e-8, 1e-50]),
        ("optimizer.clip_norm", [0.0, float("inf")]),
        ("optimizer.warmup", [1.5, -0.1 * float("inf")]),
        ("lora.alpha", [float("nan")]),
        ("accumulation", [0, 9, 10**9]),
        ("steps", [0, 10**12]),
    ],
)
def test_settings_out_of_their_range_are_named(name: str, values: list[Any], config: Config) -> None:
    check_settings(config)
    for value in values:
        with pytest.raises(ValueError, match=name):
            check_settings(changed(config, **{name.replace(".", "__"): value}))


def test_floats_in_lists_are_looked_at_too(config: Config) -> None:
    from instructrec_jax.data.source_config import SourceConfig

    sources = [SourceConfig(path="x.jsonl", weight=float("nan"))]
    with pytest.raises(ValueError, match=r"data.train\[0\].weight"):
        check_settings(changed(config, data__train=sources))


# ------------------------------------------------------------------ the lock


HOLD = """
import sys
from instructrec_jax.runs.directory import RunLock
with RunLock(sys.argv[1]) as lock:
    lock.take()
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_start_hears_who_holds_the_directory_until_that_process_dies(config: Config) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, config.run_dir], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    with pytest.raises(ValueError, match=rf"process {holder.pid} on \S+, since 20"):
        check_run_dir(config)
    with RunLock(config.run_dir) as lock, pytest.raises(ValueError, match=f"process {holder.pid}"):
        start_run_dir(config, Path(config.run_dir), lock, "x")
    assert not (Path(config.run_dir) / "config.yaml").exists()
    holder.kill()
    holder.communicate()
    assert start(config) is None


def test_the_lock_ends_with_its_block(config: Config) -> None:
    with RunLock(config.run_dir) as lock:
        lock.take()
        with pytest.raises(ValueError, match=f"process {os.getpid()}"):
            start(config)
    start(config)


def test_a_directory_that_cannot_be_written_is_named(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(OSError, match=r"(?s)run/\.lock"):
        start(config)


# ------------------------------------------------------------------ kills


def killed_while(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, call: int) -> Any:
    """Stops like SIGKILL at the n-th call of a function: nothing happens after it."""
    real, calls = getattr(owner, name), iter(range(10**6))

    def function(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == call:
            raise KeyboardInterrupt("killed")
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, function)


@pytest.mark.parametrize("moment", [("write_json", 0), ("write_text", 0), ("check_shared", 0)])
def test_the_same_command_resumes_a_beginning_that_was_killed(
    moment: tuple[str, int], config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        killed_while(patched, directory, *moment)
        start(config)
    Path(config.run_dir, f".config.yaml.{'0' * 32}.tmp").write_text("run_d")  # also left by a SIGKILL
    start(config)
    assert load(Path(config.run_dir) / "config.yaml").steps == 10
    assert {path.name for path in Path(config.run_dir).iterdir()} == {".lock", "run.json", "config.yaml"}


def test_a_folder_with_only_a_temporary_file_is_a_beginning(config: Config) -> None:
    """The files of version 0.1 after a kill."""
    run_dir = Path(config.run_dir)
    run_dir.mkdir()
    (run_dir / f".config.yaml.{'a' * 32}.tmp").write_text("")
    assert start(config) is None


@pytest.mark.parametrize("moment", [("write_json", 0), *(("shutil.rmtree", n) for n in range(2)), ("write_json", 1)])
def test_the_same_command_resumes_a_deletion_that_was_killed(
    moment: tuple[str, int], config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(config, train=6, finish=True)
    run_dir = Path(config.run_dir)
    (run_dir / "backbone").mkdir()
    write_text(run_dir / "metrics.jsonl", "")
    write_text(run_dir / "notes.txt", "mine")
    again = replace(config, overwrite=True, steps=20)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        name, call = moment
        killed_while(patched, shutil if "rmtree" in name else directory, name.removeprefix("shutil."), call)
        start(again)
    if moment != ("write_json", 0):
        assert not (run_dir / "config.yaml").exists()
        for refused in (lambda: check_readable(run_dir), lambda: is_run_dir(run_dir)):
            with pytest.raises(ValueError, match=r"run .*--overwrite true"):
                refused()
        if (run_dir / "checkpoints").exists():
            with pytest.raises(ValueError, match="--overwrite true"):
                start(config)
    assert start(again) is None
    left = {".lock", "run.json", "config.yaml", "notes.txt"}
    assert {path.name for path in run_dir.iterdir()} == left and load(run_dir / "config.yaml").steps == 20


def test_temporary_files_of_killed_writers_are_swept(config: Config) -> None:
    start(config)
    run_dir = Path(config.run_dir)
    stale = [run_dir / f".{name}.{'b' * 32}.tmp" for name in ("predictions.jsonl", "examples.json", "metrics.jsonl")]
    stale.append(run_dir / "evaluation" / stale[0].name)
    for path in stale:
        write_text(path, "")
    write_text(run_dir / ".mine.tmp", "")
    start(config)
    assert not any(path.exists() for path in stale) and (run_dir / ".mine.tmp").exists()


# ------------------------------------------------------------------ overwrite


def test_overwrite_resumes_what_it_began_and_deletes_anything_else(config: Config) -> None:
    run_dir, again = Path(config.run_dir), replace(config, overwrite=True)
    start(config, train=4)
    assert start(again) is None and not (run_dir / "checkpoints").exists()  # started without overwrite: deleted
    (run_dir / "checkpoints" / "4").mkdir(parents=True)
    before = start(again)  # preempted and restarted
    assert before is not None and (run_dir / "checkpoints" / "4").exists()
    assert start(config) is not None and start(again) is not None  # also after a start without overwrite
    other = changed(again, optimizer__learning_rate=0.5)
    assert start(other, train=4) is None  # other settings: deleted
    assert start(other, data="y") is None and not (run_dir / "checkpoints").exists()  # other data: deleted
    start(other, train=4, data="y")
    start(other, finish=True, data="y")
    assert (run_dir / "checkpoints" / "4").exists()
    assert start(other) is None and not (run_dir / "checkpoints").exists()  # finished: deleted
    assert not load(run_dir / "config.yaml").overwrite


# ------------------------------------------------------------------ resume with other settings


def test_other_settings_of_a_process_are_named_but_not_where_it_prepares_data(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[bytes] = []

    def among(*others: Config) -> Config | None:
        """Starts as the first process beside others."""
        told.clear()
        monkeypatch.setattr(directory, "exchange", lambda mine: told.append(mine) or [mine])
        for other in others:
            start(replace(other, run_dir=config.run_dir))
        each = list(told)
        monkeypatch.setattr(directory, "exchange", lambda mine: [mine, *each])
        return start(config)

    elsewhere = changed(config, data__store="/other/disk", data__workers=3)
    among(elsewhere)
    assert load(Path(config.run_dir) / "config.yaml") == config
    with pytest.raises(ValueError, match="processes 2 have other settings than process 0"):
        among(elsewhere, changed(config, seed=5))


def test_a_run_can_be_prolonged_and_says_what_changed(config: Config) -> None:
    config = changed(config, optimizer__learning_rate=1e-3)
    start(config, train=10, finish=True)
    kept_elsewhere = {"data__store": "memory", "data__workers": 1}
    longer = changed(config, steps=20, evaluation__every=7, tracking__log_every=3, **kept_elsewhere)
    before = start(longer)
    assert before is not None
    said = resuming(10, before, longer)
    assert said.startswith("resuming from step 10 ") and "evaluation.every 100 -> 7, steps 10 -> 20;" in said
    assert "learning rate" in said and "\n" not in said and "log_every" not in said
    assert resuming(10, longer, longer) == "resuming from step 10"


def test_other_settings_are_refused_once_there_is_a_checkpoint(config: Config) -> None:
    start(config)
    start(changed(config, optimizer__learning_rate=0.5), train=6)
    for other, name in (({"seed": 5}, "seed: 0 .*5"), ({"steps": 5}, "steps is 5.* 6")):
        with pytest.raises(ValueError, match=f"(?s){name}"):
            check_run_dir(changed(config, optimizer__learning_rate=0.5, **other))


def test_other_data_are_refused_once_there_is_a_checkpoint(config: Config) -> None:
    start(config, data="x")
    start(config, data="y", train=6)
    before = Path(config.run_dir, "run.json").read_text()
    with pytest.raises(ValueError, match="training data.*--overwrite true"):
        start(config, data="z")
    assert Path(config.run_dir, "run.json").read_text() == before


# ------------------------------------------------------------------ other versions, other folders


def test_a_directory_of_a_later_version_is_refused_by_every_door(config: Config) -> None:
    run_dir = Path(config.run_dir)
    start(config)
    write_json(run_dir / "run.json", {"format": 3, "something": "new"})
    for refused in (lambda: check_readable(run_dir), lambda: is_run_dir(run_dir), lambda: check_run_dir(config)):
        with pytest.raises(ValueError, match="format 3"):
            refused()
    with pytest.raises(ValueError, match="format 3"):
        start(replace(config, overwrite=True))


def test_a_directory_of_the_first_version_opens(config: Config) -> None:
    run_dir = Path(config.run_dir)
    start(config, train=4)
    (run_dir / "run.json").unlink()
    (run_dir / ".lock").unlink()
    check_readable(run_dir)
    assert start(config) is not None
    assert read_json(run_dir / "run.json")["status"] == "begun"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": "2"}', json.dumps({"format": 2, "status": "odd"})])
def test_a_damaged_run_json_is_named(text: str, config: Config) -> None:
    start(config)
    write_text(Path(config.run_dir) / "run.json", text)
    for refused in (lambda: check_readable(Path(config.run_dir)), lambda: check_run_dir(config)):
        with pytest.raises(ValueError, match="run.json"):
            refused()


def test_what_is_no_run_directory_says_so(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(ValueError, match="run directory"):
            check_readable(path)
        assert not is_run_dir(path)
    assert set(LEFT_BY_RUNS) > {"config.yaml", "checkpoints"}
