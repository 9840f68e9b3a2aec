"""The run directory: which settings may write there, who does, and what a start finds in it.

    .lock         locked by the process that trains, for as long as it lives; its text says who that is
    run.json      the format of the directory, and how far the run came: see `Record`
    config.yaml   the settings of the run

A start calls `check_settings` and `check_run_dir`, which only read; then, when all else is ready, `start_run_dir` with
the lock; and at the end `finish_run_dir`. Killed at any moment, it leaves a directory that the same command resumes.
Verbs that only read call `check_readable`; they need no lock.
"""

import json
import os
import shutil
import socket
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from textwrap import shorten
from types import TracebackType
from typing import IO, Any, Literal, NotRequired, Self, TypedDict

import numpy as np

from instructrec_jax.distributed.launch import check_shared, is_first, once, say
from instructrec_jax.files import explain, is_temporary, read_json, sweep, try_lock, write_json, write_text
from instructrec_jax.runs.config import Config, load, to_dict, to_yaml
from instructrec_jax.training.optimizer import check_optimizer, learning_rate_schedule
from instructrec_jax.training.profiling import traced_steps

FORMAT = 2  # of the run directory; 1 had no run.json
# Settings that may differ when a run is resumed: those that do not change what it computes,
FREE_ON_RESUME = ("run_dir", "overwrite", "mesh", "checkpoint", "tracking", "profile")
# and those that change only what is still to come.
CHANGES_THE_REST = ("steps", "evaluation", "data.validation", "data.test", "optimizer.max_nonfinite")
AT_LEAST = {
    **{name: 1 for name in ("steps", "accumulation", "data.batch_size", "data.batch_rows", "tracking.log_every")},
    **{name: 1 for name in ("checkpoint.every", "checkpoint.keep_last", "optimizer.max_nonfinite")},
    **{name: 1 for name in ("evaluation.patience", "evaluation.max_examples")},
    **{name: 0 for name in ("seed", "evaluation.every", "checkpoint.keep_best", "optimizer.weight_decay")},
}
ABOVE_ZERO = tuple(
    f"optimizer.{name}" for name in ("learning_rate", "head_learning_rate", "layer_decay", "epsilon", "clip_norm")
)
AT_MOST = {
    "steps": 2**31 - 1,  # the optimizer counts in int32
    **{f"optimizer.{name}": 1 for name in ("warmup", "final_ratio", "layer_decay")},
}
BELOW_ONE = ("optimizer.beta1", "optimizer.beta2")
# What the verbs leave in a run directory, and so what --overwrite true deletes (but for the first two): nothing else.
LEFT_BY_RUNS = (
    *(".lock", "run.json"),
    *("config.yaml", "summary.json", "metrics.jsonl", "skipped.jsonl", "report.html", "wandb_id.txt"),
    *("evaluation.json", "predictions.jsonl", "examples.json"),
    *("backbone", "checkpoints", "tensorboard", "wandb", "evaluation", "profile"),
)
BEGINNING = LEFT_BY_RUNS[:2]  # all that a folder without config.yaml may hold, beside temporary files


class Record(TypedDict):
    """run.json.

    Attributes:
      format: see FORMAT.
      status: deleting: an earlier run is being deleted for --overwrite true; begun; finished: with its final results.
      overwrite: whether the run was begun with --overwrite true. The same command resumes it until it is finished.
      data: fingerprint of the training data.
    """

    format: int
    status: Literal["deleting", "begun", "finished"]
    overwrite: bool
    data: NotRequired[str]


class Holder(TypedDict):
    """The text of .lock: which process holds it."""

    pid: int
    host: str
    since: str


@dataclass(frozen=True)
class Found:
    """What a start finds: an earlier run to `delete`, or the settings `before` of the run that it resumes."""

    delete: bool = False
    before: Config | None = None


# ---------------------------------------------------------------- settings


