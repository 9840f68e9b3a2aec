"""Fusion of two rankers: hybrids over the whole catalogue, and two stages (retrieve k items, rerank them).

    fusion = tune_fusion(first, second, positives, name="coKNN")          the weight, on validation cases only
    fusion = tune_fusion(first, second, positives, name="RUN2", k=100)    two stages
    scores = fusion.scores(first, second)                                 of the whole catalogue

`evaluate` and `recommend` both use `Fusion.scores`; the tuned fusion is saved with the run. Everything here is NumPy on
blocks of cases; items that do not compete (seen items) have the score −inf.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import ArrayLike

from instructrec_jax.metrics import ranking

# Scores of the second ranker for items int [cases, k], or for the whole catalogue if None.
Second = Callable[[np.ndarray | None], ArrayLike]

# Weights that are tried: finer where scores of few items (coKNN's) outweigh those of all others.
GRID = (0, 0.01, 0.02, 0.03, 0.04, 0.05, 0.07, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1)
BLOCK = 512  # cases scored at a time


def mask(scores: ArrayLike, seen: Sequence[ArrayLike] | None) -> np.ndarray:
    """float64 [cases, items]: a copy of the scores with −inf for each case's `seen` items (their numbers)."""
    masked = np.array(scores, np.float64)
    for case, items in enumerate(seen or ()):
        masked[case, np.asarray(items, np.int64)] = -np.inf
    return masked


def retrieve(scores: np.ndarray, k: int) -> np.ndarray:
    """The best items of each case, int64 [cases, min(k, items)], best first, equal scores by item number.

    Raises ValueError for k below 1 and for NaN scores.
    """
    if k < 1:
        raise ValueError(f"k, the number of retrieved items, must be at least 1, but is {k}.")
    if np.isnan(scores).any():
        raise ValueError("scores of the first stage hold NaN: the model may have diverged.")
    items = scores.shape[1]
    if k >= items:
        return np.argsort(-scores, axis=1, kind="stable")
    border = np.partition(scores, items - k, axis=1)[:, items - k]  # the k-th best score
    chosen = scores >= border[:, None]
    counts = np.count_nonzero(chosen, axis=1)
    for row in np.flatnonzero(counts > k):  # drop the highest numbers among the items equal to the k-th
        equal = np.flatnonzero(scores[row] == border[row])
        chosen[row, equal[k - counts[row] :]] = False
    numbers = np.nonzero(chosen)[1].reshape(len(scores), k)
    order = np.argsort(-np.take_along_axis(scores, numbers, 1), axis=1, kind="stable")
    return np.take_along_axis(numbers, order, 1)


def standardize(scores: ArrayLike) -> np.ndarray:
    """z = (s − mean) / standard deviation of each case (row), over its finite scores; float64 [cases, n].

    −inf is unchanged; a case with equal scores gets zeros. Raises ValueError for NaN and +inf.
    """
    values = np.array(scores, np.float64)
    mean, deviation = moments(values)
    finite = np.isfinite(values)
    return np.where(finite, (np.where(finite, values, mean) - mean) / deviation, -np.inf)


