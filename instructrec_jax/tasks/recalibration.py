"""Probabilities that agree with how often a classifier is right: its logits, scaled on validation cases.

    temperature   z / T                    one number; the order of the labels never changes
    per_class     a ∘ z + b                a scale and a bias for each label ("vector scaling")

Guo et al., 2017, "On Calibration of Modern Neural Networks". Both minimize the mean log loss. A `Recalibration` stands
behind a run's `Predict`, so every verb computes with it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypedDict

import numpy as np
import scipy

from instructrec_jax.data.batch import Text
from instructrec_jax.metrics.calibration import Way, expected_calibration_error
from instructrec_jax.tasks.averaging import TEMPERATURES, Judged, OutputKind, fit_temperature, log_loss
from instructrec_jax.tasks.prediction import Predict

FOLDS = 5  # by which the strength of the pull is chosen; also the fewest cases of a label
PULLS = 0.1, 1.0, 10.0, 100.0, 1000.0  # of scales and biases towards the temperature, in cases
SCALES = 1 / TEMPERATURES[1], 1 / TEMPERATURES[0]


@dataclass(frozen=True)
class Recalibration:
    """What the logits are multiplied by, and what is added: one number for all labels, or one for each."""

    way: Way
    scale: tuple[float, ...]
    bias: tuple[float, ...]

    def __post_init__(self) -> None:
        numbers = np.array([*self.scale, *self.bias], np.float64)
        if not np.isfinite(numbers).all() or not len(self.scale) or min(self.scale) <= 0:
            raise ValueError(f"the scales {self.scale[:5]} should be above 0, and the biases {self.bias[:5]} finite.")
        if len(self.scale) != len(self.bias) or (self.way == "temperature" and {*self.bias} != {0.0}):
            raise ValueError(f"{len(self.scale)} scales and {len(self.bias)} biases are no calibration by {self.way}.")

    def __call__(self, outputs: np.ndarray) -> np.ndarray:
        """float64 [..., labels], of logits [..., labels]."""
        return np.asarray(outputs, np.float64) * self.scale + self.bias

    def behind(self, predict: Predict) -> Predict:
        """The model with these logits; of an ensemble, with these logits of the average."""
        run, average = predict.run, predict.average

        def recalibrated(
            texts: Sequence[Text], own: object = None, dropout: tuple[np.uint32, np.ndarray] | None = None
        ) -> list[np.ndarray]:
            return [self(output) for output in run(texts, own, dropout)]

        return replace(predict, run=recalibrated, average=lambda said: self(average(said)))


class Quality(TypedDict):
    """Of probabilities: the mean log loss (nats), and the expected calibration error."""

    nll: float
    ece: float


def quality(judged: Judged) -> Quality:
    shares = scipy.special.softmax(judged.outputs, -1)
    right = shares.argmax(-1) == judged.right
    return {"nll": log_loss(judged), "ece": expected_calibration_error(shares.max(-1), right)}


def fit_recalibration(way: Way, kind: OutputKind, judged: Judged, labels: Sequence[str]) -> Recalibration:
    """The calibration with the lowest log loss on validation cases; never higher than without it.

    `per_class` is pulled towards the temperature, because it has two numbers for each label: its log loss has the term
    pull · Σ ((T a − 1)² + b²) / 2. The pull is that of `PULLS` with the lowest log loss in 5-fold cross-validation.

    Args:
      kind: "labels" (softmax), or "decisions" (a sigmoid for each label).
      judged: what `Task.judged` gives.

    Raises ValueError for outputs that are not finite, answers that are all right, a temperature at the end of its
    range, which is no minimum, and by `per_class` for a label with too few cases.
    """
    if not np.isfinite(judged.outputs).all():
        raise ValueError("the outputs on data.validation are not finite: the run diverged. Train it again.")
    temperature = fit_temperature(judged)
    all_right = (judged.outputs.argmax(-1) == judged.right).all()
    at_end = not TEMPERATURES[0] * 1.01 < temperature < TEMPERATURES[1] / 1.01
    if all_right or (at_end and way == "temperature"):  # biases may be all that is wrong
        raise ValueError(
            f"no temperature is the best for data.validation ({len(judged.right):,} decisions): the answers there are "
            "all right, or have nothing to do with the outputs. Use more validation cases, which training has not seen."
        )
    if way == "temperature":
        return Recalibration(way, (1 / temperature,), (0.0,))
    fitting = _Fitting.of(kind, judged, len(labels), temperature)
    counts = fitting.fewest()
    if counts.min() < FOLDS:
        few = [f"{label} ({count})" for label, count in zip(labels, counts.tolist(), strict=True) if count < FOLDS]
        raise ValueError(
            f"per_class needs {FOLDS} validation cases of each label; too few have {', '.join(few[:10])}"
            f"{' and others' if len(few) > 10 else ''}: add some, or use temperature."
        )
    scale, bias = fitting.fit(np.arange(len(fitting.z)), min(PULLS, key=fitting.cross_validated))
    return Recalibration(way, tuple(scale.tolist()), tuple(bias.tolist()))


@dataclass(frozen=True)
class _Fitting:
    """z: float64 [cases, labels]; truth: float64 [cases, labels], 1 for the right ones; fold: int [cases]."""

    kind: OutputKind
    z: np.ndarray
    truth: np.ndarray
    fold: np.ndarray
    temperature: float

    @classmethod
    def of(cls, kind: OutputKind, judged: Judged, labels: int, temperature: float) -> "_Fitting":
        if kind == "decisions":
            z, truth = judged.outputs[:, 1].reshape(-1, labels), judged.right.reshape(-1, labels).astype(np.float64)
            return cls(kind, z, truth, np.arange(len(z)) % FOLDS, temperature)
        fold = np.empty(len(judged.right), np.int64)
        for label in np.unique(judged.right):
            own = np.flatnonzero(judged.right == label)
            fold[own] = np.arange(len(own)) % FOLDS
        return cls(kind, judged.outputs, np.eye(labels)[judged.right], fold, temperature)

    def fewest(self) -> np.ndarray:
        """int64 [labels]: cases with the label; of decisions, cases with it or without it, whichever are fewer."""
        there = self.truth.sum(0).astype(np.int64)
        return np.minimum(there, len(self.truth) - there) if self.kind == "decisions" else there

    def fit(self, cases: np.ndarray, pull: float) -> tuple[np.ndarray, np.ndarray]:
        """(scales, biases), float64 [labels] each, for some cases, by L-BFGS; the problem is convex."""
        labels, z, truth = self.z.shape[1], self.z[cases], self.truth[cases]
        count = z.size if self.kind == "decisions" else len(z)

        def loss(both: np.ndarray) -> tuple[float, np.ndarray]:
            scale, bias = both.reshape(2, labels)
            value, wrong = self._loss(z * scale + bias, truth)
            away = self.temperature * scale - 1
            pulled = pull * (away @ away + bias @ bias) / (2 * count)
            gradient = np.concatenate([(wrong * z).sum(0), wrong.sum(0)])
            gradient += np.concatenate([self.temperature * away, bias]) * pull / count
            return value + pulled, gradient

        start = np.concatenate([np.full(labels, 1 / self.temperature), np.zeros(labels)])
        bounds = [SCALES] * labels + [(None, None)] * labels
        found = scipy.optimize.minimize(
            loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 500}
        )
        scale, bias = found.x.reshape(2, labels)
        return scale, bias

    def cross_validated(self, pull: float) -> float:
        """Sum of the log losses of the cases, each scored by a fit without its fold."""
        total = 0.0
        for fold in range(FOLDS):
            own = np.flatnonzero(self.fold == fold)
            scale, bias = self.fit(np.flatnonzero(self.fold != fold), pull)
            total += self._loss(self.z[own] * scale + bias, self.truth[own])[0] * len(own)
        return total

    def _loss(self, z: np.ndarray, truth: np.ndarray) -> tuple[float, np.ndarray]:
        """(mean log loss of the cases, its gradient with respect to z)."""
        if self.kind == "decisions":
            losses = np.logaddexp(0, z) - truth * z
            return float(losses.sum() / z.size), (scipy.special.expit(z) - truth) / z.size
        losses = scipy.special.logsumexp(z, -1) - (truth * z).sum(-1)
        return float(losses.mean()), (scipy.special.softmax(z, -1) - truth) / len(z)
