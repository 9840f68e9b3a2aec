"""Tracking of a run: metrics.jsonl, TensorBoard, W&B and the progress bar."""

import math
import os
import re
import sys
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, NoReturn, Self, TypedDict

import jax
import numpy as np
from tqdm import tqdm

from instructrec_jax.extras import require
from instructrec_jax.files import append_jsonl, check_type, read_jsonl, write_jsonl, write_text
from instructrec_jax.training.training_config import TrackingConfig

if TYPE_CHECKING:
    import tensorboardX
    import wandb

TIMING_FIELDS = (
    *("seconds", "tokens_per_second", "mfu"),
    *("input_share", "checkpoint_share", "logging_share", "step_share"),
    *("step_shapes", "compilations"),
)
"""The fields of metrics.jsonl that may differ between two runs with the same settings."""


class _Row(TypedDict):
    """The required fields of a line of metrics.jsonl; all others are numbers or null."""

    kind: Literal["train", "evaluation"]
    step: int


def read_metrics(path: Path) -> list[dict[str, object]]:
    """The rows of metrics.jsonl. Raises ValueError, naming file, line and field, for a malformed row."""
    return [dict(row) for row in _read_rows(path)]


def _read_rows(path: Path) -> list[_Row]:
    rows = read_jsonl(path, _Row)
    for number, row in enumerate(rows, 1):
        check_type(row, dict[str, float | str | None], where := f"{path}, line {number}")
        if not 0 <= row["step"] < 2**31:
            raise ValueError(f"{where}: step should be 0 to 2³¹ − 1, but is {row['step']}. Correct or delete it.")
    return rows


class Tracker:
    """Logs a run to metrics.jsonl (the source of the report), TensorBoard and W&B.

    metrics.jsonl has one row per (kind, step). Opening the tracker drops rows after `resume_step`, so that a resumed
    run ends with the same rows as an uninterrupted one. Logging a (kind, step) again keeps its row if only
    TIMING_FIELDS differ, else replaces it. TensorBoard files follow within seconds. W&B cannot delete: steps that a
    resumed run repeats appear twice there.

    With several processes each may have a tracker; only process 0 writes.
    """

    def __init__(
        self, run_dir: str | Path, config: TrackingConfig, resume_step: int, settings: Mapping[str, object]
    ) -> None:
        """Opens the files.

        Args:
          resume_step: step of the checkpoint that the run resumes from; 0: a new run.
          settings: the run's configuration as a nested dictionary, for W&B.
        """
        if config.log_every < 1:
            raise ValueError(f"tracking.log_every must be at least 1, but is {config.log_every}.")
        self._path = Path(run_dir) / "metrics.jsonl"
        self._rows: dict[tuple[str, int], Mapping[str, object]] = {}
        self._tensorboard: tensorboardX.SummaryWriter | None = None
        self._wandb: wandb.Run | None = None
        self._writes = jax.process_index() == 0
        if not self._writes:
            return
        if config.wandb_project:
            self._wandb = _open_wandb(Path(run_dir), config.wandb_project, settings)
        if self._path.exists():
            kept = [row for row in _read_rows(self._path) if row["step"] <= resume_step]
            self._rows = {(row["kind"], row["step"]): row for row in kept}
        write_jsonl(self._path, self._rows.values())
        if config.tensorboard:
            from tensorboardX import SummaryWriter

            # TensorBoard files are named by the second and read in name order: the suffix keeps apart the files of a
            # run that is killed and resumed within one second.
            suffix = f".{time.time_ns()}"
            folder = str(Path(run_dir) / "tensorboard")
            self._tensorboard = SummaryWriter(folder, purge_step=resume_step + 1, flush_secs=1, filename_suffix=suffix)

    def log(self, kind: Literal["train", "evaluation"], step: int, values: Mapping[str, object]) -> None:
        """Logs scalars (numbers, NumPy or jax scalars) of one step; metrics.jsonl is written when it returns.

        NaN and infinity become null in metrics.jsonl. Raises ValueError for a value that is not one real number.
        """
        if not self._writes:
            return
        if clash := {"kind", "step"} & set(values):
            raise ValueError(f"{kind} values at step {step}: {sorted(clash)} are reserved names: rename the values.")
        fetched = zip(values, jax.device_get(list(values.values())), strict=True)
        numbers = {name: _number(name, value) for name, value in fetched}
        row = {"kind": kind, "step": int(step)} | {name: _finite(value) for name, value in numbers.items()}
        key = (kind, int(step))
        known = self._rows.get(key)
        self._rows[key] = row
        if known is None:
            append_jsonl(self._path, [row])
        elif _without_timing(known) != _without_timing(row):
            write_jsonl(self._path, self._rows.values())
        else:
            self._rows[key] = known
        if self._tensorboard is not None:
            for name, value in numbers.items():
                tag = re.sub(r"[^-/\w.]", "_", f"{kind}/{name}")  # TensorBoard does not allow names such as NDCG@10
                self._tensorboard.add_scalar(tag, value, int(step))
        if self._wandb is not None:
            named = {f"{kind}/{name}": value for name, value in numbers.items()}
            self._wandb.log({"step": int(step), **named})

    def close(self) -> None:
        """Closes TensorBoard and W&B; metrics.jsonl is always complete."""
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()
        self._tensorboard = self._wandb = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class ProgressBar:
    """Progress on stderr: a bar in a terminal, else (files, CI) one line per `update` with numbers."""

    def __init__(self, total: int, initial: int = 0) -> None:
        self._total, self._initial, self._step = total, initial, initial
        self._visible = jax.process_index() == 0
        # Time and step of the first update: the estimate of the time left excludes compilation.
        self._start: tuple[float, int] | None = None
        self._bar: tqdm[NoReturn] | None = None
        if self._visible and sys.stderr.isatty():
            # Some terminals (in containers) report width 0, with which tqdm would draw nothing.
            known_width = os.get_terminal_size(sys.stderr.fileno()).columns > 0
            self._bar = tqdm(
                total=total,
                initial=initial,
                dynamic_ncols=known_width,
                ncols=None if known_width else 100,
                nrows=None if known_width else 24,
                bar_format="{percentage:3.0f}% {bar} {n_fmt}/{total_fmt} steps{postfix}, {remaining} left",
            )

    def update(
        self, step: int, loss: float | None = None, tokens_per_second: float | None = None, mfu: float | None = None
    ) -> None:
        """Shows that `step` steps are done. Without `loss` only the bar moves, so every step may call it.

        Args:
          tokens_per_second: without padding.
          mfu: model FLOPs utilization, from 0 to 1.
        """
        if not self._visible:
            return
        numbers = [] if loss is None else [f"loss {float(loss):.4f}"]
        if tokens_per_second is not None:
            numbers.append(f"{float(tokens_per_second):,.0f} tokens/s")
        if mfu is not None:
            numbers.append(f"MFU {float(mfu):.0%}")
        if self._bar is not None:
            if numbers:
                self._bar.set_postfix_str(", ".join(numbers), refresh=False)
            self._bar.update(step - self._step)
        elif numbers:
            width = len(str(self._total))
            percent = 100 * step // max(1, self._total)
            line = [f"step {step:>{width}}/{self._total} ({percent}%)", *numbers, f"{self._left(step)} left"]
            print(", ".join(line), file=sys.stderr, flush=True)
        if self._start is None:
            self._start = (time.perf_counter(), step)
        self._step = step

    def print(self, text: str) -> None:
        """Prints a message on stderr above the bar."""
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        elif self._visible:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Ends the line of the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _left(self, step: int) -> str:
        if step >= self._total:
            return tqdm.format_interval(0)
        if self._start is None or step <= self._start[1]:
            return "?"
        started, first = self._start
        return tqdm.format_interval((time.perf_counter() - started) / (step - first) * (self._total - step))


