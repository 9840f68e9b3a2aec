"""Two rankers' scores as one ranking: hybrids over the whole catalogue, and two stages (retrieve k, rerank these).

    fusion = tune_fusion(first, second, positives, name="coKNN")          the weight, on validation cases only
    fusion = tune_fusion(first, second, positives, name="RUN2", k=100)    two stages
    scores = fusion.scores(first, second)                                 of the whole catalogue

`evaluate` measures and `recommend` answers with `Fusion.scores`; the tuned fusion is kept with the run. Everything here
is NumPy on blocks of cases; what does not compete (seen items) has the score −inf.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from instructrec_jax.metrics import ranking

# Scores of the second ranker: of items int [cases, k], or of the whole catalogue where that is None.
Second = Callable[[np.ndarray | None], ArrayLike]

GRID = tuple(step / 20 for step in range(21))
BLOCK = 512  # cases that are scored at a time


def mask(scores: ArrayLike, seen: Sequence[ArrayLike] | None) -> np.ndarray:
    """float64 [cases, items]: a copy of the scores with −inf for each case's `seen` items (their numbers)."""
    masked = np.array(scores, np.float64)
    for case, items in enumerate(seen or ()):
        masked[case, np.asarray(items, np.int64)] = -np.inf
    return masked


def retrieve(scores: np.ndarray, k: int) -> np.ndarray:
    """int64 [cases, k]: the best items of each case, best first; of equal ones the lower number. k is cut to items.

    Raises ValueError for k below 1 and for scores that are NaN.
    """
    if k < 1:
        raise ValueError(f"k, the number of items that are retrieved, must be at least 1, but is {k}.")
    if np.isnan(scores).any():
        raise ValueError("scores of the first stage hold NaN: a model that diverged has no ranking.")
    items = scores.shape[1]
    if k >= items:
        return np.argsort(-scores, axis=1, kind="stable")
    border = np.partition(scores, items - k, axis=1)[:, items - k]  # the k-th best score
    chosen = scores >= border[:, None]
    counts = np.count_nonzero(chosen, axis=1)
    for row in np.flatnonzero(counts > k):  # of those that equal it the highest numbers go
        equal = np.flatnonzero(scores[row] == border[row])
        chosen[row, equal[k - counts[row] :]] = False
    numbers = np.nonzero(chosen)[1].reshape(len(scores), k)
    order = np.argsort(-np.take_along_axis(scores, numbers, 1), axis=1, kind="stable")
    return np.take_along_axis(numbers, order, 1)


def standardize(scores: ArrayLike) -> np.ndarray:
    """z = (s − mean) / standard deviation of each case (row), over its finite scores; float64 [cases, n].

    −inf stays; a case whose scores are all equal gets zeros. Raises ValueError for NaN and +inf.
    """
    values = np.array(scores, np.float64)
    mean, deviation = moments(values)
    return np.where(np.isfinite(values), (values - mean) / deviation, -np.inf)


