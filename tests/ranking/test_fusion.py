"""Two stages against loops over cases, in float64."""

import numpy as np
import pytest
from sklearn.metrics import ndcg_score

from instructrec_jax.ranking import fusion
from instructrec_jax.ranking.fusion import (
    GRID,
    Fusion,
    hybrid,
    mask,
    merge,
    ndcg_at,
    retrieve,
    standardize,
    tune_fusion,
    two_stage,
)

RNG = np.random.default_rng


def scores(cases: int = 7, items: int = 40, seed: int = 0, levels: int | None = None) -> np.ndarray:
    """float32; with `levels` there are many ties."""
    rng = RNG(seed)
    drawn = rng.normal(size=(cases, items)) if levels is None else rng.integers(0, levels, (cases, items))
    return drawn.astype(np.float32)


@pytest.mark.parametrize("k", [1, 5, 39, 40, 60])
@pytest.mark.parametrize("levels", [None, 4])
def test_retrieve_takes_the_best_and_of_equals_the_lower_number(k: int, levels: int | None) -> None:
    first = mask(scores(levels=levels), [[3, 5]] * 7)
    expected = [sorted(range(40), key=lambda i: (-row[i], i))[:k] for row in first]
    assert retrieve(first, k).tolist() == expected


def test_the_whole_ranking_is_the_retrieved_by_the_second_then_the_others_by_the_first() -> None:
    first, second = scores(seed=1), scores(seed=2)
    seen = [RNG(case).choice(40, case, replace=False) for case in range(7)]
    found = two_stage(first, lambda items: np.take_along_axis(second, items, 1), k=6, seen=seen)
    for case in range(7):
        open_items = [i for i in range(40) if i not in seen[case]]
        by_first = sorted(open_items, key=lambda i: -first[case, i])
        expected = sorted(by_first[:6], key=lambda i: -second[case, i]) + by_first[6:]
        order = [i for i in np.argsort(-found[case], kind="stable") if np.isfinite(found[case, i])]
        assert order == expected
        assert np.isneginf(found[case, seen[case]]).all()


def test_where_fewer_compete_than_are_retrieved_seen_items_stay_out() -> None:
    first, second = scores(2, 5, 1), scores(2, 5, 2)
    found = two_stage(first, lambda items: np.take_along_axis(second, items, 1), k=4, seen=[[0, 1, 2], []])
    assert np.flatnonzero(np.isfinite(found[0])).tolist() == [3, 4]
    assert (found[0, 3] > found[0, 4]) == (second[0, 3] > second[0, 4])


def test_ties_stay_ties() -> None:
    """Whatever breaks them, an order of the arrays must not."""
    first = np.array([[5.0, 4, 4, 1, 1, 0]])
    found = merge(first, np.array([[0, 1, 2]]), [[2.0, 7, 2]])
    assert found[0, 0] == found[0, 2] < found[0, 1]
    assert found[0, 3] == found[0, 4] > found[0, 5] and found[0, 3] < found[0, 0]
    mixed = hybrid([[1.0, 1, 2, 3]], [[6.0, 6, 5, 1]], 0.3)
    assert mixed[0, 0] == mixed[0, 1]


def test_a_weight_ranks_the_retrieved_by_the_hybrid_over_them() -> None:
    first, second = scores(seed=1), scores(seed=2) * 1000 + 5
    found = two_stage(first, lambda items: np.take_along_axis(second, items, 1), k=8, weight=0.4)
    for case in range(7):
        chosen = np.argsort(-first[case])[:8]
        a, b = first[case, chosen].astype(np.float64), second[case, chosen].astype(np.float64)
        mixed = 0.6 * (a - a.mean()) / a.std() + 0.4 * (b - b.mean()) / b.std()
        assert np.argsort(-found[case])[:8].tolist() == chosen[np.argsort(-mixed)].tolist()


def test_hybrid_by_its_definition_over_what_both_score() -> None:
    a, b = scores(3, 9, 1).astype(np.float64), scores(3, 9, 2).astype(np.float64)
    a[0, 2] = b[0, 5] = a[1, 0] = -np.inf
    for weight in (0.0, 0.35, 1.0):
        found = hybrid(a, b, weight)
        for case in range(3):
            both = np.isfinite(a[case]) & np.isfinite(b[case])
            x, y = a[case, both], b[case, both]
            expected = (1 - weight) * (x - x.mean()) / x.std() + weight * (y - y.mean()) / y.std()
            np.testing.assert_allclose(found[case, both], expected, atol=1e-12)
            assert np.isneginf(found[case, ~both]).all()


