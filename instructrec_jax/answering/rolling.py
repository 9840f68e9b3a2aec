"""A rolling score per entity, with an alert when the score leaves a band.

    score(t) = Σ w s / Σ w    over the entity's records in (t − window, t]

s is the expected value of a record's label, w is 1 or the certainty of the label. The score is updated at every record
of the entity and does not change between records.
"""

from collections import deque
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal

import numpy as np

Direction = Literal["above", "below"]
Weight = Literal["equal", "certainty"]
EVIDENCE = 3  # records listed in an alert
SWEEP = 10_000  # records between two removals of idle entities


@dataclass(frozen=True)
class Opinion:
    """A labeled record.

    Attributes:
      time: timezone-aware, UTC.
      values: float64 [members], the expected value of the label by each member (draw or run).
      value: mean of `values`.
      weight: weight in the score, at least 0.
      told: the record as plain JSON, for output and alerts.
      entropy: entropy of the mean probabilities, in nats.
      mutual_information: mutual information of label and member, in nats.
    """

    entity: str
    time: datetime
    values: np.ndarray
    value: float
    weight: float
    told: dict[str, object]
    entropy: float
    mutual_information: float


@dataclass(frozen=True)
class Band:
    """The normal range of a score: low ≤ score ≤ high.

    Attributes:
      hysteresis: how far the score must return inside the band before it can raise another alert on the same side.
      least: minimum number of records in the window for an alert.
    """

    low: float
    high: float
    hysteresis: float = 0.1
    least: int = 3

    def __post_init__(self) -> None:
        if not -np.inf < self.low < self.high < np.inf:
            raise ValueError(
                f"--band: the ends must be finite, the lower below the upper, but are {self.low} and {self.high}."
            )
        if not 0 <= self.hysteresis <= self.high - self.low:
            width = self.high - self.low
            raise ValueError(
                f"--hysteresis must be between 0 and the band's width, {width:g}, but is {self.hysteresis}."
            )
        if self.least < 1:
            raise ValueError(f"--least must be at least 1, but is {self.least}.")

    def side(self, score: float, before: Direction | None) -> Direction | None:
        """The side of the band that a score is on, given the previous score's side; None: inside."""
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
    """The windows of all entities. Memory is bounded by the records in them."""

    def __init__(self, window: timedelta, band: Band):
        if window <= timedelta(0):
            raise ValueError("--window must be longer than 0.")
        self.window, self.band = window, band
        self.entities: dict[str, _Entity] = {}
        self.seen = 0

    def add(self, opinion: Opinion) -> tuple[dict[str, object], dict[str, object] | None]:
        """Adds the next record in time order; returns (its entity's score, an alert or None) as plain JSON.

        An alert is raised once when the score leaves the band on a side, and again only after the score returned
        inside by `hysteresis`, or after a whole window without records of the entity.
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
        score = float(rolling_score(values, weights))
        told: dict[str, object] = {"score": score, "records": len(entity.window)}
        if len(entity.window) < self.band.least:
            return told, None
        before, entity.side = entity.side, self.band.side(score, entity.side)
        if entity.side in (None, before):
            return told, None
        return told, self._alert(opinion, entity, values, weights, score)

    def _alert(
        self, opinion: Opinion, entity: _Entity, values: np.ndarray, weights: np.ndarray, score: float
    ) -> dict[str, object]:
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
        self.seen += 1
        if self.seen % SWEEP == 0:
            self.forget(now)

    def forget(self, now: datetime) -> None:
        """Removes entities whose window is empty at `now`, which does not change any later result."""
        self.entities = {n: e for n, e in self.entities.items() if e.window[-1].time > now - self.window}


def rolling_score(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Σ w s / Σ w over the last axis, [..., records] -> [...]; 0 if all weights are 0."""
    total = weights.sum()
    return np.asarray((values * weights).sum(-1) / total if total > 0 else np.zeros(values.shape[:-1]))


def contributions(values: np.ndarray, weights: np.ndarray, middle: float) -> np.ndarray:
    """Contribution of each record to score − middle, float64 [records], which is their sum."""
    return (values - middle) * weights / max(weights.sum(), np.finfo(float).tiny)
