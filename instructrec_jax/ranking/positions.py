"""How much a reranker depends on the order in which it reads its candidates."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from instructrec_jax.metrics import ranking
from instructrec_jax.metrics.ranking import Ranks
from instructrec_jax.ranking.evaluation import check_scores


@dataclass(frozen=True)
class PositionReport:
    """Sensitivity of a ranking to the order in which the candidates are listed."""

    top_changes: float
    """share of cases whose best candidate differs between orders"""
    rank_by_position: np.ndarray
    """mean rank of the positive item when listed first, second ..., minus its mean over the other orders,
    float64 [k]"""
    hits_by_position: np.ndarray
    """HR@1 when the positive item is listed first, second ..., float64 [k]; NaN for a position that did not occur"""
    orders: int
    """number of orders"""

    def __str__(self) -> str:
        lines = [
            f"position report over {self.orders} orders of the candidates: the best candidate changes in "
            f"{self.top_changes:.1%} of the cases",
            "position of positive   HR@1     rank minus its mean over the other orders",
        ]
        for place, (hit, shift) in enumerate(zip(self.hits_by_position, self.rank_by_position, strict=True), 1):
            lines.append(f"{place:>20}   {hit:.4f}   {shift:+.3f}")
        return "\n".join(lines)


def position_report(
    score: Callable[[np.ndarray], np.ndarray],
    positives: np.ndarray,
    candidates: np.ndarray,
    *,
    orders: int,
    seed: int = 0,
) -> PositionReport:
    """Scores the positive item and its candidates in several random orders. Equal scores are averaged.

    Args:
      score: item numbers int32 [cases, k], as listed -> float [cases, k].
      positives: int [cases].
      candidates: int [cases, k - 1], without the positive items.
    """
    if orders < 2:
        raise ValueError(f"task.orders must be at least 2 for a position report, got {orders}.")
    if (candidates < 0).any():
        raise ValueError("a position report needs the same number of candidates in all cases.")
    rng = np.random.default_rng(seed)
    listed = np.concatenate([positives[:, None], candidates], axis=1).astype(np.int32)
    rows, size = np.arange(len(listed))[:, None], listed.shape[1]
    ranks, hits, places, best = [], [], [], []
    for _ in range(orders):
        order = np.argsort(rng.random(listed.shape), axis=1)
        scores = np.asarray(score(listed[rows, order]), np.float64)
        check_scores(scores, listed.shape, 0)
        place = np.argmin(order, axis=1)  # position of the positive item
        mine = scores[rows[:, 0], place][:, None]
        where = Ranks((scores > mine).sum(axis=1), (scores == mine).sum(axis=1) - 1)
        ranks.append(where.expected())
        hits.append(ranking.hit_rate(where, 1))
        places.append(place)
        # Of equal scores, the first in the unshuffled list wins, so that a tie does not count as a change.
        unshuffled = np.empty_like(scores)
        unshuffled[rows, order] = scores
        best.append(np.argmax(unshuffled, axis=1))
    shift = (np.array(ranks) - np.mean(ranks, axis=0)) * orders / (orders - 1)  # against the other orders' mean
    at, count = np.concatenate(places), np.bincount(np.concatenate(places), minlength=size)
    with np.errstate(invalid="ignore"):
        by_place = [np.bincount(at, np.concatenate(v), minlength=size) / count for v in (shift, np.array(hits))]
    return PositionReport(float((np.array(best) != best[0]).any(axis=0).mean()), by_place[0], by_place[1], orders)
