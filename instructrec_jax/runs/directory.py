"""The run directory: its lock, its status, and the checks before training starts or resumes in it.

    .lock         locked by the training process while it lives; its text names the process
    run.json      format and status of the directory: see `Record`
    config.yaml   settings of the run
    given/        examples given from Python

Training calls `check_settings` and `check_run_dir`, which only read; `start_run_dir` with the lock, once model and data
are ready; and `finish_run_dir` at the end. If the process is killed at any moment, the same command resumes the run.
Verbs that only read call `check_readable` and need no lock.
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
from typing import IO, Literal, NotRequired, Self, TypedDict

import jax
import numpy as np

from instructrec_jax.distributed.launch import check_shared, exchange, is_first, once, say
from instructrec_jax.files import explain, is_temporary, read_json, sweep, try_lock, write_json, write_text
from instructrec_jax.metrics.abstention import check_abstain
from instructrec_jax.remote import is_url, run_folder, url_of_run
from instructrec_jax.runs.bucket import Mirror
from instructrec_jax.runs.config import Config, load, to_dict, to_yaml
from instructrec_jax.runs.given import FOLDER, Given, delete_given, write_given
from instructrec_jax.training.checkpoint import Exchange
from instructrec_jax.training.optimizer import check_optimizer, learning_rate_schedule
from instructrec_jax.training.profiling import traced_steps

FORMAT = 2  # version of the run directory's layout; version 1 had no run.json
# Settings that may change on resume: those that do not affect the computation,
FREE_ON_RESUME = ("run_dir", "overwrite", "mesh", "checkpoint", "tracking", "profile", "data.store", "data.workers")
# and those that affect the remaining steps only.
CHANGES_THE_REST = ("steps", "evaluation", "abstain", "data.validation", "data.test", "optimizer.max_nonfinite")
AT_LEAST = {
    **{name: 1 for name in ("steps", "accumulation", "data.batch_size", "data.batch_rows", "tracking.log_every")},
    **{name: 1 for name in ("checkpoint.every", "checkpoint.keep_last", "optimizer.max_nonfinite")},
    **{name: 1 for name in ("evaluation.patience", "evaluation.max_examples", "data.workers", "data.stream_window")},
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
# The files that verbs write into a run directory. --overwrite true deletes these (except the first two) and no others.
LEFT_BY_RUNS = (
    *(".lock", "run.json"),
    *("config.yaml", "summary.json", "metrics.jsonl", "skipped.jsonl", "report.html", "wandb_id.txt"),
    *("evaluation.json", "predictions.jsonl", "examples.json", FOLDER),
    *("groups.json", "model_card.md"),
    *("calibration.json", "uncertainty.json", "out_of_domain"),
    *("backbone", "checkpoints", "tensorboard", "wandb", "evaluation", "profile"),
)
BEGINNING = LEFT_BY_RUNS[:2]  # allowed in a folder without config.yaml, beside temporary files and given examples


class Record(TypedDict):
    """run.json.

    Attributes:
      format: see FORMAT.
      status: deleting: --overwrite true is deleting an earlier run; begun; finished: the final results are written.
      overwrite: whether the run started with --overwrite true. The same command resumes it until it is finished.
      data: fingerprint of the training data.
    """

    format: int
    status: Literal["deleting", "begun", "finished"]
    overwrite: bool
    data: NotRequired[str]


class Holder(TypedDict):
    """The text of .lock: the process that holds it."""

    pid: int
    host: str
    since: str


@dataclass(frozen=True)
class Found:
    """The state of a run directory: an earlier run to `delete`, or the settings `before` of a run to resume."""

    delete: bool = False
    before: Config | None = None


# ---------------------------------------------------------------- settings


def check_settings(config: Config) -> None:
    """Checks the ranges of all numeric settings before training starts.

    Floats are compared after rounding to float32, the optimizer's arithmetic. Raises ValueError naming the setting.
    """
    check_abstain(config.abstain)
    tree = to_dict(config)
    for name, each in _floats(tree):
        if not np.isfinite(each):
            raise ValueError(f"{name} must be a finite number, but is {each}.")
    settings = flatten(tree)
    for name in {**AT_LEAST, **AT_MOST, **dict.fromkeys((*ABOVE_ZERO, *BELOW_ONE))}:
        value = settings[name]
        if not isinstance(value, int | float):  # null
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
    """(dotted name, value) of all floats in settings, including those in lists."""
    below: Iterator[tuple[str, object]] = iter(())
    if isinstance(tree, float):
        yield name, tree
    elif isinstance(tree, dict):
        below = ((f"{name}.{key}" if name else str(key), value) for key, value in tree.items())
    elif isinstance(tree, list | tuple):
        below = ((f"{name}[{number}]", value) for number, value in enumerate(tree))
    for inner, value in below:
        yield from _floats(value, inner)


def flatten(tree: object, prefix: str = "") -> dict[str, object]:
    if not isinstance(tree, dict):
        return {prefix[:-1]: tree}
    return {name: value for key, below in tree.items() for name, value in flatten(below, f"{prefix}{key}.").items()}


def changed_settings(before: Config, now: Config, free: tuple[str, ...]) -> dict[str, tuple[object, object]]:
    """Dotted name -> (value before, value now) of changed settings, except those in `free` or below a name in it."""
    old, new = flatten(to_dict(before)), flatten(to_dict(now))
    other_task = old["task.type"] != new["task.type"]  # another task has other setting names
    return {
        name: (old.get(name), new.get(name))
        for name in sorted(old | new)
        if old.get(name) != new.get(name)
        and not any(f"{name}.".startswith(f"{prefix}.") for prefix in free)
        and not (other_task and name.startswith("task.") and name != "task.type")
    }


def resuming(step: int, before: Config | None, now: Config) -> str:
    """The line printed on resume: the step, the changed settings and their effect on the learning rate."""
    line = f"resuming from step {step}"
    if before is None:
        return line
    changes = changed_settings(before, now, FREE_ON_RESUME)
    if changes:
        texts = [f"{name} {shorten(str(a), 60)} -> {shorten(str(b), 60)}" for name, (a, b) in changes.items()]
        line += f" with changed settings: {', '.join(texts)}"
    if "steps" in changes and step < now.steps and now.optimizer.learning_rate is not None:
        then, rate = (float(learning_rate_schedule(c.optimizer, c.steps)(step)) for c in (before, now))
        line += (
            f"; the learning rate now follows the {now.optimizer.schedule} schedule over {now.steps:,} steps: "
            f"{rate:.3g} at the next step instead of {then:.3g} (schedule over {before.steps:,} steps)"
        )
    return line


# ---------------------------------------------------------------- lock


class RunLock:
    """The lock on a run directory: acquired by `take`, released at the end of the block or process.

    Of several processes, only the first one takes it. A run directory in a bucket is also locked there, and its
    working copy is brought up to date, at the start of the block; from `begun` to the end, the bucket follows the copy.
    """

    def __init__(self, run_dir: str | Path):
        self.run_dir = run_folder(run_dir)
        self._file: IO[str] | None = None
        self._mirror = Mirror(str(run_dir)) if is_url(run_dir) else None

    def take(self) -> None:
        """Creates the run directory if needed, and locks it.

        Raises ValueError, naming the holder, if another process holds the lock; OSError if it is not writable.
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
            say(f"warning: {self.run_dir} cannot be locked ({error.strerror}): do not start a second training there.")
            free = True
        if not free:
            file.close()
            raise ValueError(held(self.run_dir))
        self._file = file
        since = datetime.now().astimezone().isoformat(timespec="seconds")
        holder: Holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": since}
        file.truncate(0)  # in place: a replacement file would not be locked
        file.write(json.dumps(holder) + "\n")
        file.flush()

    def begun(self) -> None:
        """The run directory is ready. Call it in the first process only."""
        if self._mirror is not None:
            self._mirror.start()

    def share(self) -> None:
        """Shows all processes, which may have working copies of their own, what the first one wrote."""
        if self._mirror is not None:
            once(self._mirror.push)
            self._mirror.follow()

    @property
    def exchange(self) -> Exchange | None:
        return self._mirror if jax.process_count() > 1 else None

    def __enter__(self) -> Self:
        if self._mirror is not None:
            once(self._mirror.open)
            self._mirror.follow()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._mirror is not None:
                self._mirror.close()
        finally:
            if self._file is not None:
                self._file.close()
                self._file = None


