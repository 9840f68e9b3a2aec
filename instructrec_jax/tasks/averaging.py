"""Averages of what several models say of the same examples: labels, tags, spans, numbers and rankings.

One implementation for every verb: an ensemble is a `Predict` whose outputs are `mixed`, so a task answers and scores
with it as with one model. Weights and temperatures come from validation cases only (`fit`).

    probability   log Σ w softmax(z / T), plus the members' mean normalizer, so that k times one model is that model
    logit         Σ w z / T
    rank          Σ w / (60 + rank), of rankings only (`ranking.fusion.reciprocal_ranks`)
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import scipy
from numpy.typing import ArrayLike

from instructrec_jax.metrics.uncertainty import probabilities
from instructrec_jax.ranking.fusion import reciprocal_ranks

Average = Literal["probability", "logit", "rank"]
OutputKind = Literal["labels", "decisions", "places", "numbers", "scores", "words"]
"""What the outputs of a task's network are: logits of labels (last axis), of independent decisions, of places in a text
(the first axis is the tokens), numbers, scores of a case's items (last axis), or of the next token (which are averaged
inside the network, see `adapters.mixture`)."""
AVERAGES: dict[OutputKind, tuple[Average, ...]] = {
    "labels": ("probability", "logit"),
    "decisions": ("probability", "logit"),
    "places": ("probability", "logit"),
    "numbers": ("probability", "logit"),  # both are the mean: that of a mixture is the mean of its members' means
    "scores": ("probability", "logit", "rank"),
    "words": ("probability", "logit"),
}
TEMPERATURES = 0.05, 20.0  # bounds of the search


@dataclass(frozen=True)
class Mixture:
    """How the members of an ensemble are averaged.

    Attributes:
      weights: of the members; not negative, with the sum 1.
      temperatures: of the members: logits are divided by them (Guo et al., 2017).
      temperature: of the average.
    """

    average: Average
    weights: tuple[float, ...]
    temperatures: tuple[float, ...]
    temperature: float = 1.0

    @classmethod
    def equal(cls, average: Average, members: int) -> "Mixture":
        return cls(average, (1 / members,) * members, (1.0,) * members)

    def __post_init__(self) -> None:
        numbers = np.array([*self.weights, *self.temperatures, self.temperature], np.float64)
        if not np.isfinite(numbers).all() or (numbers < 0).any() or abs(sum(self.weights) - 1) > 1e-6:
            raise ValueError(f"the weights {self.weights} should be at least 0, with the sum 1.")
        if len(self.weights) != len(self.temperatures) or min(*self.temperatures, self.temperature) <= 0:
            raise ValueError(f"the temperatures {self.temperatures} should be above 0, one for each weight.")


def check_average(task: str, kind: OutputKind | None, average: str) -> None:
    """Raises ValueError where a task's outputs cannot be averaged in this way."""
    if kind is None:
        raise ValueError(f"runs of the task {task} cannot be averaged: its outputs have no common form.")
    if average not in AVERAGES[kind]:
        raise ValueError(f"--average {average} is not for the task {task}: choose {' or '.join(AVERAGES[kind])}.")


def mixed(kind: OutputKind, outputs: ArrayLike, mixture: Mixture) -> np.ndarray:
    """The average, float64 [...], of the members' outputs [members, ...], in the form of an output of one model.

    −inf (an item that does not compete) stays −inf. A member of weight 0 has no effect.
    """
    every, weights, temperatures = np.asarray(outputs, np.float64), np.array(mixture.weights), mixture.temperatures
    counts = weights > 0
    shape = (-1, *[1] * (every.ndim - 1))
    z, w = every[counts], weights[counts].reshape(shape)
    if kind == "numbers":
        return (w * z).sum(0)
    if mixture.average == "rank":
        return (w * reciprocal_ranks(z)).sum(0)
    z = z / np.array(temperatures)[counts].reshape(shape)
    if mixture.average == "logit":
        found = (w * z).sum(0)
    elif kind == "decisions":
        yes, no = (scipy.special.logsumexp(scipy.special.log_expit(s * z), 0, b=w) for s in (1, -1))
        found = yes - no
    else:
        axis = 1 if kind == "places" else -1
        normalizer = scipy.special.logsumexp(z, axis, keepdims=True)
        found = scipy.special.logsumexp(z - normalizer, 0, b=w) + (w * normalizer).sum(0)
    return found / mixture.temperature


# ---------------------------------------------------------------- weights and temperatures, from validation cases


@dataclass(frozen=True)
class Judged:
    """What one or several models said of cases, and what was right.

    Attributes:
      outputs: float64 [..., cases, classes], logits with −inf for classes that a case lacks; numbers: [..., cases].
      right: int64 [cases], the right class; float64 [cases], the right number.
    """

    outputs: np.ndarray
    right: np.ndarray

    @property
    def are_numbers(self) -> bool:
        return bool(np.issubdtype(self.right.dtype, np.floating))


