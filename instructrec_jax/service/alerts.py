"""Alerts: when a value leaves its range there is one notice, and one when it is back.

    update("latency", "desk", value=12.0, threshold=10.0, ...)   -> {"state": "firing", ...}
    update("latency", "desk", value=14.0, threshold=10.0, ...)   -> None: it fires already
    update("latency", "desk", value=7.9, threshold=10.0, ...)    -> {"state": "resolved", ...}

As in the watch over news (`answering.rolling.Band`), a value must come back inside by more than it took to leave.
"""

import logging
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from instructrec_jax.answering.rolling import Band, Direction

logger = logging.getLogger(__name__)
Notice = dict[str, object]


@dataclass
class _State:
    side: Direction | None = None
    since: str = ""
    id: str = ""
    latest: list[float] = field(default_factory=list)  # values while it fires


class Alerts:
    """What fires at present. Memory: one state per alert and model.

    Attributes:
      receivers: called with each notice, in their order; they must not wait.
    """

    def __init__(self, receivers: Sequence[Callable[[Notice], None]] = ()):
        self.receivers = list(receivers)
        self._states: dict[tuple[str, str], _State] = {}
        self._lock = threading.Lock()

    def update(
        self,
        alert: str,
        model: str,
        *,
        value: float,
        threshold: float,
        text: str,
        recovery: float = 0.8,
        mean_of: int = 1,
        details: Sequence[Mapping[str, object]] = (),
    ) -> Notice | None:
        """Takes in the present value of an alert; returns the notice that it caused.

        Args:
          alert, model: names; "" for the whole service.
          threshold: values above are alerts.
          text: the value in words, for people.
          recovery: share of the threshold below which the alert is over.
          mean_of: number of values, after the one that fired, whose mean must be below it.
          details: more for programs, as JSON.
        """
        band = Band(-1.0, threshold, hysteresis=(1 - recovery) * threshold)  # values are at least 0
        with self._lock:
            state = self._states.setdefault((alert, model), _State())
            before = state.side
            state.latest = [*state.latest, value][-mean_of:] if before is not None else []
            if before is None or len(state.latest) == mean_of:
                state.side = band.side(sum(state.latest) / mean_of if before is not None else value, before)
            if state.side == before:
                return None
            state.latest = []
            now = datetime.now(UTC).isoformat(timespec="seconds")
            if state.side is not None:
                state.since, state.id = now, uuid.uuid4().hex
            firing = state.side is not None
            notice: Notice = {
                "id": f"{state.id}-{'firing' if firing else 'resolved'}",
                "incident": state.id,
                "state": "firing" if firing else "resolved",
                "alert": alert,
                "model": model,
                "value": value,
                "threshold": threshold,
                "since": state.since,
                "at": now,
                "text": f"{'firing' if firing else 'resolved'}: {alert}{f' of {model}' if model else ''}: {text}",
                "details": [dict(each) for each in details],
            }
            logger.log(logging.WARNING if firing else logging.INFO, "alert %s", notice["text"])
            for receive in self.receivers:
                receive(notice)
            return notice

    def firing(self) -> dict[tuple[str, str], bool]:
        """(alert, model) -> whether it fires, of all that were ever updated."""
        with self._lock:
            return {name: state.side is not None for name, state in self._states.items()}