def held(run_dir: Path) -> str:
    """The error message for a run directory that another process has locked."""
    return f"{run_dir} is in use by {_holder(run_dir)}. Wait for it, stop it, or choose another run_dir."


def check_not_training(run_dir: Path) -> None:
    """Raises ValueError for a run whose training has not ended, because its best checkpoint may change."""
    url = url_of_run(run_dir)
    holder = _holder(run_dir) if _is_held(run_dir) else Mirror(url).lock.training() if url is not None else None
    if holder is not None:
        raise ValueError(
            f"{run_dir} is still training ({holder}), and its best checkpoint may change: wait for it, or "
            "choose a checkpoint with --step."
        )


def _holder(run_dir: Path) -> str:
    try:
        holder = read_json(run_dir / ".lock", Holder)
        return f"process {holder['pid']} on {holder['host']}, since {holder['since']}"
    except (ValueError, OSError):
        return "another process"


def _is_held(run_dir: Path) -> bool:
    try:
        with open(run_dir / ".lock", "rb") as file:
            return not try_lock(file, shared=True)
    except OSError:
        return False


# ---------------------------------------------------------------- checks


def read_record(run_dir: Path) -> Record | None:
    """run.json, or None without one (format 1).

    Raises ValueError if it is damaged or from a later version.
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
    """Raises ValueError, with the reason, unless a folder is a run directory that this version can open."""
    if not run_dir.is_dir():
        raise ValueError(f"{run_dir} is not a run directory: there is no such folder.")
    record = read_record(run_dir)
    if record is not None and record["status"] == "deleting":
        raise ValueError(_half_deleted(run_dir))
    if not (run_dir / "config.yaml").is_file():
        begun = "the run stopped before its first step. Run its command again" if record else "it has no config.yaml"
        raise ValueError(f"{run_dir} is not a run directory: {begun}.")


def is_run_dir(path: Path) -> bool:
    """Whether a folder is a run directory. Raises as `check_readable` if it is one that cannot be opened."""
    if not any((path / name).is_file() for name in ("config.yaml", "run.json")):
        return False
    check_readable(path)
    return True


def check_run_dir(config: Config) -> Path:
    """The run directory; ValueError if it is something else, in use, or holds a run that cannot be resumed."""
    run_dir = run_folder(config.run_dir)
    if is_first() and _is_held(run_dir):
        raise ValueError(held(run_dir))
    _find(config, run_dir)
    return run_dir


def _find(config: Config, run_dir: Path, data: str | None = None) -> Found:
    """The state of the run directory, for training on data with this fingerprint (None: not known yet)."""
    if not run_dir.exists():
        return Found()
    if not run_dir.is_dir():
        raise ValueError(f"run_dir {run_dir} is a file. Choose another run_dir.")
    settings, record = run_dir / "config.yaml", read_record(run_dir)
    begun = BEGINNING if record is None else (*BEGINNING, FOLDER)
    left = [path.name for path in run_dir.iterdir() if not is_temporary(path.name) and path.name not in begun]
    if record is not None and (record["status"] == "deleting" or not settings.is_file()):
        if set(left) & set(LEFT_BY_RUNS) and not config.overwrite:
            raise ValueError(_half_deleted(run_dir))
        return Found(delete=True)
    if not settings.is_file():
        if left:
            raise ValueError(f"{run_dir} exists but is not a run directory (no config.yaml). Choose another run_dir.")
        return Found()
    is_ours = b"\nrun_dir:" in settings.read_bytes()
    if config.overwrite and is_ours and not _began_here(config, settings, record, data):
        return Found(delete=True)
    try:
        before = load(settings)
    except ValueError as error:
        raise ValueError(
            f"{run_dir}/config.yaml cannot be read by this version ({error}). Choose another run_dir"
            + (", or delete the run with --overwrite true." if is_ours else ".")
        ) from error
    _check_resumable(config, before, run_dir, data, record)
    return Found(before=before)


def _began_here(config: Config, settings: Path, record: Record | None, data: str | None) -> bool:
    """Whether the same command, with --overwrite true, started the run on the same data and did not finish it."""
    if record is None or record["status"] != "begun" or not record["overwrite"]:
        return False
    if data is not None and record.get("data", data) != data:
        return False
    try:
        return not changed_settings(load(settings), config, FREE_ON_RESUME)
    except ValueError:
        return False


def _check_resumable(config: Config, before: Config, run_dir: Path, data: str | None, record: Record | None) -> None:
    """Raises ValueError if there is a checkpoint, and settings or data changed in a way that forbids a resume."""
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
            "A run resumes with its own settings; steps alone may grow. For other settings, start a new run from its "
            f"parameters (another run_dir, and init_from: {run_dir}), or delete it with --overwrite true."
        )
    if config.steps < max(saved):
        raise ValueError(
            f"steps is {config.steps}, but the run in {run_dir} is already at step {max(saved)}. Set steps to at least "
            f"{max(saved)}, choose another run_dir, or delete the run with --overwrite true."
        )
    if data is not None and record is not None:
        check_same_data(record.get("data", data), data, run_dir)


def _half_deleted(run_dir: Path) -> str:
    return (
        f"{run_dir} is half deleted: --overwrite true was interrupted, or config.yaml was removed. Repeat the command "
        "with --overwrite true, or choose another run_dir."
    )


def check_same_data(before: str, now: str, run_dir: Path) -> None:
    """Raises ValueError if two fingerprints of the training data differ."""
    if before != now:
        raise ValueError(
            f"the training data changed since the run in {run_dir} started, so it cannot be resumed. Restore the data, "
            "choose another run_dir, or delete the run with --overwrite true."
        )


# ---------------------------------------------------------------- start, finish


def start_run_dir(config: Config, run_dir: Path, lock: RunLock, data: str, given: Given | None = None) -> Config | None:
    """Locks and creates the run directory; deletes an earlier run's files if --overwrite true applies.

    Args:
      data: fingerprint of the training data.
      given: examples to write into it, see `runs.given`.

    Returns, in the first process, the settings of the run to resume (None: a new run).
    """
    settings = _agreed(replace(config, overwrite=False))
    found = Found()

    def start() -> None:
        nonlocal found
        lock.take()
        found = _find(config, run_dir, data)  # again: another process may have changed it since `check_run_dir`
        record = read_record(run_dir)
        if found.delete:
            write_json(run_dir / "run.json", Record(format=FORMAT, status="deleting", overwrite=True))
            delete_given(run_dir, config)
            for path in (run_dir / name for name in LEFT_BY_RUNS if name not in (*BEGINNING, FOLDER)):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
        for folder in (run_dir, *(path for path in run_dir.iterdir() if path.is_dir())):
            sweep(folder)
        began = config.overwrite if found.before is None else record is not None and record["overwrite"]
        write_json(run_dir / "run.json", Record(format=FORMAT, status="begun", overwrite=began, data=data))
        write_given(run_dir, given or {})  # before the settings that name them
        write_text(run_dir / "config.yaml", settings)
        lock.begun()

    once(start)
    lock.share()
    check_shared(run_dir / "config.yaml", settings)
    return found.before


def _agreed(config: Config) -> str:
    """The first process's settings as YAML. Raises ValueError where others differ, but for where they prepare data."""
    common = replace(config, data=replace(config.data, store=None, workers=None))
    said = [json.loads(each) for each in exchange(json.dumps([to_yaml(config), to_yaml(common)]).encode())]
    if others := [number for number, each in enumerate(said) if each[1] != said[0][1]]:
        raise ValueError(
            f"processes {', '.join(map(str, others))} have other settings than process 0: start all with the same "
            "command (data.store and data.workers alone may differ)."
        )
    return str(said[0][0])


def is_finished(run_dir: Path) -> bool:
    """Whether a folder is a run directory whose training has ended by itself."""
    record = read_record(run_dir)
    return record is not None and record["status"] == "finished"


def finish_run_dir(run_dir: Path) -> None:
    """Marks the run as finished. Call it in the first process only."""
    record = read_record(run_dir)
    if record is not None:
        write_json(run_dir / "run.json", record | {"status": "finished"})