def padded(rows: Sequence[np.ndarray], right: Sequence[int]) -> Judged:
    """Cases with different numbers of classes."""
    found = np.full((len(rows), max(map(len, rows), default=0)), -np.inf)
    for place, row in enumerate(rows):
        found[place, : len(row)] = row
    return Judged(found, np.asarray(right, np.int64))


def log_loss(judged: Judged) -> float:
    """Mean −log softmax(z)[right] over the cases (nats); of numbers, the mean squared error."""
    if judged.are_numbers:
        return float(np.mean((judged.outputs - judged.right) ** 2))
    return float(-np.mean(_log_shares(judged)))


def _log_shares(judged: Judged) -> np.ndarray:
    """float64 [..., cases]: log softmax(z)[right]."""
    shares = scipy.special.log_softmax(judged.outputs, -1)
    index = np.broadcast_to(judged.right[:, None], (*shares.shape[:-1], 1))
    return np.take_along_axis(shares, index, -1)[..., 0]


def fit(judged: Judged, average: Average, *, tuned: bool, calibrate: bool) -> Mixture:
    """The mixture with the lowest log loss (squared error of numbers) on cases.

    Each step is convex: each member's temperature (in 1 / T), then the weights, then the temperature of the average.

    Args:
      judged: outputs float64 [members, cases, classes].
      tuned: whether to fit the weights; else they are equal.
      calibrate: whether to fit temperatures; else they are 1.

    Raises ValueError for a rank average, which has no probabilities, and for temperatures of numbers.
    """
    if average == "rank":
        raise ValueError("a rank average has no probabilities to tune: leave out --weights tuned and --calibrate.")
    if judged.are_numbers and calibrate:
        raise ValueError("numbers have no temperature: leave out --calibrate.")
    count = len(judged.outputs)
    mixture = Mixture.equal(average, count)
    if calibrate:
        temperatures = tuple(fit_temperature(Judged(own, judged.right)) for own in judged.outputs)
        mixture = replace(mixture, temperatures=temperatures)
    if tuned and count > 1:
        tempered = judged.outputs
        if not judged.are_numbers:
            tempered = judged.outputs / np.array(mixture.temperatures)[:, None, None]
        mixture = replace(mixture, weights=_fit_weights(Judged(tempered, judged.right), average))
    if calibrate:
        mean = Judged(mixed("labels", judged.outputs, mixture), judged.right)
        mixture = replace(mixture, temperature=fit_temperature(mean))
    return mixture


def fit_temperature(judged: Judged) -> float:
    """The T with the lowest log loss of z / T (Guo et al., 2017, "On Calibration of Modern Neural Networks").

    It is 1 where the search finds nothing better, so the log loss never grows.
    """

    def loss(logarithm: float) -> float:
        return log_loss(Judged(judged.outputs / np.exp(logarithm), judged.right))

    found = scipy.optimize.minimize_scalar(loss, bounds=tuple(np.log(TEMPERATURES)), method="bounded")
    return float(np.exp(found.x)) if found.fun < loss(0.0) else 1.0


def _fit_weights(judged: Judged, average: Average) -> tuple[float, ...]:
    """The weights on the simplex with the lowest loss, by SLSQP with its gradient."""
    outputs, right = judged.outputs, judged.right
    own = None if judged.are_numbers else _log_shares(judged)

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        if own is None:
            wrong = w @ outputs - right
            return float(np.mean(wrong**2)), 2 * (outputs * wrong).mean(1)
        if average == "probability":
            highest = own.max(0)
            scaled = np.exp(own - highest)  # of the right classes' shares
            total = np.maximum(w @ scaled, 1e-300)
            return float(-np.mean(np.log(total) + highest)), -(scaled / total).mean(1)
        finite = np.where(np.isfinite(outputs), outputs, 0)
        z = np.where(np.isfinite(outputs).all(0), np.tensordot(w, finite, 1), -np.inf)
        mean = (finite * probabilities(z)).sum(-1) - np.take_along_axis(finite, right[None, :, None], -1)[..., 0]
        return log_loss(Judged(z, right)), mean.mean(1)

    count = len(outputs)
    found = scipy.optimize.minimize(
        loss,
        np.full(count, 1 / count),
        jac=True,
        method="SLSQP",
        bounds=[(0, 1)] * count,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": lambda w: np.ones(count)},
        options={"ftol": 1e-10, "maxiter": 500},
    )
    if not np.isfinite(found.x).all():
        raise ValueError("the weights cannot be tuned: the members' outputs on the validation cases are not finite.")
    weights = np.where(found.x < 1e-6, 0, found.x)
    return tuple(float(w) for w in weights / weights.sum())
