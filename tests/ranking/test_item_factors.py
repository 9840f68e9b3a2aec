"""Vectors of co-occurrence against NumPy in float64."""

import numpy as np
import pytest

from instructrec_jax.ranking import item_factors as module
from instructrec_jax.ranking.item_factors import item_factors

ITEMS = 60


def sequences(users: int = 80, seed: int = 0) -> list[np.ndarray]:
    """Walks along a ring, so that items have neighbors; the last two items are in none."""
    rng = np.random.default_rng(seed)
    return [(rng.integers(ITEMS) + rng.integers(0, 4, 12).cumsum()) % (ITEMS - 2) for _ in range(users)]


def information(window: int) -> np.ndarray:
    """Positive pointwise mutual information by counting pairs one by one, [items, items]."""
    counts = np.zeros((ITEMS, ITEMS))
    for walk in sequences():
        for place, item in enumerate(walk):
            for gap, follower in enumerate(walk[place + 1 : place + 1 + window], start=1):
                counts[item, follower] += 1 / gap
    after = counts.sum(0) ** 0.75
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.log(counts / (counts.sum(1, keepdims=True) * after / after.sum()))
    return np.where(counts > 0, np.maximum(found, 0), 0)


def spread_of(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    both = np.concatenate([left, right], 1)
    both[:-2] -= both[:-2].mean(0)
    return 2 * both / both[:-2].std()


@pytest.mark.parametrize("few", [1_000, 0], ids=["all singular values", "the largest ones"])
def test_vectors_are_factors_of_the_mutual_information(few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FEW_ITEMS", few)
    left, values, right = np.linalg.svd(information(5))
    expected = spread_of(left[:, :6] * np.sqrt(values[:6]), right[:6].T * np.sqrt(values[:6]))
    found = item_factors(sequences(), ITEMS, 6, window=5)
    signs = np.sign((found[:, :6] * expected[:, :6]).sum(0))
    np.testing.assert_allclose(found[:-2], (expected * np.tile(signs, 2))[:-2], atol=2e-5)
    assert found.dtype == np.float32 and not found[-2:].any()  # items without a neighbor
    np.testing.assert_array_equal(found, item_factors(sequences(), ITEMS, 6, window=5))


def test_few_items_and_no_pairs() -> None:
    found = item_factors([[0, 1, 2], [2, 1]], 3, 8)
    assert found.shape == (3, 16) and np.isfinite(found).all() and found.any() and not found[:, 3:8].any()
    for nothing in ([], [[1], [2]], [[]]):
        assert not item_factors([np.array(each, np.int64) for each in nothing], 3, 8).any()
