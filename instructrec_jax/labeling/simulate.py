"""Simulated active learning: learning curves on texts whose labels are known, with a logistic head on frozen vectors.

Every seed begins with the same random labels for all strategies, so that their curves are compared in pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from instructrec_jax.labeling.out_of_fold import fitted_shares
from instructrec_jax.labeling.strategies import Beliefs, Strategy, select

COMMITTEE = 5  # heads on resampled labels, whose disagreement stands for that of dropout draws (bald)
STEADY, WINDOW = 0.99, 3  # of the stopping rule


@dataclass(frozen=True)
class Texts:
    """Vectors float32 [texts, width] and labels int64 [texts]."""

    vectors: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class Plan:
    """How to simulate.

    Attributes:
      first: number of random labels that a curve begins with; batch: labels of a round; rounds: their number.
      seeds: one curve each.

    Raises ValueError for a plan without labels or curves.
    """

    first: int = 100
    batch: int = 50
    rounds: int = 10
    seeds: int = 5

    def __post_init__(self) -> None:
        if min(self.first, self.batch, self.seeds) < 1 or self.rounds < 0:
            raise ValueError(f"--first, --batch and --seeds should be at least 1, --rounds at least 0, but are {self}.")


@dataclass(frozen=True)
class Curve:
    """A strategy's learning curve for one seed.

    Attributes:
      labels: numbers of labels, int64 [rounds + 1].
      accuracy: of the test, float64 [rounds + 1].
      kappa: agreement (Cohen's κ) of each model with the one before on the pool, float64 [rounds].
    """

    labels: np.ndarray
    accuracy: np.ndarray
    kappa: np.ndarray = field(default_factory=lambda: np.empty(0))

    @property
    def area(self) -> float:
        """Under the curve by the trapezoid rule, divided by its width: the mean accuracy."""
        if len(self.labels) == 1:
            return float(self.accuracy[0])
        return float(np.trapezoid(self.accuracy, self.labels) / (self.labels[-1] - self.labels[0]))

    def reached(self, score: float) -> float | None:
        """The number of labels at which the accuracy first is this high, interpolated; None: never."""
        at = np.flatnonzero(self.accuracy >= score)
        if not len(at):
            return None
        i = int(at[0])
        if i == 0:
            return float(self.labels[0])
        low, high = self.accuracy[i - 1 : i + 1]
        before, after = self.labels[i - 1 : i + 1]
        return float(before + (score - low) / (high - low) * (after - before))

    def stop(self) -> int | None:
        """The round after which the predictions are steady: the mean κ of the last `WINDOW` rounds is at least
        `STEADY` (stabilizing predictions, Bloodgood & Vijay-Shanker, 2009); None: never."""
        for end in range(WINDOW, len(self.kappa) + 1):
            if self.kappa[end - WINDOW : end].mean() >= STEADY:
                return end
        return None


def learning_curve(strategy: Strategy, pool: Texts, test: Texts, size: int, plan: Plan, seed: int) -> Curve:
    """The curve of a strategy that labels texts of the pool.

    Args:
      size: number of labels.

    Raises ValueError for an empty pool, or one with a single label.
    """
    count = len(pool.labels)
    if not count:
        raise ValueError("the pool is empty: no text is left to label.")
    known = first_labels(pool.labels, plan.first, seed)
    labels, accuracy, kappas, before = [], [], [], None
    for number in range(plan.rounds + 1):
        both = np.concatenate([pool.vectors, test.vectors])
        shares = fitted_shares(pool.vectors[known], pool.labels[known], both, size)
        guesses = shares.argmax(1)
        labels.append(len(known))
        accuracy.append(float((guesses[count:] == test.labels).mean()))
        if before is not None:
            kappas.append(kappa(before, guesses[:count], size))
        before = guesses[:count]
        left = np.setdiff1d(np.arange(count), known)
        if number == plan.rounds or not len(left):
            break
        draws = _committee(pool, known, left, size, seed + 1000 * number) if strategy == "bald" else None
        beliefs = Beliefs(len(left), shares[left], draws, pool.vectors[left], pool.vectors[known])
        known = np.concatenate([known, left[select(strategy, beliefs, plan.batch, seed + 1000 * number)]])
    return Curve(np.array(labels), np.array(accuracy), np.array(kappas))


def first_labels(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Random texts with two different labels at least, int64. Raises ValueError where all have the same label."""
    order = np.random.default_rng(seed).permutation(len(labels))
    chosen = order[:count]
    if len(np.unique(labels[chosen])) > 1:
        return chosen
    others = order[labels[order] != labels[order[0]]]
    if not len(others):
        raise ValueError("all texts of the pool have the same label: there is nothing to learn.")
    return np.append(chosen[: max(1, count - 1)], others[0])


def kappa(one: np.ndarray, other: np.ndarray, size: int) -> float:
    """Cohen's κ of two arrays of labels int [n]; 1 where both always give one label."""
    chance = float(np.bincount(one, minlength=size) @ np.bincount(other, minlength=size)) / len(one) ** 2
    return 1.0 if chance == 1 else (float((one == other).mean()) - chance) / (1 - chance)


def _committee(pool: Texts, known: np.ndarray, left: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Probabilities by heads on bootstrap resamples of the labels, float64 [COMMITTEE, left, size]."""
    rng = np.random.default_rng(seed)
    found: list[np.ndarray] = []
    while len(found) < COMMITTEE:
        drawn = known[rng.integers(0, len(known), len(known))]
        if len(np.unique(pool.labels[drawn])) > 1:
            found.append(fitted_shares(pool.vectors[drawn], pool.labels[drawn], pool.vectors[left], size))
    return np.stack(found)


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """(mean, low, high): the 95% interval of the mean by Student's t; of one value, NaN bounds."""
    from scipy import stats  # takes half a second to import

    sample = np.asarray(values, np.float64)
    mean = float(sample.mean())
    if len(sample) < 2:
        return mean, float("nan"), float("nan")
    half = float(stats.t.ppf(0.975, len(sample) - 1) * sample.std(ddof=1) / np.sqrt(len(sample)))
    return mean, mean - half, mean + half


@dataclass(frozen=True)
class Comparison:
    """A strategy beside random, over seeds.

    Attributes:
      area: mean area under the curve.
      gain: (mean, low, high) of its difference from random's, paired by seed; None: this is random.
      reached: mean number of labels to reach the score; None: not in every seed.
      saved: (mean, low, high) of the labels saved against random; None: one of both does not reach it in every seed.
      stopped: (mean labels, mean accuracy lost against the end of the curve, seeds that stopped) of the stopping rule.
    """

    strategy: Strategy
    area: float
    gain: tuple[float, float, float] | None
    reached: float | None
    saved: tuple[float, float, float] | None
    stopped: tuple[float, float, int] | None


def compare(curves: dict[Strategy, list[Curve]], score: float) -> list[Comparison]:
    """Each strategy beside random, best area first.

    Args:
      curves: by strategy, one for each seed; "random" among them.
      score: accuracy to reach.
    """
    base, rows = curves["random"], []
    needed = {name: [curve.reached(score) for curve in own] for name, own in curves.items()}
    for name, own in curves.items():
        areas = [curve.area for curve in own]
        gain = None if name == "random" else interval([a - b.area for a, b in zip(areas, base, strict=True)])
        mine = [value for value in needed[name] if value is not None]
        saved = [b - a for a, b in zip(needed[name], needed["random"], strict=True) if a is not None and b is not None]
        reached = float(np.mean(mine)) if len(mine) == len(own) else None
        ends = [(curve, at) for curve in own if (at := curve.stop()) is not None]
        stopped = None
        if ends:
            counts = [int(curve.labels[at]) for curve, at in ends]
            lost = [float(curve.accuracy[-1] - curve.accuracy[at]) for curve, at in ends]
            stopped = float(np.mean(counts)), float(np.mean(lost)), len(ends)
        whole = interval(saved) if name != "random" and len(saved) == len(own) else None
        rows.append(Comparison(name, float(np.mean(areas)), gain, reached, whole, stopped))
    return sorted(rows, key=lambda row: -row.area)
