"""Windows of items, masks and negatives."""

import numpy as np
import pytest

from instructrec_jax.adapters.next_item import MASK
from instructrec_jax.tasks.ranking.next_items import masked_items, next_items, uniform_negatives

WINDOW = np.array([7, 3, 9, 4], np.int32)


def test_each_item_is_the_label_of_the_place_before_it() -> None:
    tokens, labels, supervised = next_items(5, WINDOW, only_last=False)
    assert tokens.tolist() == [5, 7, 3, 9] and labels.tolist() == [7, 3, 9, 4] and supervised.tolist() == [1] * 4
    assert next_items(5, WINDOW, only_last=True)[2].tolist() == [0, 0, 0, 1]


def test_masked_items_are_the_labels_and_no_other_token_changes() -> None:
    rng, shares, alone = np.random.default_rng(0), [], 0
    for _ in range(4000):
        tokens, labels, supervised = masked_items(5, WINDOW, False, 0.4, rng)
        masked = tokens == MASK
        assert masked.any() and not masked[0]
        np.testing.assert_array_equal(masked, supervised)
        np.testing.assert_array_equal(labels, [0, *WINDOW])
        np.testing.assert_array_equal(tokens[~masked], np.append(5, WINDOW)[~masked])
        shares.append(masked[1])
        alone += masked.tolist() == [False] * 4 + [True]
    assert np.mean(shares) == pytest.approx(0.9 * 0.4, abs=0.03)
    assert alone / 4000 == pytest.approx(0.1 + 0.9 * (0.6**4 + 0.6**3 * 0.4), abs=0.03)


def test_only_the_last_item_is_masked_where_only_it_counts() -> None:
    for seed in range(20):
        tokens, _, supervised = masked_items(5, WINDOW, True, 1.0, np.random.default_rng(seed))
        assert tokens.tolist() == [5, 7, 3, 9, MASK] and supervised.tolist() == [0, 0, 0, 0, 1]


@pytest.mark.parametrize("pool", [np.arange(8), np.array([0, 2, 3, 5, 7])])
def test_negatives_are_uniform_over_the_items_that_are_not_the_examples(pool: np.ndarray) -> None:
    drawn = uniform_negatives(np.array([3, 0, 3]), pool, (100, 90), np.random.default_rng(0))
    assert drawn.shape == (100, 90) and drawn.dtype == np.int32
    left = np.setdiff1d(pool, [0, 3])
    shares = np.bincount(drawn.ravel(), minlength=8) / drawn.size
    np.testing.assert_allclose(shares[left], 1 / len(left), atol=0.02)
    assert shares[left].sum() == pytest.approx(1)


def test_an_example_with_every_item_has_no_negatives() -> None:
    with pytest.raises(ValueError, match="all 3 items.*task.loss"):
        uniform_negatives(np.array([0, 1, 2]), np.arange(3), (1, 1), np.random.default_rng(0))
