import itertools
import math

import numpy as np
import pytest

from instructrec_jax.metrics.ranking import (
    bootstrap_interval,
    concatenate,
    hit_rate,
    mrr,
    ndcg,
    paired_bootstrap,
    ranking_metrics,
    ranks_from,
    target_ranks,
)


def by_enumeration(scores, target, k, seen=()):
    """(HR, NDCG, MRR)@k averaged over every order of the items that sorts the scores downwards."""
    items = [i for i in range(len(scores)) if i not in seen]
    totals, orders = np.zeros(3), 0
    for order in itertools.permutations(items):
        if any(scores[a] < scores[b] for a, b in itertools.pairwise(order)):
            continue
        rank = order.index(target) + 1
        orders += 1
        if rank <= k:
            totals += [1, 1 / math.log2(rank + 1), 1 / rank]
    return totals / orders


@pytest.mark.parametrize("k", [1, 2, 3, 10])
def test_metrics_equal_the_mean_over_all_tie_orders(k):
    rng = np.random.default_rng(0)
    for _ in range(30):
        scores = rng.integers(0, 3, size=6).astype(float)  # many ties
        target = int(rng.integers(6))
        seen = [i for i in rng.permutation(6)[:2] if i != target]
        ranks = target_ranks(scores[None], [target], [seen])
        found = [hit_rate(ranks, k)[0], ndcg(ranks, k)[0], mrr(ranks, k)[0]]
        np.testing.assert_allclose(found, by_enumeration(scores, target, k, seen), atol=1e-12)


def test_plain_ranks():
    np.testing.assert_array_equal(hit_rate([1, 3, 11], 10), [1, 1, 0])
    np.testing.assert_allclose(ndcg([1, 3, 11], 10), [1, 0.5, 0])
    np.testing.assert_allclose(mrr([1, 3, 11], 10), [1, 1 / 3, 0])
    metrics = ranking_metrics([1, 3, 11], [1, 10])
    assert list(metrics) == ["HR@1", "NDCG@1", "MRR@1", "HR@10", "NDCG@10", "MRR@10"]
    assert metrics["HR@10"] == pytest.approx(2 / 3) and metrics["NDCG@1"] == pytest.approx(1 / 3)


def test_equal_scores_get_what_guessing_gets():
    ranks = target_ranks(np.zeros((4, 50)), [0, 7, 20, 49])
    np.testing.assert_allclose(hit_rate(ranks, 10), 10 / 50)
    np.testing.assert_allclose(ranks.expected(), 25.5)
    np.testing.assert_array_equal(hit_rate(ranks.pessimistic(), 10), 0)


def test_infinite_scores_are_ordinary_scores():
    scores = np.array([[-np.inf, 1.0, np.inf, -np.inf]])
    ranks = target_ranks(scores, [0], [[3]])
    assert (ranks.better[0], ranks.tied[0]) == (2, 0)
    assert target_ranks(scores, [2]).better[0] == 0


def test_concatenate_keeps_order():
    joined = concatenate([ranks_from([1, 2]), ranks_from([5])])
    np.testing.assert_array_equal(joined.better, [0, 1, 4])
    assert len(concatenate([])) == 0


def test_bad_input_names_itself():
    with pytest.raises(ValueError, match="case 1 hold NaN"):
        target_ranks([[0.0, 1.0], [np.nan, 0.0]], [0, 0])
    with pytest.raises(ValueError, match="among the seen items"):
        target_ranks([[0.0, 1.0]], [1], [[1]])
    with pytest.raises(ValueError, match="case 0: seen items must lie in 0..1"):
        target_ranks([[0.0, 1.0]], [1], [[-1]])  # a negative column would mask from the end
    with pytest.raises(ValueError, match="targets must lie in 0..1"):
        target_ranks([[0.0, 1.0]], [2])
    with pytest.raises(ValueError, match="count from 1"):
        hit_rate([0, 1], 5)
    with pytest.raises(ValueError, match="at least 1"):
        ndcg([1], 0)
    with pytest.raises(ValueError, match="no cases"):
        ranking_metrics([], [10])


def test_paired_bootstrap():
    rng = np.random.default_rng(1)
    a = rng.normal(0.3, 1, 400)
    b = a - 0.1 + rng.normal(0, 0.05, 400)  # a is better by far less than the spread of either
    mean, low, high = paired_bootstrap(a, b, seed=0, n=2000)
    assert mean == pytest.approx((a - b).mean())
    half = 1.96 * (a - b).std() / 20  # normal approximation as the oracle
    assert low == pytest.approx(mean - half, abs=half / 5) and high == pytest.approx(mean + half, abs=half / 5)
    assert low > 0
    assert paired_bootstrap(a, b, seed=0, n=2000) == (mean, low, high)
    assert paired_bootstrap(a, a) == (0, 0, 0)


def test_bootstrap_in_blocks_and_bad_values():
    values = np.arange(3_000_000) % 7  # so long that every resample is a block of its own
    mean, low, high = bootstrap_interval(values, n=3)
    assert mean == pytest.approx(3, abs=1e-3) and low < high
    with pytest.raises(ValueError, match="same cases"):
        paired_bootstrap([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="case 1 is not finite"):
        bootstrap_interval([1.0, np.nan])
