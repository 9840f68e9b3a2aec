"""Traces of training steps for TensorBoard (profile plugin) or Perfetto."""

import re
from pathlib import Path
from types import TracebackType
from typing import Self

import jax

from instructrec_jax.distributed.launch import say
from instructrec_jax.training.training_config import ProfileConfig


def traced_steps(config: ProfileConfig, last_step: int | None = None) -> range:
    """The steps to trace, counted from 1 as in the log.

    Args:
      last_step: the run's last step; None: unknown.

    Raises ValueError where the setting is not a range of steps, or exceeds the run's steps.
    """
    if config.steps is None:
        return range(0)
    found = re.fullmatch(r"(\d+)(?:\.\.(\d+))?", config.steps.strip())
    first, last = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not 1 <= first <= last:
        raise ValueError(f"profile.steps must be a range of steps such as 10..13, but is {config.steps!r}.")
    if last_step is not None and last > last_step:
        raise ValueError(f"profile.steps is {config.steps}, but the run has {last_step} steps. Lower it.")
    return range(first, last + 1)


class Profiler:
    """Traces the configured steps into RUN/profile: call `begin(step)` before and `end(step, result)` after each step.

    The trace ends when the result of the last step is ready, so it covers the devices' work.
    """

    def __init__(self, run_dir: Path, config: ProfileConfig):
        self.steps = traced_steps(config)
        self.folder = run_dir / "profile"
        self.running = False

    def begin(self, step: int) -> None:
        if not self.running and step in self.steps:
            jax.profiler.start_trace(str(self.folder), create_perfetto_trace=True)
            self.running = True

    def end(self, step: int, result: object) -> None:
        if self.running and step == self.steps[-1]:
            jax.block_until_ready(result)
            self._stop()
            say(f"trace of steps {self.steps[0]}..{step}: {self.folder} (TensorBoard, Perfetto)")

    def _stop(self) -> None:
        jax.profiler.stop_trace()
        self.running = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.running:
            self._stop()
