"""Turns the sums that the step keeps on the device into lines of the log, without waiting for the device."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import jax

from instructrec_jax.training.tracking import ProgressBar, Tracker

Part = Literal["input", "checkpoint", "logging"]
PARTS: tuple[Part, ...] = ("input", "checkpoint", "logging")
LAG = 4  # steps that may be under way while an earlier one is looked at


@dataclass
class Meter:
    """Counts tokens and time between two lines of the log.

    A line's numbers are fetched only once the next step is under way (`flush`), so the device never idles for them.
    What of the time went into waiting for a batch, saving and logging is `timed`; the rest is the steps themselves.

    Args:
      learning_rate: of an update, by its number from 0.
      max_nonfinite: updates in a row that may be skipped because they were not finite.
      flops: a window's tokens -> model FLOP, see `training.flops`.
      peak: FLOP/s of all devices at best; where it is known, MFU = FLOP / seconds / peak is logged.
    """

    tracker: Tracker
    bar: ProgressBar
    learning_rate: Callable[[int], float]
    max_nonfinite: int
    flops: Callable[[int], float] | None = None
    peak: float | None = None
    _watched: deque[tuple[int, jax.Array]] = field(default_factory=deque)
    _pending: tuple[int, dict[str, jax.Array], int, int] | None = None
    _tokens: int = 0
    _parts: dict[Part, float] = field(default_factory=dict)
    _started: float = field(default_factory=time.perf_counter)
    _window_started: float = field(default_factory=time.perf_counter)

    def count(self, tokens: int) -> None:
        self._tokens += tokens

    @contextmanager
    def timed(self, part: Part) -> Iterator[None]:
        """Counts the time of the block as spent on `part`."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._parts[part] = self._parts.get(part, 0.0) + time.perf_counter() - began

    def pause(self, seconds: float) -> None:
        """Takes time that was not spent on training out of the present window."""
        self._window_started += seconds

    def watch(self, step: int, sums: dict[str, jax.Array]) -> None:
        """Looks at every step, `LAG` steps later: then it is done, or so much is under way that waiting costs nothing.

        All processes look at the same step at the same place in the loop, so all of them stop, or none.

        Raises:
          FloatingPointError: too many updates in a row were not finite.
        """
        self._watched.append((step, sums["skipped_in_a_row"]))
        if len(self._watched) > LAG:
            self._check_oldest()

    def finish(self, step: int, skipped: jax.Array) -> None:
        """Looks at the steps that are left when the loop ends.

        Args:
          skipped: how many of the run's `step` updates were skipped.

        Raises:
          FloatingPointError: too many updates in a row were not finite, or not a single one was finite: nothing was
            learned, which is no success.
        """
        while self._watched:
            self._check_oldest()
        if step and int(jax.device_get(skipped)) >= step:
            raise FloatingPointError(
                f"the loss was not finite (NaN or infinity) in any of the {step:,} steps, so nothing was learned. "
                "Lower optimizer.learning_rate, and look for examples with extreme targets, or weights with NaN."
            )

    def _check_oldest(self) -> None:
        step, skipped_in_a_row = self._watched.popleft()
        self._check(step, int(jax.device_get(skipped_in_a_row)))

    def _check(self, step: int, in_a_row: int) -> None:
        if in_a_row >= self.max_nonfinite:
            raise FloatingPointError(
                f"the last {in_a_row} updates up to step {step} were not finite (NaN or infinity) and were skipped "
                "(optimizer.max_nonfinite). Lower optimizer.learning_rate, set optimizer.clip_norm, or look for broken "
                "examples."
            )

    def close_window(self, step: int, sums: dict[str, jax.Array], total_tokens: int) -> None:
        """Ends the window at `step`; `sums` may still be in the making on the device."""
        self._pending = (step, sums, total_tokens, self._tokens)
        self._tokens = 0

    def flush(self) -> None:
        """Writes the line of the last closed window, if it is not written yet.

        Raises:
          FloatingPointError: too many updates in a row were not finite.
        """
        if self._pending is None:
            return
        step, on_device, total_tokens, tokens = self._pending
        self._pending = None
        sums: dict[str, Any] = {name: float(value) for name, value in jax.device_get(on_device).items()}
        now = time.perf_counter()  # steps are only dispatched ahead of the device: the window ends with its last number
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
        }
        if self.flops is not None and self.peak is not None:
            values["mfu"] = self.flops(tokens) / seconds / self.peak
        with self.timed("logging"):
            self.tracker.log("train", step, values)
        self.bar.update(step, loss, tokens / seconds, values.get("mfu"))
        self._check(step, int(sums["skipped_in_a_row"]))
