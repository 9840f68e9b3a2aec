"""Turns the sums that the train step accumulates on the device into log lines, without waiting for the device."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import jax

from instructrec_jax.distributed.compilations import Compilations
from instructrec_jax.training.tracking import ProgressBar, Tracker

Part = Literal["input", "checkpoint", "logging"]
PARTS: tuple[Part, ...] = ("input", "checkpoint", "logging")
LAG = 4  # steps that may be in flight while an earlier step is checked


@dataclass
class Meter:
    """Counts tokens and time between two log lines.

    A line's numbers are fetched (`flush`) after the next step was dispatched, so the device never idles. Time spent on
    waiting for a batch, saving and logging is `timed`; the rest is the steps' own.

    Args:
      learning_rate: update number, from 0 -> its learning rate.
      max_nonfinite: training stops after N updates in a row that were skipped because they were not finite.
      flops: tokens of a window -> model FLOPs, see `training.flops`.
      peak: peak FLOP/s of all devices; where it is known, MFU = FLOPs / seconds / peak is logged.
      compilations: counts the process's programs, which are logged, beside the shapes of the step's batches.
    """

    tracker: Tracker
    bar: ProgressBar
    learning_rate: Callable[[int], float]
    max_nonfinite: int
    flops: Callable[[int], float] | None = None
    peak: float | None = None
    compilations: Compilations = field(default_factory=Compilations)
    _shapes: set[object] = field(default_factory=set)
    _watched: deque[tuple[int, jax.Array]] = field(default_factory=deque)
    _pending: tuple[int, dict[str, jax.Array], int, int, dict[str, int]] | None = None
    _tokens: int = 0
    _parts: dict[Part, float] = field(default_factory=dict)
    _started: float = field(default_factory=time.perf_counter)
    _window_started: float = field(default_factory=time.perf_counter)

    def count(self, tokens: int) -> None:
        self._tokens += tokens

    def is_new(self, shape: object) -> bool:
        """Whether no batch before had this shape, for which the step is compiled."""
        new = shape not in self._shapes
        self._shapes.add(shape)
        return new

    @contextmanager
    def timed(self, part: Part) -> Iterator[None]:
        """Counts the time of the with block as spent on `part`."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._parts[part] = self._parts.get(part, 0.0) + time.perf_counter() - began

    def pause(self, seconds: float) -> None:
        """Excludes time that was not spent on training from the current window."""
        self._window_started += seconds

    def watch(self, step: int, sums: dict[str, jax.Array]) -> None:
        """Checks every step `LAG` steps later, when it is done or waiting for it costs nothing.

        All processes check the same step at the same point of the loop, so either all of them stop or none.

        Raises:
          FloatingPointError: `max_nonfinite` updates in a row were not finite.
        """
        self._watched.append((step, sums["skipped_in_a_row"]))
        if len(self._watched) > LAG:
            self._check_oldest()

    def finish(self, step: int, skipped: jax.Array) -> None:
        """Checks the remaining steps when the loop ends.

        Args:
          skipped: number of the run's `step` updates that were skipped.

        Raises:
          FloatingPointError: `max_nonfinite` updates in a row were not finite, or none of the updates was finite.
        """
        while self._watched:
            self._check_oldest()
        if step and int(jax.device_get(skipped)) >= step:
            raise FloatingPointError(
                f"the loss was NaN or infinite in each of the {step:,} steps, so nothing was learned. Lower "
                "optimizer.learning_rate, and check the examples for extreme targets and the weights for NaN."
            )

    def _check_oldest(self) -> None:
        step, skipped_in_a_row = self._watched.popleft()
        self._check(step, int(jax.device_get(skipped_in_a_row)))

    def _check(self, step: int, in_a_row: int) -> None:
        if in_a_row >= self.max_nonfinite:
            raise FloatingPointError(
                f"{in_a_row} updates in a row up to step {step} were NaN or infinite and were skipped "
                "(optimizer.max_nonfinite). Lower optimizer.learning_rate, set optimizer.clip_norm, or check the "
                "examples."
            )

    def close_window(self, step: int, sums: dict[str, jax.Array], total_tokens: int) -> None:
        """Ends the window at `step`; the device may still compute `sums`."""
        programs = {"step_shapes": len(self._shapes), "compilations": self.compilations.compiled}
        self._pending = (step, sums, total_tokens, self._tokens, programs)
        self._tokens = 0

    def flush(self) -> None:
        """Logs the last closed window, if it is not logged yet.

        Raises:
          FloatingPointError: `max_nonfinite` updates in a row were not finite.
        """
        if self._pending is None:
            return
        step, on_device, total_tokens, tokens, programs = self._pending
        self._pending = None
        sums = {name: float(value) for name, value in jax.device_get(on_device).items()}
        now = time.perf_counter()  # steps run asynchronously: the window ends when its numbers arrive
        seconds, self._window_started = now - self._window_started, now
        parts, self._parts = {part: self._parts.get(part, 0.0) for part in PARTS}, {}
        loss = sums["loss"] / sums["weight"] if sums["weight"] else float("nan")
        values = {
            "loss": loss,
            "grad_norm": sums["grad_norm"] / max(sums["steps"], 1),
            "learning_rate": self.learning_rate(max(0, step - 1 - int(sums["skipped"]))),
            "skipped_updates": int(sums["skipped"]),
            "tokens": total_tokens,
            "tokens_per_second": tokens / seconds,
            "seconds": time.perf_counter() - self._started,
            **{f"{part}_share": spent / seconds for part, spent in parts.items()},
            "step_share": max(0.0, 1 - sum(parts.values()) / seconds),
            **programs,
        }
        values |= pseudo_labels(sums)
        if self.flops is not None and self.peak is not None:
            values["mfu"] = self.flops(tokens) / seconds / self.peak
        with self.timed("logging"):
            self.tracker.log("train", step, values)
        self.bar.update(step, loss, tokens / seconds, values.get("mfu"))
        self._check(step, int(sums["skipped_in_a_row"]))


def pseudo_labels(sums: Mapping[str, float]) -> dict[str, float]:
    """What a window's sums say of unlabeled examples: see `semi_supervised.SUMS`. {} for a run without any.

    `pseudo_accuracy` is over the pseudo-labels that were learned and whose label the file has; left out without any.
    """
    if not sums.get("unlabeled"):
        return {}
    of_all = {"unlabeled_loss": "unlabeled_loss", "pseudo_share": "pseudo_used", "pseudo_threshold": "pseudo_threshold"}
    found = {name: sums[total] / sums["unlabeled"] for name, total in of_all.items()}
    known = sums["pseudo_known"]
    return found | ({"pseudo_accuracy": sums["pseudo_right"] / known} if known else {})