def check_settings(config: Config) -> None:
    """Refuses numbers out of their range, so that none of them shows only in the middle of a run.

    Numbers of the optimizer count as what they are in float32, its arithmetic. Raises ValueError naming the setting.
    """
    tree = to_dict(config)
    for name, value in _floats(tree):
        if not np.isfinite(value):
            raise ValueError(f"{name} must be a finite number, but is {value}.")
    settings = flatten(tree)
    for name in {**AT_LEAST, **AT_MOST, **dict.fromkeys((*ABOVE_ZERO, *BELOW_ONE))}:
        value = settings[name]
        if value is None:
            continue
        with np.errstate(over="ignore", under="ignore"):
            number = np.float32(value) if isinstance(value, float) else value
        if name in ABOVE_ZERO and not (number > 0 and np.isfinite(number)):
            raise ValueError(f"{name} must be above 0 and finite in float32, but is {value}.")
        if name in AT_LEAST and not number >= AT_LEAST[name]:
            raise ValueError(f"{name} must be at least {AT_LEAST[name]}, but is {value}.")
        if name in AT_MOST and not number <= AT_MOST[name]:
            raise ValueError(f"{name} must be at most {AT_MOST[name]}, but is {value}.")
        if name in BELOW_ONE and not 0 <= number < 1:
            raise ValueError(f"{name} must be at least 0 and below 1 in float32, but is {value}.")
    size = config.data.batch_size
    if size is not None and config.accumulation > size:
        raise ValueError(
            f"accumulation is {config.accumulation}, but data.batch_size is {size}: a micro-batch needs at least one "
            "example. Lower accumulation, or raise data.batch_size."
        )
    if config.evaluation.patience and not (config.evaluation.every and config.data.validation):
        raise ValueError("evaluation.patience needs evaluations: set data.validation, and evaluation.every above 0.")
    check_optimizer(config.optimizer)
    traced_steps(config.profile, config.steps)


def _floats(tree: object, name: str = "") -> Iterator[tuple[str, float]]:
    """The dotted names and values of all floats in settings, those in lists included."""
    below: Iterator[tuple[str, object]] = iter(())
    if isinstance(tree, float):
        yield name, tree
    elif isinstance(tree, dict):
        below = ((f"{name}.{key}" if name else str(key), value) for key, value in tree.items())
    elif isinstance(tree, list | tuple):
        below = ((f"{name}[{number}]", value) for number, value in enumerate(tree))
    for inner, value in below:
        yield from _floats(value, inner)


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix[:-1]: tree}
    return {name: value for key, below in tree.items() for name, value in flatten(below, f"{prefix}{key}.").items()}


def changed_settings(before: Config, now: Config, free: tuple[str, ...]) -> dict[str, tuple[object, object]]:
    """Dotted name -> (value before, value now) of the settings that differ, without those that are or lie in `free`."""
    old, new = flatten(to_dict(before)), flatten(to_dict(now))
    other_task = old["task.type"] != new["task.type"]  # whose settings have other names
    return {
        name: (old.get(name), new.get(name))
        for name in sorted(old | new)
        if old.get(name) != new.get(name)
        and not any(f"{name}.".startswith(f"{prefix}.") for prefix in free)
        and not (other_task and name.startswith("task.") and name != "task.type")
    }


def resuming(step: int, before: Config | None, now: Config) -> str:
    """One line on a resume: from which step, with which other settings, and what they do to the learning rate."""
    line = f"resuming from step {step}"
    if before is None:
        return line
    changes = changed_settings(before, now, FREE_ON_RESUME)
    if changes:
        texts = [f"{name} {shorten(str(a), 60)} -> {shorten(str(b), 60)}" for name, (a, b) in changes.items()]
        line += f" with other settings: {', '.join(texts)}"
    if "steps" in changes and step < now.steps and now.optimizer.learning_rate is not None:
        then, rate = (float(learning_rate_schedule(c.optimizer, c.steps)(step)) for c in (before, now))
        line += (
            f"; from here on the learning rate follows the {now.optimizer.schedule} schedule of {now.steps:,} steps: "
            f"{rate:.3g} at the next step, where that of {before.steps:,} steps has {then:.3g}"
        )
    return line


# ---------------------------------------------------------------- who writes


