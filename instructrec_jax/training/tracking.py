"""What a run tells the outside while it goes: metrics.jsonl, TensorBoard, W&B, and the progress bar."""

import math
import os
import re
import sys
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypedDict

import jax
from tqdm import tqdm

from instructrec_jax.extras import require
from instructrec_jax.files import append_jsonl, check_type, read_jsonl, write_jsonl, write_text

TIMING_FIELDS = (
    *("seconds", "tokens_per_second", "mfu"),
    *("input_share", "checkpoint_share", "logging_share", "step_share"),
)
"""The only fields of metrics.jsonl that may differ between two runs of the same settings."""


@dataclass
class TrackingConfig:
    """What is recorded while training runs."""

    log_every: int = 10  # steps between two lines of metrics.jsonl
    tensorboard: bool = True  # also write TensorBoard files, to RUN/tensorboard
    wandb_project: str | None = None  # also log to this Weights & Biases project; needs the extra `wandb`


class _Row(TypedDict):
    """A line of metrics.jsonl; its other fields are numbers or null."""

    kind: Literal["train", "evaluation"]
    step: int


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl. Raises ValueError, naming file, line and field, where it is damaged."""
    rows: list[Any] = read_jsonl(path, _Row)
    for number, row in enumerate(rows, 1):
        check_type(row, dict[str, float | str | None], where := f"{path}, line {number}")
        if not 0 <= row["step"] < 2**31:
            raise ValueError(f"{where}: step should be a number of steps, but is {row['step']}. Repair or remove it.")
    return rows


class Tracker:
    """The record of one run: metrics.jsonl (the source of the report), TensorBoard and W&B show the same.

    metrics.jsonl has one row per (kind, step). Opening the tracker drops the rows after `resume_step`, the
    step of the checkpoint that the run starts from (0: a new run), so that a resumed run ends with the rows
    of one that was never interrupted. Logging a (kind, step) again keeps its row if only TIMING_FIELDS
    differ, and replaces it in place otherwise. TensorBoard files follow within seconds. W&B cannot forget:
    steps repeated after a resume appear twice there.

    With several processes, all may hold a tracker; only process 0 writes.
    """

    def __init__(
        self, run_dir: str | Path, config: TrackingConfig, resume_step: int, settings: Mapping[str, Any]
    ) -> None:
        """settings: the run's whole configuration as a nested dictionary, shown by W&B."""
        if config.log_every < 1:
            raise ValueError(f"tracking.log_every must be at least 1, but is {config.log_every}.")
        self._path = Path(run_dir) / "metrics.jsonl"
        self._rows: dict[tuple[str, int], dict[str, Any]] = {}
        self._tensorboard: Any = None
        self._wandb: Any = None
        self._writes = jax.process_index() == 0
        if not self._writes:
            return
        if config.wandb_project:
            self._wandb = _open_wandb(Path(run_dir), config.wandb_project, settings)
        if self._path.exists():
            kept = [row for row in read_metrics(self._path) if row["step"] <= resume_step]
            self._rows = {(row["kind"], row["step"]): row for row in kept}
        write_jsonl(self._path, self._rows.values())
        if config.tensorboard:
            from tensorboardX import SummaryWriter

            # Files are named by the second and read in the order of their names: a run killed and resumed
            # within one second must neither overwrite its first file nor come before it.
            suffix = f".{time.time_ns()}"
            folder = str(Path(run_dir) / "tensorboard")
            self._tensorboard = SummaryWriter(folder, purge_step=resume_step + 1, flush_secs=1, filename_suffix=suffix)

    def log(self, kind: Literal["train", "evaluation"], step: int, values: Mapping[str, Any]) -> None:
        """Record scalars (numbers, NumPy or jax scalars) of one step; on disk when this returns.

        NaN and infinity become null in metrics.jsonl.
        """
        if not self._writes:
            return
        if clash := {"kind", "step"} & set(values):
            raise ValueError(f"{kind} values at step {step}: {sorted(clash)} cannot be the name of a value.")
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
                tag = re.sub(r"[^-/\w.]", "_", f"{kind}/{name}")  # NDCG@10 is no name for TensorBoard
                self._tensorboard.add_scalar(tag, value, int(step))
        if self._wandb is not None:
            named = {f"{kind}/{name}": value for name, value in numbers.items()}
            self._wandb.log({"step": int(step), **named})

    def close(self) -> None:
        """Finish TensorBoard and W&B; metrics.jsonl is complete at any time."""
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
    """Progress on stderr: a bar in a terminal, one line per `update` with numbers elsewhere (files, CI)."""

    def __init__(self, total: int, initial: int = 0) -> None:
        self._total, self._initial, self._step = total, initial, initial
        self._visible = jax.process_index() == 0
        # Time and step of the first update: the estimate leaves out what came before it, compiling above all.
        self._start: tuple[float, int] | None = None
        self._bar: Any = None
        if self._visible and sys.stderr.isatty():
            # Some terminals (a container's, say) report no width, for which tqdm would draw nothing.
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
        """`step` updates are done. tokens_per_second counts real tokens, not padding; mfu is a share of 1.

        Without `loss` only the bar moves and nothing is printed elsewhere, so this may be called every step.
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
        """Print a message on stderr without tearing the bar apart."""
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        elif self._visible:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leave the bar as it stands and end its line."""
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
    """Progress of a run of `total` steps, `initial` of which an earlier start has done."""
    return ProgressBar(total, initial)


def _number(name: str, value: Any) -> int | float:
    """A Python number from a number or a zero-dimensional array."""
    if not isinstance(value, int | float):
        try:
            value = value.item()
        except (AttributeError, ValueError, TypeError):
            raise ValueError(f"the value {name!r} must be one number, got {value!r:.60}.") from None
    if not isinstance(value, int | float):
        raise ValueError(f"the value {name!r} must be a real number, got {value!r:.60}.")
    return value


def _finite(value: int | float) -> int | float | None:
    return value if math.isfinite(value) else None


def _without_timing(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in TIMING_FIELDS}


def _open_wandb(run_dir: Path, project: str, settings: Mapping[str, Any]) -> Any:
    """A W&B run that keeps its id over a resume, and is recorded offline when there is no connection."""
    require("wandb", "tracking.wandb_project")
    import wandb

    name = run_dir / "wandb_id.txt"
    if not name.exists():
        write_text(name, uuid.uuid4().hex[:12] + "\n")
    run_id = name.read_text(encoding="utf-8").strip()

    def start(mode: str | None) -> Any:
        names = {"project": project, "id": run_id, "name": run_dir.name}
        return wandb.init(**names, dir=run_dir, config=dict(settings), mode=mode, resume="allow")

    try:
        run = start(None)  # or what $WANDB_MODE says
    except wandb.errors.Error as error:
        print(
            f"W&B is not reachable ({error}). This run is recorded offline in {run_dir / 'wandb'}; "
            f"`wandb sync` uploads it later.",
            file=sys.stderr,
        )
        wandb.teardown()  # the failed start still holds the id
        run = start("offline")
    # Steps may go back on a resume, which W&B's own counter refuses: plots use ours.
    run.define_metric("step")
    run.define_metric("*", step_metric="step")
    return run
