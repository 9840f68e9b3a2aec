"""What the sequence task learns from an example: a window of its items, with the next ones or masked ones as labels."""

from dataclasses import dataclass

import jax
import numpy as np

from instructrec_jax.adapters.next_item import MASK
from instructrec_jax.data.batch import PerToken, Whole

ONLY_LAST = 0.1  # chance that only the last item is masked, as in every prediction (BERT4Rec: 1 of 11 copies)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class NegativeSample:
    """Items drawn for the sampled softmax: int32 [negatives], and float32 log of their expected counts."""

    items: Whole
    log_expected: Whole


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class NextItems:
    """The item at each position that is to be predicted, int32 [tokens], and whether it counts.

    `sample`: of the sampled softmax, else None. `negatives`: of the losses bce and gbce, int32 [tokens, k], else None.
    """

    labels: PerToken
    supervised: PerToken
    sample: NegativeSample | None
    negatives: PerToken | None = None


def next_items(row: int, window: np.ndarray, only_last: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(tokens, labels, supervised), int32 [items] each: every item is the label of the place before it.

    Args:
      row: of the instruction, the first token.
      window: int32 [items], oldest first.
      only_last: whether the last one alone counts.
    """
    supervised = np.full(len(window), not only_last, np.int32)
    supervised[-1] = 1
    return np.append(np.int32(row), window[:-1]), window, supervised


def masked_items(
    row: int, window: np.ndarray, only_last: bool, share: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(tokens, labels, supervised), int32 [1 + items] each, with `MASK` in place of some items, which are their labels.

    Each is masked with probability `share`, or the last one alone: always with `only_last`, else with `ONLY_LAST` and
    where no other would be. Other arguments as in `next_items`.
    """
    last = np.arange(len(window)) == len(window) - 1
    drawn = last if only_last or rng.random() < ONLY_LAST else rng.random(len(window)) < share
    masked = drawn if drawn.any() else last
    tokens = np.append(np.int32(row), np.where(masked, np.int32(MASK), window))
    return tokens, np.append(np.int32(0), window), np.append(False, masked).astype(np.int32)


def uniform_negatives(
    own: np.ndarray, pool: np.ndarray, shape: tuple[int, int], rng: np.random.Generator
) -> np.ndarray:
    """int32 of a shape: items drawn uniformly from those of the pool that are not `own`.

    Args:
      own: int [n], in any order, each maybe several times.
      pool: int [items], sorted.
    """
    taken = np.flatnonzero(np.isin(pool, own))
    left = len(pool) - len(taken)
    if not left:
        raise ValueError(
            f"an example's history holds all {len(pool)} items, so no negative can be drawn: set task.loss to softmax."
        )
    drawn = rng.integers(left, size=shape)
    return pool[drawn + np.searchsorted(taken - np.arange(len(taken)), drawn, side="right")].astype(np.int32)