def moments(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each case's finite scores, float64 [cases, 1]; equal scores deviate by +inf."""
    if np.isnan(values).any() or np.isposinf(values).any():
        raise ValueError("scores to be mixed hold NaN or infinity: a model that diverged has no ranking.")
    finite = np.isfinite(values)
    count = np.maximum(finite.sum(1, keepdims=True), 1)
    mean = values.sum(1, keepdims=True, where=finite) / count
    centered = np.where(finite, values - mean, 0)
    deviation = np.sqrt((centered**2).sum(1, keepdims=True) / count)
    # the mean is rounded, so equal scores may seem to deviate from it
    lowest, highest = values.min(1, where=finite, initial=np.inf), values.max(1, where=finite, initial=-np.inf)
    deviation[lowest >= highest] = np.inf
    return mean, deviation


def hybrid(first: ArrayLike, second: ArrayLike, weight: float) -> np.ndarray:
    """(1 − weight) · z₁ + weight · z₂, float64 [cases, n], of two scorers' scores of the same items.

    z₁ and z₂ are each scorer's scores, standardized within the case over the items that both score (are not −inf); an
    item that either of them masks is masked (see `standardize`). Items that tie for both scorers tie.
    """
    return _mix(*_comparable(first, second), weight)


def _comparable(first: ArrayLike, second: ArrayLike) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """z₁ and z₂ of a hybrid, with 0 where an item is masked, and where that is."""
    a, b = np.array(first, np.float64), np.array(second, np.float64)
    if a.shape != b.shape:
        raise ValueError(f"a hybrid mixes scores of the same items, but they have the shapes {a.shape} and {b.shape}.")
    masked = np.isneginf(a) | np.isneginf(b)
    a[masked] = b[masked] = -np.inf
    a, b = standardize(a), standardize(b)
    a[masked] = b[masked] = 0
    return a, b, masked


def _mix(first: np.ndarray, second: np.ndarray, masked: np.ndarray, weight: float) -> np.ndarray:
    if not 0 <= weight <= 1:
        raise ValueError(f"the weight of a hybrid lies between 0 (first alone) and 1 (second alone), but is {weight}.")
    mixed = (1 - weight) * first + weight * second
    mixed[masked] = -np.inf
    return mixed


def merge(first: np.ndarray, candidates: np.ndarray, second: ArrayLike) -> np.ndarray:
    """Scores of a complete ranking: the retrieved items in the second scorer's order, then the others in the first's.

    Args:
      first: float [cases, items]; −inf does not compete, retrieved or not.
      candidates: int [cases, k], distinct items of each case.
      second: float [cases, k], their scores.

    Returns: float64 [cases, items]. A retrieved item's score is its place from below among the retrieved, 1, 2, ...,
    the same for equal ones; the others' lie at or below 0, as far apart as in `first`.
    """
    inside = np.asarray(second, np.float64)
    if inside.shape != candidates.shape:
        raise ValueError(f"the second stage was asked for scores {candidates.shape}, but gave {inside.shape}.")
    if np.isnan(inside).any():
        raise ValueError("scores of the second stage hold NaN: a model that diverged has no ranking.")
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
    """Retrieves k items of each case by the first scores, ranks these by the second: float64 [cases, items].

    Args:
      first: float [cases, items], higher is better.
      rerank: items int64 [cases, k] -> their scores float [cases, k]. Where fewer than k compete, some of the items
        that it is asked for are seen ones, whose scores are not looked at.
      seen: of each case the items that do not compete.
      weight: of the second scorer; below 1 the k are ranked by their `hybrid`.

    Returns: scores of the whole ranking, see `merge`.
    """
    masked = mask(first, seen)
    return merge(masked, *rerank_best(masked, rerank, k=k, weight=weight))


def rerank_best(
    first: np.ndarray, rerank: Callable[[np.ndarray], ArrayLike], *, k: int, weight: float
) -> tuple[np.ndarray, np.ndarray]:
    """The k best items of each case by the first scores, int64 [cases, k], and the scores that rerank them, float64.

    Args:
      first: float64 [cases, items]; −inf does not compete.
    """
    candidates = retrieve(first, k)
    second = np.asarray(rerank(candidates), np.float64)
    if weight == 1:
        return candidates, second
    return candidates, hybrid(np.take_along_axis(first, candidates, 1), second, weight)


@dataclass(frozen=True)
class Fusion:
    """How a second ranker's scores join the first one's.

    Attributes:
      name: of the second ranker: a baseline's, or a run directory's path.
      weight: of the second ranker's standardized scores, from 0 (first alone) to 1 (second alone).
      k: two stages: the second ranker reranks the k best of the first. None: a hybrid of whole rankings.
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
        """float64 [cases, items]: scores of the whole ranking, −inf where `first` is."""
        if self.k is None:
            return hybrid(first, second(None), self.weight)
        return two_stage(first, second, k=self.k, weight=self.weight)


# ---------------------------------------------------------------- the weight


def ndcg_at(scores: np.ndarray, wanted: Sequence[ArrayLike], k: int = 10) -> np.ndarray:
    """NDCG@k of each case with one or several wanted items, float64 [cases]; expected, where scores tie.

    Args:
      scores: float [cases, n]; −inf does not compete.
      wanted: of each case the columns of its wanted items; a negative number stands for one that is not among the n,
        which gains nothing, and counts in the ideal ranking.
    """
    discounts = 1 / np.log2(np.arange(2, k + 2))
    result = np.zeros(len(scores))
    for case, (row, columns) in enumerate(zip(scores, wanted, strict=True)):
        all_wanted = np.atleast_1d(np.asarray(columns, np.int64))
        if not len(all_wanted):
            raise ValueError(f"case {case} wants nothing, so there is no NDCG of it.")
        own = row[all_wanted[all_wanted >= 0]][:, None]
        better, tied = (row > own).sum(1), (row == own).sum(1) - 1
        gained = np.where(np.isneginf(own[:, 0]), 0, ranking.ndcg(ranking.Ranks(better, tied), k))
        result[case] = gained.sum() / discounts[: len(all_wanted)].sum()
    return result


def tune_weight(
    first: Callable[[slice], ArrayLike],
    second: Callable[[slice], ArrayLike],
    wanted: Sequence[ArrayLike],
    seen: Sequence[ArrayLike] | None = None,
    *,
    grid: Sequence[float] = GRID,
    k: int = 10,
    block: int = BLOCK,
) -> float:
    """The weight of the second scorer in a `hybrid` with the best mean NDCG@k; of equally good ones the lowest.

    Give it validation cases only. Works block by block: never are all cases' scores held.

    Args:
      first, second: block of the cases -> float [block, n], scores of the same items: of the whole catalogue, of a
        candidate set, or of what the first one retrieved.
      wanted: of each case the columns that it wants, see `ndcg_at`.
      seen: of each case the columns that do not compete.
    """
    if not len(wanted):
        raise ValueError("a weight is tuned on validation cases, but there is none.")
    if not len(grid):
        raise ValueError("the grid of weights is empty.")
    grid = sorted(grid)
    totals = np.zeros(len(grid))
    for start in range(0, len(wanted), block):
        cases = slice(start, min(start + block, len(wanted)))
        hidden = None if seen is None else seen[cases]
        pair = _comparable(mask(first(cases), hidden), second(cases))
        for place, weight in enumerate(grid):
            totals[place] += ndcg_at(_mix(*pair, weight), wanted[cases], k).sum()
    # sums of the same gains in another order differ by rounding
    return float(grid[int(np.argmax(totals >= totals.max() * (1 - 1e-12)))])


def tune_fusion(
    first: Callable[[slice], np.ndarray],
    second: Callable[[slice, np.ndarray | None], ArrayLike],
    positives: Sequence[np.ndarray],
    *,
    name: str,
    k: int | None = None,
) -> Fusion:
    """The fusion with the best mean NDCG@10 on validation cases; see `tune_weight`.

    Args:
      first: block of the cases -> float [block, items], −inf for what does not compete.
      second: (block, items int [block, k] or None for all of them) -> their scores.
      positives: of each case its positive items.
      name, k: of the `Fusion`.
    """
    if k is None:
        return Fusion(name, tune_weight(first, lambda block: second(block, None), positives))
    found = []
    for start in range(0, len(positives), BLOCK):  # never are all cases' scores held
        block = slice(start, start + BLOCK)
        scores = first(block)
        best = retrieve(scores, k)
        found.append((best, np.take_along_axis(scores, best, 1), np.asarray(second(block, best), np.float64)))
    items, own, others = (np.concatenate(each) for each in zip(*found, strict=True))
    places = [
        [int(np.append(np.flatnonzero(row == item), -1)[0]) for item in wanted]
        for row, wanted in zip(items, positives, strict=True)
    ]
    return Fusion(name, tune_weight(lambda block: own[block], lambda block: others[block], places), k)
