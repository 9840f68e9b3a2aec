"""Ranking metrics for one relevant item per case: HR@k, NDCG@k, MRR@k, and paired bootstrap intervals.

Ties are never broken by the order of an array. A case is kept as (`better`, `tied`): how many other items
score higher than the target and how many score the same. The target's rank under random tie-breaking is then
uniform on better + 1 .. better + tied + 1, and every metric here is the exact expectation over that: a model
that scores all items alike gets what guessing gets, not a perfect or a zero score. `Ranks.pessimistic()`
counts every tie against the target instead.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike


@dataclass(frozen=True)
class Ranks:
    """Where the target of each case stands. Both arrays are int64 [cases]."""

    better: np.ndarray
    """items scored strictly higher than the target"""
    tied: np.ndarray
    """other items scored exactly like the target"""

    def __len__(self) -> int:
        return len(self.better)

    def expected(self) -> np.ndarray:
        """Expected 1-based rank, float64 [cases]."""
        return self.better + self.tied / 2 + 1

    def pessimistic(self) -> "Ranks":
        """The same cases with every tie counted against the target."""
        return Ranks(self.better + self.tied, np.zeros_like(self.tied))


def ranks_from(ranks: ArrayLike) -> Ranks:
    """`Ranks` from plain 1-based integer ranks [cases] without ties."""
    array = np.asarray(ranks)
    if array.ndim != 1 or (array.size and not np.issubdtype(array.dtype, np.integer)):
        raise ValueError(f"ranks must be whole numbers [cases], got {array.dtype} {array.shape}.")
    if array.size and array.min() < 1:
        raise ValueError(f"ranks count from 1, got {array.min()}: add 1 to ranks that count from 0.")
    return Ranks(array.astype(np.int64) - 1, np.zeros(len(array), np.int64))


def concatenate(parts: Sequence[Ranks]) -> Ranks:
    """Ranks of several blocks of cases as one."""
    if not parts:
        return ranks_from([])
    return Ranks(np.concatenate([p.better for p in parts]), np.concatenate([p.tied for p in parts]))


def target_ranks(scores: ArrayLike, targets: ArrayLike, seen: Sequence[ArrayLike] | None = None) -> Ranks:
    """Rank the target of each case among all scored items.

    scores: float [cases, items], higher is better; targets: int [cases], a column of `scores`; seen: for each
    case the columns that do not compete (items the user already has), any order, or None. Infinite scores are
    fine, NaN is an error; so is a target that is among the seen items, since its rank would mean nothing.
    """
    values = np.asarray(scores)
    wanted = np.asarray(targets)
    if values.ndim != 2 or wanted.shape != values.shape[:1]:
        raise ValueError(f"scores must be [cases, items] and targets [cases], got {values.shape} and {wanted.shape}.")
    if len(wanted) and not (0 <= wanted.min() and wanted.max() < values.shape[1]):
        raise ValueError(f"targets must lie in 0..{values.shape[1] - 1}, got {wanted.min()}..{wanted.max()}.")
    if np.isnan(values).any():
        case = int(np.argmax(np.isnan(values).any(axis=1)))
        raise ValueError(f"scores of case {case} hold NaN: a model that diverged has no ranking.")
    target_score = np.take_along_axis(values, wanted[:, None].astype(np.int64), axis=1)
    higher, equal = values > target_score, values == target_score
    if seen is not None:
        if len(seen) != len(wanted):
            raise ValueError(f"seen lists {len(seen)} cases, scores have {len(wanted)}.")
        for case, items in enumerate(seen):
            columns = np.asarray(items, dtype=np.int64)
            if len(columns) and not (0 <= columns.min() and columns.max() < values.shape[1]):
                raise ValueError(f"case {case}: seen items must lie in 0..{values.shape[1] - 1}.")
            if (columns == wanted[case]).any():
                raise ValueError(
                    f"case {case}: the target (item {wanted[case]}) is among the seen items it is masked by. "
                    "Keep one interaction per user and item, or leave this case out."
                )
            higher[case, columns] = False
            equal[case, columns] = False
    return Ranks(higher.sum(axis=1, dtype=np.int64), equal.sum(axis=1, dtype=np.int64) - 1)


def _expectation(ranks: Ranks | ArrayLike, gains: np.ndarray) -> np.ndarray:
    """Mean of gains[r - 1] over the tied ranks of each case; gains beyond the array are 0."""
    where = ranks if isinstance(ranks, Ranks) else ranks_from(ranks)
    cumulative = np.concatenate([[0.0], np.cumsum(gains)])
    first = np.minimum(where.better, len(gains))
    last = np.minimum(where.better + where.tied + 1, len(gains))
    return (cumulative[last] - cumulative[first]) / (where.tied + 1)


def _positions(k: int) -> np.ndarray:
    if k < 1:
        raise ValueError(f"a cut-off k must be at least 1, got {k}.")
    return np.arange(1, k + 1, dtype=np.float64)


def hit_rate(ranks: Ranks | ArrayLike, k: int) -> np.ndarray:
    """HR@k of each case, float64 [cases]: 1 if the target is among the first k (= recall with one target)."""
    return _expectation(ranks, np.ones_like(_positions(k)))


def ndcg(ranks: Ranks | ArrayLike, k: int) -> np.ndarray:
    """NDCG@k of each case, float64 [cases]: 1 / log2(rank + 1) up to rank k, else 0.

    With one relevant item the ideal gain is 1 (Järvelin & Kekäläinen 2002).
    """
    return _expectation(ranks, 1 / np.log2(_positions(k) + 1))


def mrr(ranks: Ranks | ArrayLike, k: int) -> np.ndarray:
    """MRR@k of each case, float64 [cases]: 1 / rank up to rank k, else 0."""
    return _expectation(ranks, 1 / _positions(k))


def ranking_metrics(ranks: Ranks | ArrayLike, cutoffs: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """Means over cases as {"HR@1": ..., "NDCG@1": ..., "MRR@1": ..., ...}; zero cases are an error."""
    where = ranks if isinstance(ranks, Ranks) else ranks_from(ranks)
    if not len(where):
        raise ValueError("no cases to average ranking metrics over.")
    named = {"HR": hit_rate, "NDCG": ndcg, "MRR": mrr}
    return {f"{name}@{k}": float(metric(where, k).mean()) for k in cutoffs for name, metric in named.items()}


def bootstrap_interval(values: ArrayLike, seed: int = 0, n: int = 10_000) -> tuple[float, float, float]:
    """(mean, low, high): mean of `values` [cases] and its 95% percentile bootstrap interval over cases.

    n resamples with replacement (Efron & Tibshirani 1993, chapter 13); same seed, same interval.
    """
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or not sample.size:
        raise ValueError(f"the bootstrap needs values [cases] with at least one case, got shape {sample.shape}.")
    if not np.isfinite(sample).all():
        raise ValueError(f"value of case {int(np.argmin(np.isfinite(sample)))} is not finite.")
    if n < 1:
        raise ValueError(f"n, the number of resamples, must be at least 1, got {n}.")
    rng = np.random.default_rng(seed)
    rows = max(1, 4_000_000 // len(sample))  # resample in blocks: [n, cases] at once would not fit
    means = [
        sample[rng.integers(0, len(sample), size=(min(rows, n - start), len(sample)))].mean(axis=1)
        for start in range(0, n, rows)
    ]
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return float(sample.mean()), float(low), float(high)


def paired_bootstrap(a: ArrayLike, b: ArrayLike, seed: int = 0, n: int = 10_000) -> tuple[float, float, float]:
    """(mean difference a - b, low, high): 95% interval with a and b resampled together.

    a, b: one metric value per case, [cases], the same cases in the same order. The difference is taken to be
    real when the interval excludes 0.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape:
        raise ValueError(f"a paired bootstrap compares the same cases, got {first.shape} and {second.shape}.")
    return bootstrap_interval(first - second, seed, n)