def test_equal_scores_say_nothing() -> None:
    assert (standardize(np.full((2, 7), 0.1)) == 0).all()  # 0.1 is not the mean of seven of them, to rounding
    with np.errstate(all="raise"):  # masked items, also beside equal scores, are no arithmetic on infinity
        assert np.isneginf(standardize(np.full((1, 3), -np.inf))).all()
        assert standardize([[1.0, -np.inf, 1.0]]).tolist() == [[0, -np.inf, 0]]
    np.testing.assert_allclose(hybrid([[1.0, 1, 1]], [[1.0, 2, 3]], 0.5)[0], np.array([-1, 0, 1]) * 1.5**0.5 / 2)


def test_ndcg_equals_scikit_learn_also_with_ties_and_several_wanted() -> None:
    rng = RNG(3)
    for levels in (None, 5):
        rows = scores(30, 40, 4, levels).astype(np.float64)
        wanted = [rng.choice(40, rng.integers(1, 14), replace=False) for _ in rows]
        for k in (3, 10):
            expected = []
            for row, columns in zip(rows, wanted, strict=True):
                relevance = np.zeros((1, 40))
                relevance[0, columns] = 1
                expected.append(ndcg_score(relevance, row[None], k=k))
            np.testing.assert_allclose(ndcg_at(rows, wanted, k), expected, atol=1e-12)


def test_ndcg_of_what_is_not_there_or_masked() -> None:
    row = np.array([[3.0, 2, 1, -np.inf]])
    assert ndcg_at(row, [[-1]])[0] == 0 and ndcg_at(row, [[3]])[0] == 0
    assert ndcg_at(row, [[0, -1]])[0] == pytest.approx(1 / (1 + 1 / np.log2(3)))
    with pytest.raises(ValueError, match="case 0"):
        ndcg_at(row, [[]])


@pytest.mark.parametrize("block", [3, 100])
def test_the_tuned_weight_is_the_best_of_the_grid(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fusion, "BLOCK", block)
    rng = RNG(5)
    wanted = [rng.choice(40, rng.integers(1, 3), replace=False) for _ in range(25)]
    first, second = scores(25, seed=6), scores(25, seed=7)
    for case, columns in enumerate(wanted):
        first[case, columns] += 0.8
        second[case, columns] += 1.2
        first[case, np.setdiff1d(rng.choice(40, 5, replace=False), columns)] = -np.inf
    asked: list[int] = []

    def scored(block: slice) -> np.ndarray:
        asked.append(block.stop - block.start)
        return first[block]

    found = tune_fusion(scored, lambda b, _: second[b], wanted, name="second")
    means = [ndcg_at(hybrid(first, second, w), wanted).mean() for w in GRID]
    assert found == Fusion("second", GRID[int(np.argmax(means))]) and 0 < found.weight < 1
    assert max(asked) <= block and sum(asked) == 25
    useless = tune_fusion(lambda b: first[b], lambda b, _: np.zeros((b.stop - b.start, 40)), wanted, name="none")
    assert useless.weight == 0  # every weight below 1 is as good: the first one alone


def test_errors() -> None:
    first = scores(2, 4)
    with pytest.raises(ValueError, match="^k"):
        retrieve(first, 0)
    with pytest.raises(ValueError, match="first stage.*NaN"):
        retrieve(np.full((1, 3), np.nan), 1)
    with pytest.raises(ValueError, match="second stage.*NaN"):
        two_stage(first, lambda items: np.full(items.shape, np.nan), k=2)
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(2, 4\)"):
        two_stage(first, lambda items: first, k=3)
    with pytest.raises(ValueError, match="weight"):
        hybrid(first, first, 1.5)
    with pytest.raises(ValueError, match="hybrid"):
        hybrid(first, first[:1], 0.5)
    with pytest.raises(ValueError, match="hybrid.*NaN"):
        hybrid(first, np.full((2, 4), np.inf), 0.5)
    with pytest.raises(ValueError, match="validation"):
        tune_fusion(lambda b: first, lambda b, _: first, [], name="second")
