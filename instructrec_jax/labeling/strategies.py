"""Which texts of a pool to label next: scores and selections from what a model believes, as plain functions of arrays.

chosen = select("breaking_ties", Beliefs(shares=shares), count=20, seed=0)
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from instructrec_jax.metrics.uncertainty import entropy, mutual_information

Strategy = Literal["breaking_ties", "entropy", "bald", "badge", "core_set", "random"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
NEEDS: Mapping[Strategy, tuple[str, ...]] = {
    "breaking_ties": ("shares",),
    "entropy": ("shares",),
    "bald": ("draws",),
    "badge": ("shares", "vectors"),
    "core_set": ("vectors", "known"),
    "random": (),
}
BLOCK = 256  # labeled texts whose distances are in memory
MEANS = {
    "shares": "probabilities of labels: a classification task",
    "draws": "several draws of the probabilities: a network with dropout",
    "vectors": "vectors of the texts",
    "known": "vectors of the labeled texts",
}


@dataclass(frozen=True)
class Beliefs:
    """What a model believes of the texts of a pool; None: the task or the model does not give it.

    Attributes:
      size: number of texts.
      shares: probabilities, float64 [texts, labels].
      draws: the same of several draws, float64 [draws, texts, labels].
      vectors: float32 [texts, width]; `known`: of the labeled texts, [labeled, width].
    """

    size: int
    shares: np.ndarray | None = None
    draws: np.ndarray | None = None
    vectors: np.ndarray | None = None
    known: np.ndarray | None = None


def select(strategy: Strategy, beliefs: Beliefs, count: int, seed: int) -> np.ndarray:
    """The numbers of the `count` texts (or all, if the pool has fewer) to label next, int64, best first.

    Raises ValueError for an empty pool, and for a strategy that needs what the model does not give.
    """
    if not beliefs.size:
        raise ValueError("the pool is empty: no text is left to label.")
    if count < 1:
        raise ValueError(f"--batch must be at least 1, but is {count}.")
    if missing := [name for name in NEEDS[strategy] if getattr(beliefs, name) is None]:
        raise ValueError(
            f"--strategy {strategy} needs {MEANS[missing[0]]}. The run does not give them; random needs nothing."
        )
    count, rng = min(count, beliefs.size), np.random.default_rng(seed)
    if strategy == "random":
        return rng.permutation(beliefs.size)[:count]
    if strategy == "core_set":
        assert beliefs.vectors is not None and beliefs.known is not None
        return core_set(beliefs.vectors, beliefs.known, count)
    if strategy == "badge":
        assert beliefs.shares is not None and beliefs.vectors is not None
        return badge(beliefs.shares, beliefs.vectors, count, rng)
    if strategy == "bald":
        assert beliefs.draws is not None
        return top(mutual_information(beliefs.draws), count)
    assert beliefs.shares is not None
    return top(ties(beliefs.shares) if strategy == "breaking_ties" else entropy(beliefs.shares), count)


def top(scores: np.ndarray, count: int) -> np.ndarray:
    """The numbers of the largest scores, largest first; of equal ones the earliest. int64 [count]."""
    return np.argsort(-scores, kind="stable")[:count]


def ties(shares: np.ndarray) -> np.ndarray:
    """Breaking ties (Luo et al., 2005): minus the difference of the two largest probabilities, float64 [texts]."""
    second, first = np.partition(shares, -2, axis=1)[:, -2:].T
    return second - first


def core_set(vectors: np.ndarray, known: np.ndarray, count: int) -> np.ndarray:
    """Greedy k-center (Sener & Savarese, 2018): again and again the text farthest from all labeled and chosen ones.

    Args:
      vectors: float [texts, width].
      known: of the labeled texts, float [labeled, width]; without any, the first chosen text is the one farthest from
        the mean.
    """
    texts = vectors.astype(np.float64)
    norms = np.square(texts).sum(1)
    distance = np.full(len(texts), np.inf)
    for first in range(0, len(known), BLOCK):
        some = known[first : first + BLOCK].astype(np.float64)
        distance = np.minimum(distance, (norms[:, None] + np.square(some).sum(1) - 2 * texts @ some.T).min(1))
    start = texts.mean(0) if not len(known) else None
    chosen: list[int] = []
    for _ in range(count):
        far = distance if start is None or chosen else np.square(texts - start).sum(1)
        chosen.append(int(np.argmax(far)))
        distance = np.minimum(distance, norms + norms[chosen[-1]] - 2 * texts @ texts[chosen[-1]])
        distance[chosen] = -np.inf  # never twice, even where all texts are equal
    return np.array(chosen, np.int64)


def badge(shares: np.ndarray, vectors: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """BADGE (Ash et al., 2020): k-means++ on gradients of the last layer, for the most probable label.

    The gradient of text x is (p(x) − e_ŷ) ⊗ h(x), float [labels × width]. It is not formed: the squared distance of
    two outer products a ⊗ h and b ⊗ g is |a|²|h|² + |b|²|g|² − 2 (a·b)(h·g). The first text has the largest gradient;
    each other one is drawn with a probability proportional to its squared distance from the nearest chosen one.
    """
    error = shares.astype(np.float64, copy=True)
    error[np.arange(len(shares)), shares.argmax(1)] -= 1
    hidden = vectors.astype(np.float64)
    norms = np.square(error).sum(1) * np.square(hidden).sum(1)
    distance, chosen = np.full(len(norms), np.inf), [int(np.argmax(norms))]
    while len(chosen) < count:
        last = chosen[-1]
        product = (error @ error[last]) * (hidden @ hidden[last])
        distance = np.maximum(np.minimum(distance, norms + norms[last] - 2 * product), 0)
        distance[chosen] = 0
        total = distance.sum()
        left = np.setdiff1d(np.arange(len(norms)), chosen)
        chosen.append(int(rng.choice(len(norms), p=distance / total)) if total > 0 else int(rng.choice(left)))
    return np.array(chosen, np.int64)
