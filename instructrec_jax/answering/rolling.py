"""A rolling score of each entity, and an alert when it leaves a band.

    score(t) = Σ w s / Σ w    over the entity's records in (t − window, t]

with s the expected value of a record's label, and w 1 or how certain the label is. It is worked out at every record of
the entity, so it changes when there is news, and not between.
"""

from collections import deque
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal

import numpy as np

Direction = Literal["above", "below"]
EVIDENCE = 3  # records that an alert names
SWEEP = 10_000  # records between two searches for entities that nothing is heard of


@dataclass(frozen=True)
class Opinion:
    """A record with its label.

    Attributes:
      time: aware, UTC.
      values: float64 [members], the expected value of the label by each member (draw or run).
      value: their mean.
      weight: in the score, 0 or more.
      told: what an alert says of the record, plain JSON.
      entropy: of the mean probabilities, in nats.
      mutual_information: of label and member, in nats.
    """

    entity: str
    time: datetime
    values: np.ndarray
    value: float
    weight: float
    told: dict[str, Any]
    entropy: float
    mutual_information: float


@dataclass(frozen=True)
class Band:
    """Where a score is nothing unusual: low ≤ score ≤ high.

    Attributes:
      hysteresis: how far inside the band a score has to come back before leaving it by the same side is news again.
      least: records in the window below which a score says nothing.
    """

    low: float
    high: float
    hysteresis: float = 0.1
    least: int = 3

    def __post_init__(self) -> None:
        if not -np.inf < self.low < self.high < np.inf:
            raise ValueError(
                f"--band: the lower end, {self.low}, has to lie below the upper end, {self.high}: two numbers."
            )
        if not 0 <= self.hysteresis <= self.high - self.low:
            width = self.high - self.low
            raise ValueError(f"--hysteresis is {self.hysteresis}, but lies between 0 and the band's width, {width:g}.")
        if self.least < 1:
            raise ValueError(f"--least is {self.least}, but should be at least 1.")

    def side(self, score: float, before: Direction | None) -> Direction | None:
        """Which side of the band a score is on, given the side of the score before it; None: inside."""
        if score > self.high or before == "above" and score > self.high - self.hysteresis:
            return "above"
        if score < self.low or before == "below" and score < self.low + self.hysteresis:
            return "below"
        return None


@dataclass
class _Entity:
    window: deque[Opinion] = field(default_factory=deque)
    side: Direction | None = None


class Watch:
    """The windows of all entities. Its memory is bounded by the records in them."""

    def __init__(self, window: timedelta, band: Band):
        if window <= timedelta(0):
            raise ValueError("--window should be longer than nothing.")
        self.window, self.band = window, band
        self.entities: dict[str, _Entity] = {}
        self.seen = 0

    def add(self, opinion: Opinion) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """Takes the next record in the order of time; gives its entity's score, and an alert or None, as plain JSON.

        An alert is raised once when the score leaves the band by a side, and again only after the score was back
        inside (by `hysteresis`), or after a whole window without a record of the entity.
        """
        self._sweep(opinion.time)
        entity = self.entities.setdefault(opinion.entity, _Entity())
        while entity.window and entity.window[0].time <= opinion.time - self.window:
            entity.window.popleft()
        if not entity.window:
            entity.side = None
        entity.window.append(opinion)
        weights = np.array([each.weight for each in entity.window])
        values = np.array([each.value for each in entity.window])
        score = rolling_score(values, weights)
        told = {"score": score, "records": len(entity.window)}
        if len(entity.window) < self.band.least:
            return told, None
        before, entity.side = entity.side, self.band.side(score, entity.side)
        if entity.side in (None, before):
            return told, None
        return told, self._alert(opinion, entity, values, weights, score)

    def _alert(
        self, opinion: Opinion, entity: _Entity, values: np.ndarray, weights: np.ndarray, score: float
    ) -> dict[str, Any]:
        window, direction = list(entity.window), 1 if entity.side == "above" else -1
        added = contributions(values, weights, (self.band.low + self.band.high) / 2)
        strongest = np.argsort(-direction * added, kind="stable")[:EVIDENCE]
        strongest = strongest[direction * added[strongest] > 0]
        uncertainty: dict[str, float] = {"entropy": float(np.mean([each.entropy for each in window]))}
        if len(opinion.values) > 1:
            by_member = rolling_score(np.stack([each.values for each in window], 1), weights)
            outside = by_member > self.band.high if direction > 0 else by_member < self.band.low
            uncertainty |= {
                "mutual_information": float(np.mean([each.mutual_information for each in window])),
                "score_std": float(by_member.std()),
                "agreement": float(outside.mean()),
            }
        return {
            "entity": opinion.entity,
            "time": opinion.time.isoformat(),
            "direction": entity.side,
            "score": score,
            "band": [self.band.low, self.band.high],
            "records": len(window),
            "since": window[0].time.isoformat(),
            "moved_by": [window[i].told | {"contribution": float(added[i])} for i in strongest],
            "uncertainty": uncertainty,
        }

    def _sweep(self, now: datetime) -> None:
        """Forgets entities with nothing in their window, which is as if they had never been heard of."""
        self.seen += 1
        if self.seen % SWEEP == 0:
            kept = {n: e for n, e in self.entities.items() if e.window[-1].time > now - self.window}
            self.entities = kept


def rolling_score(values: np.ndarray, weights: np.ndarray) -> Any:
    """Σ w s / Σ w over the last axis, [..., records] -> [...]; 0 where no record has weight."""
    total = weights.sum()
    scores = (values * weights).sum(-1) / total if total > 0 else np.zeros(values.shape[:-1])
    return float(scores) if scores.ndim == 0 else scores


def contributions(values: np.ndarray, weights: np.ndarray, middle: float) -> np.ndarray:
    """What each record adds to the score's distance from `middle`, float64 [records]: they sum to score − middle."""
    return (values - middle) * weights / max(weights.sum(), np.finfo(float).tiny)
