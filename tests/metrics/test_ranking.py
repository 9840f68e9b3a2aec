import itertools
import math

import numpy as np
import pytest

from instructrec_jax.metrics.ranking import (
    Ranks,
    concatenate,
    hit_rate,
    mrr,
    ndcg,
    ranks_from,
    recall,
)


def ranks_of(scores, target, seen=()):
    """Where the target stands among the items that compete, one case."""
    mine, others = scores[target], np.delete(scores, [target, *seen])
    return Ranks(np.array([(others > mine).sum()]), np.array([(others == mine).sum()]))


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
        ranks = ranks_of(scores, target, seen)
        found = [hit_rate(ranks, k)[0], ndcg(ranks, k)[0], mrr(ranks, k)[0]]
        np.testing.assert_allclose(found, by_enumeration(scores, target, k, seen), atol=1e-12)


def test_plain_ranks():
    np.testing.assert_array_equal(hit_rate([1, 3, 11], 10), [1, 1, 0])
    np.testing.assert_allclose(ndcg([1, 3, 11], 10), [1, 0.5, 0])
    np.testing.assert_allclose(mrr([1, 3, 11], 10), [1, 1 / 3, 0])


def test_equal_scores_get_what_guessing_gets():
    ranks = concatenate([ranks_of(np.zeros(50), target) for target in (0, 7, 20, 49)])
    np.testing.assert_allclose(hit_rate(ranks, 10), 10 / 50)
    np.testing.assert_allclose(ranks.expected(), 25.5)
    np.testing.assert_array_equal(hit_rate(ranks.pessimistic(), 10), 0)


def test_concatenate_keeps_order():
    joined = concatenate([ranks_from([1, 2]), ranks_from([5])])
    np.testing.assert_array_equal(joined.better, [0, 1, 4])
    assert len(concatenate([])) == 0


def test_bad_input_names_itself():
    with pytest.raises(ValueError, match="ranks"):
        hit_rate([0, 1], 5)
    with pytest.raises(ValueError, match="k "):
        ndcg([1], 0)


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
