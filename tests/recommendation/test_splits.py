import numpy as np
import pytest

from instructrec_jax.recommendation.catalogue import Catalogue, Interactions
from instructrec_jax.recommendation.splits import at_least, first_per_item, k_core, leave_one_out


def catalogue(count):
    names = [f"i{number}" for number in range(count)]
    return Catalogue(names, names, names, {"year": list(range(count))})


def interactions(rows, users):
    """rows of (user, item, timestamp, rating)"""
    user, item, timestamp, rating = (np.array(column) for column in zip(*rows, strict=True))
    return Interactions(
        [f"u{number}" for number in range(users)],
        user.astype(np.int32),
        item.astype(np.int32),
        timestamp.astype(float),
        rating.astype(np.float32),
    )


def test_first_per_item_keeps_the_earliest_and_sorts():
    raw = interactions([(0, 3, 5, 1), (1, 3, 1, 1), (0, 2, 7, 1), (0, 3, 9, 2), (0, 1, 2, 1), (0, 4, 2, 1)], 2)
    first = first_per_item(raw)
    assert first.user.tolist() == [0, 0, 0, 0, 1]
    assert first.item.tolist() == [1, 4, 3, 2, 3]  # same time: as they stood
    assert first.rating.tolist() == [1, 1, 1, 1, 1]


def test_at_least():
    raw = interactions([(0, 0, 1, 3.5), (0, 1, 2, 4), (0, 2, 3, 5)], 1)
    assert at_least(raw, 4).item.tolist() == [1, 2]
    assert at_least(raw, None) is raw
    without = Interactions(raw.user_ids, raw.user, raw.item)
    with pytest.raises(ValueError, match="no ratings"):
        at_least(without, 4)


def test_k_core_against_loops():
    rng = np.random.default_rng(0)
    pairs = sorted({(int(u), int(i)) for u, i in rng.integers(0, (12, 15), (100, 2))})
    raw = interactions([(u, i, n, 1) for n, (u, i) in enumerate(pairs)], 12)
    expected = set(pairs)
    while True:
        small = {
            (u, i) for u, i in expected if sum(a == u for a, _ in expected) < 4 or sum(b == i for _, b in expected) < 4
        }
        if not small:
            break
        expected -= small
    kept_items, kept = k_core(catalogue(15), raw, 4)
    found = {(kept.user_ids[u], kept_items.ids[i]) for u, i in zip(kept.user.tolist(), kept.item.tolist(), strict=True)}
    assert 0 < len(expected) < len(pairs)
    assert found == {(f"u{u}", f"i{i}") for u, i in expected}
    assert len(kept.user_ids) == len({u for u, _ in expected})
    assert [kept_items.facts["year"][n] for n in range(len(kept_items))] == [int(x[1:]) for x in kept_items.ids]


def test_k_core_zero_keeps_items_nobody_chose_and_empty_is_an_error():
    raw = interactions([(0, 0, 1, 1)], 2)
    kept_items, kept = k_core(catalogue(3), raw, 0)
    assert kept_items.ids == ["i0", "i1", "i2"] and kept.user_ids == ["u0"]
    with pytest.raises(ValueError, match="lower k_core"):
        k_core(catalogue(3), raw, 2)


def test_leave_one_out():
    rows = [
        (0, 0, 30, 1),
        (0, 1, 10, 1),
        (0, 2, 20, 1),
        (0, 3, 40, 1),
        (1, 4, 1, 1),
        (1, 5, 2, 1),
        (2, 6, 1, 1),
    ]
    splits = leave_one_out(interactions(rows, 3))
    assert [x.tolist() for x in splits.train] == [[1, 2], [4, 5], [6]]
    assert [x.tolist() for x in splits.validation] == [[0], [], []]
    assert [x.tolist() for x in splits.test] == [[3], [], []]


def test_without_timestamps_the_order_of_lines_counts():
    raw = Interactions(["u"], np.zeros(4, np.int32), np.array([3, 1, 2, 0], np.int32))
    splits = leave_one_out(first_per_item(raw))
    assert (splits.train[0].tolist(), splits.validation[0].tolist(), splits.test[0].tolist()) == (
        [3, 1],
        [2],
        [0],
    )
