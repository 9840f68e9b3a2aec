"""Ranking metrics for one or several positive items per case: HR@k, Recall@k, NDCG@k, MRR@k.

Ties are never broken by the order of an array. A positive item is represented by the number of other items that score
higher (`better`) and equal (`tied`). Its rank under random tie-breaking is uniform on better + 1 .. better + tied + 1,
and every metric is the exact expectation over it: a model with equal scores for all items gets the value of random
guessing. `Ranks.pessimistic()` counts every tie against the positive items instead.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike


@dataclass(frozen=True)
class Ranks:
    """Ranks of the positive items, one or several per case. All arrays are int64 [positive items]."""

    better: np.ndarray
    """number of items with a higher score"""
    tied: np.ndarray
    """number of other items with the same score"""
    case: np.ndarray | None = None
    """case of each positive item, 0 .. cases - 1, ascending; None: one positive item per case"""

    def __len__(self) -> int:
        """Number of cases."""
        if self.case is None:
            return len(self.better)
        return int(self.case[-1]) + 1 if len(self.case) else 0

    def expected(self) -> np.ndarray:
        """Expected 1-based rank of each positive item, float64 [positive items]."""
        return self.better + self.tied / 2 + 1

    def pessimistic(self) -> "Ranks":
        """The same cases with every tie counted against the positive items (not against each other)."""
        alike = self._positives_alike()
        return Ranks(self.better + self.tied + 1 - alike, alike - 1, self.case)

    def counts(self) -> np.ndarray:
        """Positive items of each case, int64 [cases]."""
        if self.case is None:
            return np.ones(len(self.better), np.int64)
        return np.bincount(self.case, minlength=len(self))

    def best(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of each case's best positive item: better items, items of equal score (with itself), positives of these."""
        if self.case is None:
            return self.better, self.tied + 1, np.ones_like(self.better)
        order = np.lexsort((self.better, self.case))
        first = order[np.searchsorted(self.case[order], np.arange(len(self)))]
        return self.better[first], self.tied[first] + 1, self._positives_alike()[first]

    def _positives_alike(self) -> np.ndarray:
        """Number of positive items of the same case and score, itself included, i.e. with equal `better`."""
        if self.case is None:
            return np.ones_like(self.better)
        keys = np.stack([self.case, self.better])
        _, inverse, counts = np.unique(keys, axis=1, return_inverse=True, return_counts=True)
        return counts[inverse.reshape(-1)]


def ranks_from(ranks: ArrayLike) -> Ranks:
    """`Ranks` from plain 1-based integer ranks [cases] without ties."""
    array = np.asarray(ranks)
    if array.ndim != 1 or (array.size and not np.issubdtype(array.dtype, np.integer)):
        raise ValueError(f"ranks must be integers [cases], got {array.dtype} {array.shape}.")
    if array.size and array.min() < 1:
        raise ValueError(f"ranks must be at least 1, got {array.min()}: add 1 to ranks counted from 0.")
    return Ranks(array.astype(np.int64) - 1, np.zeros(len(array), np.int64))


def target_ranks(scores: ArrayLike, targets: ArrayLike) -> Ranks:
    """Ranks of one target per case. scores: float [cases, items], higher is better; targets: int [cases], columns.

    Raises ValueError for NaN.
    """
    values, columns = np.asarray(scores), np.asarray(targets, np.int64)
    if np.isnan(values).any():
        raise ValueError("scores hold NaN: the model may have diverged.")
    own = np.take_along_axis(values, columns[:, None], axis=1)
    return Ranks((values > own).sum(1, dtype=np.int64), (values == own).sum(1, dtype=np.int64) - 1)


def concatenate(parts: Sequence[Ranks]) -> Ranks:
    """Ranks of several blocks of cases as one."""
    if not parts:
        return ranks_from([])
    case = None
    if any(p.case is not None for p in parts):
        firsts = np.cumsum([0, *(len(p) for p in parts[:-1])])
        owners = (np.arange(len(p)) if p.case is None else p.case for p in parts)
        case = np.concatenate([owner + first for owner, first in zip(owners, firsts, strict=True)])
    return Ranks(np.concatenate([p.better for p in parts]), np.concatenate([p.tied for p in parts]), case)


def _ranks(ranks: Ranks | ArrayLike) -> Ranks:
    return ranks if isinstance(ranks, Ranks) else ranks_from(ranks)


def _expectation(ranks: Ranks, gains: np.ndarray) -> np.ndarray:
    """Sum over a case's positive items of the mean of gains[r - 1] over tied ranks r; gains beyond the end are 0."""
    cumulative = np.concatenate([[0.0], np.cumsum(gains)])
    first = np.minimum(ranks.better, len(gains))
    last = np.minimum(ranks.better + ranks.tied + 1, len(gains))
    means = (cumulative[last] - cumulative[first]) / (ranks.tied + 1)
    return means if ranks.case is None else np.bincount(ranks.case, means, len(ranks))


def _positions(k: int) -> np.ndarray:
    if k < 1:
        raise ValueError(f"a cutoff k must be at least 1, got {k}.")
    return np.arange(1, k + 1, dtype=np.float64)


def hit_rate(ranks: Ranks | ArrayLike, k: int) -> np.ndarray:
    """HR@k of each case, float64 [cases]: 1 if a positive item is among the first k (= recall if there is one)."""
    better, alike, positives = _ranks(ranks).best()
    inside = np.clip(_positions(k)[-1] - better, 0, alike)
    # P(no positive item among the first `inside` of `alike` items in random order): draws without replacement.
    missed = np.ones(len(better))
    for n in range(int(positives.max(initial=0))):
        left = np.maximum(alike - inside - n, 0) / np.maximum(alike - n, 1)
        missed *= np.where(n < positives, left, 1)
    return 1 - missed


def recall(ranks: Ranks | ArrayLike, k: int) -> np.ndarray:
    """Recall@k of each case, float64 [cases]: the share of its positive items among the first k."""
    where = _ranks(ranks)
    return _expectation(where, np.ones_like(_positions(k))) / where.counts()


def ndcg(ranks: Ranks | ArrayLike, k: int) -> np.ndarray:
    """NDCG@k of each case, float64 [cases]: the sum of 1 / log2(rank + 1) over positive items of rank <= k, divided by
    its value for the ideal ranking (Järvelin & Kekäläinen 2002), which is 1 with one positive item.
    """
    where = _ranks(ranks)
    gains = 1 / np.log2(_positions(k) + 1)
    return _expectation(where, gains) / np.cumsum(gains)[np.minimum(where.counts(), k) - 1]


def mrr(ranks: Ranks | ArrayLike, k: int) -> np.ndarray:
    """MRR@k of each case, float64 [cases]: 1 / rank of its best positive item if that rank is <= k, else 0."""
    where = _ranks(ranks)
    if where.case is None:
        return _expectation(where, 1 / _positions(k))
    hits = [np.zeros(len(where)), *(hit_rate(where, r) for r in range(1, k + 1))]
    return np.sum(np.diff(hits, axis=0) / _positions(k)[:, None], axis=0)
