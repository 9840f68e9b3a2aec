"""Vectors of items from what is chosen together: factors of the co-occurrences in training sequences.

An item's vector is its row of U √S beside its row of V √S, of the largest singular values of the matrix of positive
pointwise mutual information between an item and those that follow it (Levy & Goldberg, 2014, "Neural Word Embedding as
Implicit Matrix Factorization"; with their context distribution smoothing of 2015, "Improving Distributional Similarity
with Lessons Learned from Word Embeddings", exponent .75). A follower at distance g counts 1 / g.
"""

from collections.abc import Sequence

import numpy as np
import scipy
from numpy.typing import ArrayLike

from instructrec_jax.ranking.baselines import CoOccurrence

SMOOTHING = 0.75
SPREAD = 2.0  # standard deviation of the vectors
FEW_ITEMS = 1_000  # up to these, all singular values are computed


def item_factors(sequences: Sequence[ArrayLike], num_items: int, size: int, *, window: int = 10) -> np.ndarray:
    """Vectors of items, float32 [num_items, 2 * size], with mean 0 and standard deviation 2 over the known items.

    Zeros for items without a neighbor in any sequence, and in columns beyond the rank. The signs of singular vectors
    are chosen so that the same sequences give the same vectors.

    Args:
      sequences: item numbers of each user, oldest first.
      size: singular values.
      window: greatest distance of a follower.
    """
    follows = CoOccurrence(window=window, backwards=0, divide_by="nothing").fit(sequences, num_items).links
    known = np.asarray(follows.sum(0) + follows.sum(1)).ravel() > 0
    found = np.zeros((num_items, 2 * size), np.float32)
    if not known.any():
        return found
    for place, vectors in enumerate(_factors(_information(follows), size)):
        found[:, place * size : place * size + vectors.shape[1]] = vectors
    centered = np.where(known[:, None], found - found[known].mean(0), np.float32(0))
    return centered * (np.float32(SPREAD) / (centered[known].std() or 1))


def _information(follows: "scipy.sparse.csr_array") -> "scipy.sparse.csr_array":
    """max(0, log p(a, b) / (p(a) q(b))), with q smoothed."""
    before, after = np.asarray(follows.sum(1)).ravel(), np.asarray(follows.sum(0)).ravel() ** SMOOTHING
    pairs = follows.tocoo()
    expected = before[pairs.row] * (after / after.sum())[pairs.col]
    values = np.log(pairs.data / expected)
    kept = values > 0
    return scipy.sparse.csr_array((values[kept], (pairs.row[kept], pairs.col[kept])), pairs.shape)


def _factors(matrix: "scipy.sparse.csr_array", size: int) -> tuple[np.ndarray, np.ndarray]:
    """U √S and V √S of the `size` largest singular values, float64 [items, at most size] each."""
    if min(matrix.shape) <= max(FEW_ITEMS, size + 1):
        left, values, right = np.linalg.svd(matrix.toarray(), full_matrices=False)
        left, values, right = left[:, :size], values[:size], right[:size]
    else:
        start = np.random.default_rng(0).normal(size=matrix.shape[0])  # else drawn anew at each call
        left, values, right = scipy.sparse.linalg.svds(matrix, k=size, v0=start)
        left, values, right = left[:, ::-1], values[::-1], right[::-1]
    highest = np.abs(left).argmax(0)
    scale = np.sqrt(values) * np.where(left[highest, np.arange(len(values))] < 0, -1, 1)
    return left * scale, right.T * scale