def progress_bar(total: int, initial: int = 0) -> ProgressBar:
    """Progress of a run of `total` steps that resumes after `initial` steps."""
    return ProgressBar(total, initial)


def _number(name: str, value: object) -> int | float:
    """A number or zero-dimensional array as a Python number."""
    if not isinstance(value, int | float):
        if not isinstance(value, np.ndarray | np.generic | jax.Array) or value.size != 1:
            raise ValueError(f"the value {name!r} must be one number, but is {value!r:.60}.")
        value = value.item()
    if not isinstance(value, int | float):
        raise ValueError(f"the value {name!r} must be a real number, but is {value!r:.60}.")
    return value


def _finite(value: int | float) -> int | float | None:
    return value if math.isfinite(value) else None


def _without_timing(row: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in row.items() if name not in TIMING_FIELDS}


def _open_wandb(run_dir: Path, project: str, settings: Mapping[str, object]) -> "wandb.Run":
    """A W&B run with the same id after a resume, recorded offline without a connection."""
    require("wandb", "tracking.wandb_project")
    import wandb

    name = run_dir / "wandb_id.txt"
    if not name.exists():
        write_text(name, uuid.uuid4().hex[:12] + "\n")
    run_id = name.read_text(encoding="utf-8").strip()

    def start(mode: Literal["offline"] | None) -> "wandb.Run":
        return wandb.init(
            project=project,
            id=run_id,
            name=run_dir.name,
            dir=run_dir,
            config=dict(settings),
            mode=mode,
            resume="allow",
        )

    try:
        run = start(None)  # None: $WANDB_MODE decides
    except wandb.errors.Error as error:
        print(
            f"W&B is not reachable ({error}). The run is recorded offline in {run_dir / 'wandb'}: "
            "upload it later with `wandb sync`.",
            file=sys.stderr,
        )
        wandb.teardown()  # frees the id of the failed start
        run = start("offline")
    # A resume may repeat steps, which W&B's own counter refuses: plots use our step.
    run.define_metric("step")
    run.define_metric("*", step_metric="step")
    return run