def moments(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each case's finite scores, float64 [cases, 1]; deviation +inf for equal scores."""
    if np.isnan(values).any() or np.isposinf(values).any():
        raise ValueError("scores of a hybrid hold NaN or infinity: the model may have diverged.")
    finite = np.isfinite(values)
    count = np.maximum(finite.sum(1, keepdims=True), 1)
    mean = values.sum(1, keepdims=True, where=finite) / count
    centered = np.where(finite, values - mean, 0)
    deviation = np.sqrt((centered**2).sum(1, keepdims=True) / count)
    # The mean is rounded, so the computed deviation of equal scores may not be 0.
    lowest, highest = values.min(1, where=finite, initial=np.inf), values.max(1, where=finite, initial=-np.inf)
    deviation[lowest >= highest] = np.inf
    return mean, deviation


RANK = 60  # Cormack et al., 2009, "Reciprocal Rank Fusion outperforms Condorcet and individual Rank Learning Methods"


def reciprocal_ranks(scores: ArrayLike) -> np.ndarray:
    """1 / (60 + rank) of each item within its row (last axis), float64; equal scores share their mean rank.

    −inf (an item that does not compete) is unchanged. Raises ValueError for NaN.
    """
    values = np.asarray(scores, np.float64)
    if np.isnan(values).any():
        raise ValueError("the scores of a ranking hold NaN: the model may have diverged.")
    return np.where(np.isneginf(values), -np.inf, 1 / (RANK + scipy.stats.rankdata(-values, axis=-1)))


def hybrid(first: ArrayLike, second: ArrayLike, weight: float) -> np.ndarray:
    """(1 − weight) · z₁ + weight · z₂, float64 [cases, n], of two rankers' scores of the same items.

    z₁ and z₂ are each ranker's scores, standardized within the case over the items that neither masks with −inf (see
    `standardize`); an item masked by either is masked. Items that tie in both tie.
    """
    return _mix(*_comparable(first, second), weight)


def _comparable(first: ArrayLike, second: ArrayLike) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """z₁ and z₂ of a hybrid, with 0 for masked items, and the mask."""
    a, b = np.array(first, np.float64), np.array(second, np.float64)
    if a.shape != b.shape:
        raise ValueError(f"a hybrid needs scores of the same items, but the shapes are {a.shape} and {b.shape}.")
    masked = np.isneginf(a) | np.isneginf(b)
    a[masked] = b[masked] = -np.inf
    a, b = standardize(a), standardize(b)
    a[masked] = b[masked] = 0
    return a, b, masked


def _mix(first: np.ndarray, second: np.ndarray, masked: np.ndarray, weight: float) -> np.ndarray:
    if not 0 <= weight <= 1:
        raise ValueError(f"the weight of a hybrid must be between 0 (first only) and 1 (second only), but is {weight}.")
    mixed = (1 - weight) * first + weight * second
    mixed[masked] = -np.inf
    return mixed


def merge(first: np.ndarray, candidates: np.ndarray, second: ArrayLike) -> np.ndarray:
    """Scores of a complete ranking: the retrieved items in the second ranker's order, then the others in the first's.

    Args:
      first: float [cases, items]; −inf: does not compete, retrieved or not.
      candidates: int [cases, k], the retrieved items, distinct within a case.
      second: float [cases, k], the second ranker's scores of the candidates.

    Returns: float64 [cases, items]. A retrieved item's score is its rank from the bottom among the retrieved, 1, 2,
    ..., equal for equal scores; the scores of other items are `first` shifted to at most 0.
    """
    inside = np.asarray(second, np.float64)
    if inside.shape != candidates.shape:
        raise ValueError(f"scores of the second stage should have shape {candidates.shape}, but have {inside.shape}.")
    if np.isnan(inside).any():
        raise ValueError("scores of the second stage hold NaN: the model may have diverged.")
    rest = np.array(first, np.float64)
    masked = np.isneginf(rest)
    np.put_along_axis(rest, candidates, -np.inf, axis=1)
    top = rest.max(1, keepdims=True)
    rest -= np.where(np.isfinite(top), top, 0)
    order = np.argsort(inside, axis=1, kind="stable")
    ordered = np.take_along_axis(inside, order, 1)
    steps = 1 + np.cumsum(ordered[:, 1:] > ordered[:, :-1], axis=1)
    steps = np.concatenate([np.ones_like(ordered[:, :1]), steps], axis=1)
    places = np.empty_like(inside)
    np.put_along_axis(places, order, steps, axis=1)
    np.put_along_axis(rest, candidates, places, axis=1)
    rest[masked] = -np.inf
    return rest


def two_stage(
    first: ArrayLike,
    rerank: Callable[[np.ndarray], ArrayLike],
    *,
    k: int,
    seen: Sequence[ArrayLike] | None = None,
    weight: float = 1.0,
) -> np.ndarray:
    """Retrieves k items of each case by the first ranker and reranks them by the second.

    Args:
      first: float [cases, items], higher is better.
      rerank: items int64 [cases, k] -> scores float [cases, k]. Where fewer than k items compete, the rest are seen
        items, whose scores are ignored.
      seen: items of each case that do not compete.
      weight: of the second ranker; below 1, the k items are ranked by the `hybrid`.

    Returns: scores of the whole ranking, float64 [cases, items], see `merge`.
    """
    masked = mask(first, seen)
    return merge(masked, *rerank_best(masked, rerank, k=k, weight=weight))


def rerank_best(
    first: np.ndarray, rerank: Callable[[np.ndarray], ArrayLike], *, k: int, weight: float
) -> tuple[np.ndarray, np.ndarray]:
    """The k best items of each case by the first scores, int64 [cases, k], and their reranking scores, float64.

    Args:
      first: float64 [cases, items]; −inf: does not compete.
    """
    candidates = retrieve(first, k)
    second = np.asarray(rerank(candidates), np.float64)
    if weight == 1:
        return candidates, second
    return candidates, hybrid(np.take_along_axis(first, candidates, 1), second, weight)


@dataclass(frozen=True)
class Fusion:
    """A combination of two rankers.

    Attributes:
      name: the second ranker: the name of a baseline, or the path of a run directory.
      weight: of the second ranker's standardized scores, from 0 (first only) to 1 (second only).
      k: two stages: the second ranker reranks the first's k best items. None: a hybrid over the whole catalogue.
    """

    name: str
    weight: float
    k: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 1:
            raise ValueError(f"the weight of {self.name} must be between 0 and 1, but is {self.weight}.")
        if self.k is not None and self.k < 1:
            raise ValueError(f"--retrieve must be at least 1, but is {self.k}.")

    def scores(self, first: np.ndarray, second: Second) -> np.ndarray:
        """Scores of the whole ranking, float64 [cases, items]; −inf where `first` is −inf."""
        if self.k is None:
            return hybrid(first, second(None), self.weight)
        return two_stage(first, second, k=self.k, weight=self.weight)


# ---------------------------------------------------------------- the weight


def ndcg_at(scores: np.ndarray, positives: Sequence[ArrayLike], k: int = 10) -> np.ndarray:
    """NDCG@k of each case with one or several positive items, float64 [cases]; the expectation over ties.

    Args:
      scores: float [cases, n]; −inf: does not compete.
      positives: columns of each case's positive items; a negative number is a positive item outside the n columns,
        which gains nothing but counts in the ideal ranking.
    """
    columns_of = [np.atleast_1d(np.asarray(columns, np.int64)) for columns in positives]
    counts = np.array([len(columns) for columns in columns_of])
    if not counts.all():
        raise ValueError(f"case {np.flatnonzero(counts == 0)[0]} has no positive item, so its NDCG is undefined.")
    cases, columns = np.repeat(np.arange(len(counts)), counts), np.concatenate([*columns_of, np.zeros(0, np.int64)])
    own = np.where(columns >= 0, scores[cases, columns], -np.inf)
    gained = np.zeros(len(cases))
    some = max(1, 100_000 // scores.shape[1])  # rows that a processor's cache holds
    for start in range(0, len(cases), some):
        part = slice(start, start + some)
        rows, score = scores[cases[part]], own[part, None]
        ranks = ranking.Ranks((rows > score).sum(1), np.maximum((rows == score).sum(1) - 1, 0))
        gained[part] = np.where(np.isneginf(own[part]), 0, ranking.ndcg(ranks, k))
    ideal = np.cumsum(1 / np.log2(np.arange(2, k + 2)))
    return np.bincount(cases, gained, len(counts)) / ideal[np.minimum(counts, k) - 1]


def weight_gains(
    first: np.ndarray,
    second: ArrayLike,
    positives: Sequence[ArrayLike],
    *,
    grid: Sequence[float] = GRID,
    k: int = 10,
) -> np.ndarray:
    """NDCG@k of the `hybrid` of each weight, float64 [weights, cases].

    Args:
      first: float [cases, n]; −inf: does not compete.
      second: float [cases, n], scores of the same items: the whole catalogue, a candidate set, or the retrieved items.
      positives: columns of each case's positive items, see `ndcg_at`.
    """
    pair = _comparable(first, second)
    return np.stack([ndcg_at(_mix(*pair, weight), positives, k) for weight in grid])


def best_place(gains: np.ndarray) -> int:
    """The weight (its place in the grid) with the best mean of gains [weights, cases]; of equally good ones the first.

    Raises ValueError where there are no cases.
    """
    if not gains.shape[1]:
        raise ValueError("the weight of a hybrid is tuned on validation cases, but there are none.")
    totals = gains.sum(1)
    # Sums of equal gains in different orders differ by rounding.
    return int(np.argmax(totals >= totals.max() * (1 - 1e-12)))


def tune_fusion(
    first: Callable[[slice], np.ndarray],
    second: Callable[[slice, np.ndarray | None], ArrayLike],
    positives: Sequence[np.ndarray],
    *,
    name: str,
    k: int | None = None,
) -> Fusion:
    """The fusion with the best mean NDCG@10 on validation cases; of equally good weights, the lowest.

    Args:
      first: block of the cases -> float [block, items]; −inf: does not compete.
      second: (block, items int [block, k] or None for all) -> scores.
      positives: positive items of each case.
      name, k: see `Fusion`.
    """
    found: list[np.ndarray] = []
    for start in range(0, len(positives), BLOCK):  # so that the scores of all cases are never in memory
        block = slice(start, min(start + BLOCK, len(positives)))
        own, columns = first(block), positives[block]
        if k is None:
            found.append(weight_gains(own, second(block, None), columns))
            continue
        best = retrieve(own, k)
        places = [
            [int(np.append(np.flatnonzero(row == item), -1)[0]) for item in positive_items]
            for row, positive_items in zip(best, columns, strict=True)
        ]
        found.append(weight_gains(np.take_along_axis(own, best, 1), second(block, best), places))
    return Fusion(name, GRID[best_place(np.concatenate([np.zeros((len(GRID), 0)), *found], 1))], k)
