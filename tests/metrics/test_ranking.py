import itertools
import math

import numpy as np
import pytest

from instructrec_jax.metrics.ranking import (
    Ranks,
    bootstrap_interval,
    concatenate,
    hit_rate,
    mrr,
    ndcg,
    paired_bootstrap,
    ranking_metrics,
    ranks_from,
    recall,
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


def test_several_wanted_items():
    scores = np.array([3.0, 1, 2, 2, 2, 0])
    wanted = [2, 3, 5]  # two of the three that share places 2 to 4, and the last
    better = np.array([(scores > scores[i]).sum() for i in wanted])
    tied = np.array([(scores == scores[i]).sum() - 1 for i in wanted])
    ranks = Ranks(better, tied, np.zeros(3, np.int64))
    orders = [["2", "3", "-"], ["2", "-", "3"], ["-", "2", "3"]]  # of the places 2 to 4
    first = [2 + min(order.index("2"), order.index("3")) for order in orders]
    assert hit_rate(ranks, 2)[0] == pytest.approx(2 / 3) and hit_rate(ranks, 3)[0] == pytest.approx(1)
    assert mrr(ranks, 6)[0] == pytest.approx(np.mean([1 / place for place in first]))
    assert recall(ranks, 3)[0] == pytest.approx(4 / 3 / 3)
    gains = 1 / np.log2(np.arange(6) + 2)
    assert ndcg(ranks, 6)[0] == pytest.approx((2 * gains[1:4].mean() + gains[5]) / gains[:3].sum())
    # Against them: the one that is not wanted takes place 2.
    worst = ranks.pessimistic()
    assert hit_rate(worst, 2)[0] == 0 and mrr(worst, 6)[0] == pytest.approx(1 / 3)
    both = concatenate([ranks, ranks_from([1]), worst])
    np.testing.assert_allclose(hit_rate(both, 2), [2 / 3, 1, 0])
    assert len(both) == 3 and both.counts().tolist() == [3, 1, 3]


def test_the_bootstrap_of_few_distinct_values_is_the_same_bootstrap():
    rng = np.random.default_rng(0)
    sample = ndcg(rng.integers(1, 40, 3000), 10)
    resampled = sample[rng.integers(0, 3000, (4000, 3000))].mean(axis=1)
    mean, low, high = bootstrap_interval(sample)
    assert mean == pytest.approx(sample.mean())
    np.testing.assert_allclose([low, high], np.quantile(resampled, [0.025, 0.975]), atol=4e-4)