class RunLock:
    """The lock on a run directory. `take` takes it, the end of the block (or of the process) gives it back.

    Only the first of several processes takes it, for all of them.
    """

    def __init__(self, run_dir: str | Path):
        self.run_dir = Path(run_dir)
        self._file: IO[str] | None = None

    def take(self) -> None:
        """Makes the run directory, where there is none, and locks it.

        Raises ValueError, naming the holder, where another process has it; OSError where nothing can be written there.
        """
        path = self.run_dir / ".lock"
        try:
            self.run_dir.mkdir(parents=True, exist_ok=True)
            file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 (closed in __exit__)
        except OSError as error:
            explain(error, path)
        try:
            free = try_lock(file)
        except OSError as error:
            say(f"warning: {self.run_dir} cannot be locked ({error.strerror}): start no second training there.")
            free = True
        if not free:
            file.close()
            raise ValueError(held(self.run_dir))
        self._file = file
        since = datetime.now().astimezone().isoformat(timespec="seconds")
        holder: Holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": since}
        file.truncate(0)  # in place: a file that is moved here would be another one, not locked
        file.write(json.dumps(holder) + "\n")
        file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def held(run_dir: Path) -> str:
    """What to say of a run directory that another process has locked."""
    try:
        holder = read_json(run_dir / ".lock", Holder)
        who = f"process {holder['pid']} on {holder['host']}, since {holder['since']}"
    except (ValueError, OSError):
        who = "another process"
    return f"{run_dir} is in use by {who}. Wait for it, stop it, or choose another run_dir."


def _is_held(run_dir: Path) -> bool:
    try:
        with open(run_dir / ".lock", "rb") as file:
            return not try_lock(file)
    except OSError:
        return False


# ---------------------------------------------------------------- what is there


def read_record(run_dir: Path) -> Record | None:
    """run.json, or None where there is none (the first version wrote none).

    Raises ValueError where it is damaged, or written by a later version.
    """
    path = run_dir / "run.json"
    if not path.is_file():
        return None
    found = read_json(path, dict[str, object]).get("format")
    if isinstance(found, int) and found > FORMAT:
        raise ValueError(
            f"{run_dir} was written by a later version of instructrec_jax: its run.json has format "
            f"{str(found)[:20]}, and this version reads up to {FORMAT}. Upgrade instructrec_jax, or choose another run "
            "directory."
        )
    return read_json(path, Record)


def check_readable(run_dir: Path) -> None:
    """Raises ValueError where a folder is no run directory that this version can open, and says why."""
    if not run_dir.is_dir():
        raise ValueError(f"{run_dir} is not a run directory: there is no such folder.")
    record = read_record(run_dir)
    if record is not None and record["status"] == "deleting":
        raise ValueError(_half_deleted(run_dir))
    if not (run_dir / "config.yaml").is_file():
        begun = "the run stopped while it began. Run its command again" if record else "it has no config.yaml"
        raise ValueError(f"{run_dir} is not a run directory: {begun}.")


def is_run_dir(path: Path) -> bool:
    """Whether a folder is a run directory. Raises what `check_readable` does of one that cannot be opened."""
    if not any((path / name).is_file() for name in ("config.yaml", "run.json")):
        return False
    check_readable(path)
    return True


def check_run_dir(config: Config) -> Path:
    """The run directory; ValueError where it is something else, in use, or holds a run that cannot be resumed."""
    run_dir = Path(config.run_dir)
    if is_first() and _is_held(run_dir):
        raise ValueError(held(run_dir))
    _find(config, run_dir)
    return run_dir


def _find(config: Config, run_dir: Path, data: str | None = None) -> Found:
    """What is in the run directory, for a start on data of this fingerprint (None: not known yet)."""
    if not run_dir.exists():
        return Found()
    if not run_dir.is_dir():
        raise ValueError(f"run_dir {run_dir} is a file. Choose another run_dir.")
    settings, record = run_dir / "config.yaml", read_record(run_dir)
    left = [path.name for path in run_dir.iterdir() if not is_temporary(path.name) and path.name not in BEGINNING]
    if record is not None and (record["status"] == "deleting" or not settings.is_file()):
        if set(left) & set(LEFT_BY_RUNS) and not config.overwrite:
            raise ValueError(_half_deleted(run_dir))
        return Found(delete=True)
    if not settings.is_file():
        if left:
            raise ValueError(f"{run_dir} exists but is no run directory (no config.yaml). Choose another run_dir.")
        return Found()
    is_ours = b"\nrun_dir:" in settings.read_bytes()
    if config.overwrite and is_ours and not _began_here(config, settings, record, data):
        return Found(delete=True)
    try:
        before = load(settings)
    except ValueError as error:
        raise ValueError(
            f"{run_dir} holds a config.yaml that is not of a run of this version ({error}). Choose another run_dir"
            + (", or start anew with --overwrite true." if is_ours else ".")
        ) from error
    _check_resumable(config, before, run_dir, data, record)
    return Found(before=before)


