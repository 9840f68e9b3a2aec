import numpy as np
import pytest

from instructrec_jax.preparation import splits as splits_module
from instructrec_jax.preparation.splits import (
    at_least,
    cut_times,
    first_per_item,
    k_core,
    leave_one_out,
    most_recent,
    split,
    unseen,
)
from instructrec_jax.ranking.catalogue import SPLITS, Catalogue, Interactions


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
    with pytest.raises(ValueError, match="min_rating"):
        at_least(without, 4)


def test_repeats_are_found_in_pieces_of_whole_users(monkeypatch):
    rng = np.random.default_rng(0)
    rows = [(int(u), int(i), int(t), n) for n, (u, i, t) in enumerate(rng.integers(0, (9, 12, 50), (400, 3)))]
    whole = first_per_item(interactions(rows, 9))
    monkeypatch.setattr(splits_module, "PIECE", 7)
    pieces = first_per_item(interactions(rows, 9))
    assert len(whole) == len({row[:2] for row in rows})
    for name in ("user", "item", "timestamp", "rating"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(pieces, name))
    assert first_per_item(whole).by_user() is not None and len(first_per_item(whole)) == len(whole)


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
    with pytest.raises(ValueError, match="k_core"):
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


def random_log(seed, users=30, count=300, times=1000):
    rng = np.random.default_rng(seed)
    rows = [
        (int(u), number, int(t), 1)
        for number, (u, t) in enumerate(
            zip(rng.integers(users, size=count), rng.integers(times, size=count), strict=True)
        )
    ]
    return rows, interactions(rows, users)


def test_most_recent_against_sorting():
    rows, raw = random_log(0)
    for limit in (1, 5, 1000):
        kept = most_recent(raw, limit)
        expected = []
        for user in range(30):
            expected += [item for _, item in sorted((t, i) for u, i, t, _ in rows if u == user)[-limit:]]
        assert kept.item.tolist() == expected
    assert most_recent(raw, None) is raw
    with pytest.raises(ValueError, match="sequence_limit"):
        most_recent(raw, 0)


def test_ratio_by_hand():
    lengths = [1, 2, 3, 4, 9, 10, 20, 25]
    rows = [(user, n, n, 1) for user, length in enumerate(lengths) for n in range(length)]
    splits = split(interactions(rows, len(lengths)), "ratio", 0.1, 0.2)
    sizes = [tuple(len(getattr(splits, name)[user]) for name in SPLITS) for user in range(len(lengths))]
    #                 too few    at least one each
    assert sizes == [(1, 0, 0), (2, 0, 0), (1, 1, 1), (2, 1, 1), (7, 1, 1), (7, 1, 2), (14, 2, 4), (18, 2, 5)]
    for user, length in enumerate(lengths):
        assert np.concatenate([getattr(splits, name)[user] for name in SPLITS]).tolist() == list(range(length))


@pytest.mark.parametrize(
    ("validation", "test", "length", "sizes"),
    [
        (0.0, 0.5, 10, (5, 0, 5)),
        (0.0, 0.01, 3, (2, 0, 1)),
        (0.05, 0.9, 3, (1, 1, 1)),  # something is left to train on
        (0.9, 0.05, 3, (1, 1, 1)),
        (0.0, 0.99, 3, (1, 0, 2)),
        (0.1, 0.29, 100, (61, 10, 29)),  # 0.29 · 100 is 28.999999999999996
    ],
)
def test_ratio_at_the_edges(validation, test, length, sizes):
    splits = split(interactions([(0, n, n, 1) for n in range(length)], 1), "ratio", validation, test)
    assert tuple(len(getattr(splits, name)[0]) for name in SPLITS) == sizes


@pytest.mark.parametrize("times", [1000, 12])  # 12: many at the same time
@pytest.mark.parametrize("validation", [0.0, 0.15])
def test_global_time_against_sorting(times, validation):
    rows, raw = random_log(1, times=times)
    splits = split(raw, "global_time", validation, 0.2)
    ordered = sorted(t for _, _, t, _ in rows)
    first, second = ordered[300 - 60 - round(300 * validation)], ordered[300 - 60]
    assert cut_times(raw, validation, 0.2) == (first, second)
    for user in range(30):
        mine = [(t, i) for u, i, t, _ in sorted(rows, key=lambda row: (row[2], row[1])) if u == user]
        assert splits.train[user].tolist() == [i for t, i in mine if t < first]
        assert splits.validation[user].tolist() == [i for t, i in mine if first <= t < second]
        assert splits.test[user].tolist() == [i for t, i in mine if t >= second]
    when = {item: t for _, item, t, _ in rows}
    latest = [
        max((when[i] for items in getattr(splits, name) for i in items), default=first - 1) for name in SPLITS[:2]
    ]
    assert latest[0] < min(when[i] for items in splits.test for i in items) and latest[0] < latest[1] + (
        validation == 0
    )


def test_unseen_counts_users_and_items():
    rows = [(0, 0, 1, 1), (0, 1, 2, 1), (1, 0, 3, 1), (2, 2, 8, 1), (2, 0, 9, 1), (1, 3, 9, 1)]
    splits = split(interactions(rows, 3), "global_time", 0.0, 0.5)
    assert [x.tolist() for x in splits.train] == [[0, 1], [0], []]
    assert [x.tolist() for x in splits.test] == [[], [3], [2, 0]]
    assert unseen(splits) == {"new_users": 1, "new_items": 2}


@pytest.mark.parametrize(
    ("how", "validation", "test", "message"),
    [
        ("random", 0.1, 0.1, "'random'"),
        ("ratio", 0.5, 0.5, "shares"),
        ("ratio", 0.1, 0.0, "test 0"),
        ("global_time", -0.1, 0.2, "shares"),
        ("global_time", float("nan"), 0.2, "shares"),
    ],
)
def test_wrong_shares(how, validation, test, message):
    with pytest.raises(ValueError, match=message):
        split(random_log(2)[1], how, validation, test)


def test_global_time_needs_times_that_differ():
    with pytest.raises(ValueError, match="global_time.* 7"):
        split(interactions([(0, n, 7, 1) for n in range(9)], 1), "global_time", 0.1, 0.1)
    without = Interactions(["u"], np.zeros(4, np.int32), np.arange(4, dtype=np.int32))
    with pytest.raises(ValueError, match="global_time.*timestamps"):
        split(without, "global_time", 0.1, 0.1)
