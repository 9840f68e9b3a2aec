"""Stopping a run from outside: SIGTERM (preemption) and Ctrl-C."""

import signal
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import NoReturn, Self

import jax
from jax.experimental import multihost_utils

Handler = Callable[[int, FrameType | None], object] | int | None  # as of signal.signal


def _are_several() -> bool:
    return jax.process_count() > 1


class Interrupted(KeyboardInterrupt):
    """SIGTERM or Ctrl-C stopped training, after a save of the last step; whoever called it has no trained run.

    Attributes:
      status: the exit status of a program that ends with it: 0 after SIGTERM (preemption), 130 after Ctrl-C.
    """

    def __init__(self, text: str, status: int):
        super().__init__(text)
        self.status = status


class Interrupt:
    """A context in which the first SIGTERM or SIGINT only sets `requested`; a second one has its default effect.

    With several processes, a signal to one process stops all of them after the same step: jax's coordination service
    handles SIGTERM from the moment the processes are connected, and agrees on the step in the background.
    """

    _by_hand = False  # whether this process received SIGINT

    def __init__(self) -> None:
        self.requested: str | None = None
        self._before: dict[signal.Signals, Handler] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGINT,) if _are_several() else (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._note)
        return self

    def after(self, step: int) -> bool:
        """Whether to stop after this step. Every process calls it once after every step."""
        if _are_several() and multihost_utils.reached_preemption_sync_point(step):
            self.requested = signal.SIGTERM.name
        return self.requested is not None

    def end(self, step: int, steps: int) -> NoReturn:
        """Raises Interrupted after `step` of `steps` was saved.

        Of several processes, only the one that received Ctrl-C ends as by that, the others as by SIGTERM.
        """
        text = f"saved step {step} of {steps}. Run the same command to resume."
        if self._by_hand:
            raise Interrupted(f"Interrupted: {text}", 128 + signal.SIGINT)
        raise Interrupted(f"{self.requested}: {text}", 0)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._restore()
        self._by_hand = number == signal.SIGINT
        if _are_several():
            signal.raise_signal(signal.SIGTERM)
        else:
            self.requested = signal.Signals(number).name

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()
        if _are_several():  # no further call of `after`
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