def _began_here(config: Config, settings: Path, record: Record | None, data: str | None) -> bool:
    """Whether this very command, with its --overwrite true, began the run on the same data and did not finish it."""
    if record is None or record["status"] != "begun" or not record["overwrite"]:
        return False
    if data is not None and record.get("data", data) != data:
        return False
    try:
        return not changed_settings(load(settings), config, FREE_ON_RESUME)
    except ValueError:
        return False


def _check_resumable(config: Config, before: Config, run_dir: Path, data: str | None, record: Record | None) -> None:
    """Refuses other settings and other data once there is a checkpoint of the old ones."""
    saved = [int(path.name) for path in run_dir.glob("checkpoints/*") if path.name.isdigit()]
    if not saved:
        return
    changes = changed_settings(before, config, (*FREE_ON_RESUME, *CHANGES_THE_REST))
    if changes:
        lines = [
            f"  {name}: {shorten(str(a), 100)} then, {shorten(str(b), 100)} now" for name, (a, b) in changes.items()
        ]
        raise ValueError(
            f"{run_dir} holds a run with other settings:\n" + "\n".join(lines) + "\n"
            "Choose another run_dir, or start anew with --overwrite true."
        )
    if config.steps < max(saved):
        raise ValueError(
            f"steps is {config.steps}, but the run in {run_dir} has already done {max(saved)}. Set steps to at least "
            f"{max(saved)}, choose another run_dir, or start anew with --overwrite true."
        )
    if data is not None and record is not None:
        check_same_data(record.get("data", data), data, run_dir)


def _half_deleted(run_dir: Path) -> str:
    return (
        f"{run_dir} is half deleted: --overwrite true was interrupted there, or its config.yaml was removed. Start "
        "training there again with --overwrite true, or choose another run_dir."
    )


def check_same_data(before: str, now: str, run_dir: Path) -> None:
    """Raises ValueError where two fingerprints of the training data differ."""
    if before != now:
        raise ValueError(
            f"the training data changed since the run in {run_dir} began, so it cannot be resumed. Restore the data, "
            "choose another run_dir, or start anew with --overwrite true."
        )


# ---------------------------------------------------------------- begin, finish


def start_run_dir(config: Config, run_dir: Path, lock: RunLock, data: str) -> Config | None:
    """Locks and makes the run directory, without what an earlier run left if that is to be overwritten.

    Args:
      data: fingerprint of the training data.

    Returns, in the first process, the settings of the run that is resumed (None: a new one).
    """
    settings = to_yaml(replace(config, overwrite=False))
    found = Found()

    def start() -> None:
        nonlocal found
        lock.take()
        found = _find(config, run_dir, data)  # again: another process may have been here since `check_run_dir`
        record = read_record(run_dir)
        if found.delete:
            write_json(run_dir / "run.json", Record(format=FORMAT, status="deleting", overwrite=True))
            for path in (run_dir / name for name in LEFT_BY_RUNS if name not in BEGINNING):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
        for folder in (run_dir, *(path for path in run_dir.iterdir() if path.is_dir())):
            sweep(folder)
        began = config.overwrite if found.before is None else record is not None and record["overwrite"]
        write_json(run_dir / "run.json", Record(format=FORMAT, status="begun", overwrite=began, data=data))
        write_text(run_dir / "config.yaml", settings)

    once(start)
    check_shared(run_dir / "config.yaml", settings)
    return found.before


def finish_run_dir(run_dir: Path) -> None:
    """Notes that the run has its final results. Call it in the first process."""
    record = read_record(run_dir)
    if record is not None:
        write_json(run_dir / "run.json", record | {"status": "finished"})
