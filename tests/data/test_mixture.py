"""The order of a mixture against counting by hand."""

import collections

import numpy as np
import pytest

from instructrec_jax.data.example import Example
from instructrec_jax.data.mixture import Mixture, apportion, permutation, shares
from instructrec_jax.data.sources import ListSource


def source(name: str, size: int, task: str = "") -> ListSource:
    return ListSource([Example(instruction=f"{name} {n}", id=f"{name}{n}") for n in range(size)], name, task)


def mixture(*sizes: int, **settings) -> Mixture:
    return Mixture([source("abcdefgh"[n], size) for n, size in enumerate(sizes)], **settings)


def test_permutation_is_fixed_and_complete():
    assert permutation(8, 3, 1, 0).tolist() == permutation(8, 3, 1, 0).tolist()
    assert sorted(permutation(1000, 5)) == list(range(1000))
    assert permutation(1000, 5).tolist() != permutation(1000, 6).tolist()
    assert permutation(0, 1).tolist() == []
    # Pinned: a resumed run must see the order of the run before it, whatever numpy is installed.
    assert permutation(8, 3, 1, 0).tolist() == PINNED
    with pytest.raises(ValueError, match="seeds"):
        permutation(3, -1)


PINNED = [0, 6, 2, 1, 3, 7, 4, 5]


@pytest.mark.parametrize("sizes", [(1,), (7,), (5, 3), (1, 1, 1), (100, 1, 13)])
def test_without_weights_an_epoch_holds_every_example_once(sizes):
    mixed = mixture(*sizes)
    everything = [(s, i) for s, size in enumerate(sizes) for i in range(size)]
    for epoch in range(3):
        order = mixed.epoch_order(epoch)
        assert order.dtype == np.int64 and order.shape == (sum(sizes), 2)
        assert sorted(map(tuple, order.tolist())) == everything
        assert sorted(mixed.order(epoch).tolist()) == list(range(len(mixed)))


def test_one_source_is_shuffled_anew_in_every_epoch():
    mixed = mixture(50, seed=3)
    first, second = mixed.order(0).tolist(), mixed.order(1).tolist()
    assert first != second and first != list(range(50))
    assert first == mixture(50, seed=3).order(0).tolist()
    assert first != mixture(50, seed=4).order(0).tolist()
    moved = np.abs(np.array(first) - np.arange(50)).mean()
    assert moved > 8  # a real shuffle moves an element by a third of the length on average


def test_equal_sources_are_not_shuffled_alike():
    mixed = mixture(40, 40)
    order = mixed.epoch_order(0)
    assert order[order[:, 0] == 0, 1].tolist() != order[order[:, 0] == 1, 1].tolist()


@pytest.mark.parametrize("weights", [(1, 1, 1), (5, 1, 0.5), (0.2, 0.3, 0.5), (1e-2, 1, 1)])
def test_weights_hold_in_every_prefix(weights):
    sizes = (30, 100, 70)
    mixed = mixture(*sizes, weights=weights)
    expected = np.array(weights) / sum(weights)
    for epoch in range(3):
        chosen = mixed.epoch_order(epoch)[:, 0]
        counts = np.stack([np.cumsum(chosen == s) for s in range(3)], axis=1)
        assert np.abs(counts[-1] - 200 * expected).max() < 1
        ideal = np.arange(1, 201)[:, None] * mixed.draws / 200
        assert np.abs(counts - ideal).max() <= 1 + len(sizes) / 2


def test_a_source_starts_over_only_when_it_is_exhausted():
    sizes, weights = (10, 90), (0.77, 0.23)  # the first is read about 8 times an epoch, the second a quarter
    mixed = mixture(*sizes, weights=weights)
    seen: list[list[int]] = [[], []]
    for epoch in range(6):
        for s, index in mixed.epoch_order(epoch).tolist():
            seen[s].append(index)
        for s, size in enumerate(sizes):
            counts = collections.Counter(seen[s])
            numbers = [counts[i] for i in range(size)]
            assert max(numbers) - min(numbers) <= 1
    assert seen[0][:10] != seen[0][10:20]
    for s, size in enumerate(sizes):
        for start in range(0, len(seen[s]) - size + 1, size):
            assert sorted(seen[s][start : start + size]) == list(range(size))


def test_any_position_without_replay():
    sizes, weights = (4, 9), (1, 1)
    walked = [(s, i) for epoch in range(4) for s, i in mixture(*sizes, weights=weights).epoch_order(epoch).tolist()]
    fresh = mixture(*sizes, weights=weights)
    for position in (51, 0, 13, 12, 26, 25, 40):
        s, index = walked[position]
        assert fresh.example_at(position) == fresh.sources[s][index]
    flat = fresh.order(2)
    assert [fresh[int(i)] for i in flat] == [fresh.example_at(26 + p) for p in range(13)]


def test_as_a_sequence_it_holds_source_after_source():
    mixed = mixture(2, 3)
    assert [mixed[i].id for i in range(len(mixed))] == ["a0", "a1", "b0", "b1", "b2"]
    for index in (-1, 5):
        with pytest.raises(IndexError):
            mixed[index]


def test_temperature_counts_tasks_not_sources():
    # Two sources of task t with 10 + 30 examples, one of task u with 160: sqrt(40) : sqrt(160) is 1 : 2.
    portions = shares([10, 30, 160], ["t", "t", "u"], temperature=2)
    np.testing.assert_allclose(portions, [1 / 12, 3 / 12, 8 / 12])
    np.testing.assert_allclose(shares([10, 30, 160], ["", "", ""]), [0.05, 0.15, 0.8])
    np.testing.assert_allclose(shares([1, 1000], ["", ""], temperature=1e6), [0.5, 0.5], atol=1e-5)
    np.testing.assert_allclose(shares([10, 30, 160], ["t", "t", "u"], size_cap=40), [0.125, 0.375, 0.5])
    np.testing.assert_allclose(shares([5, 5], ["", ""], weights=[3, 1]), [0.75, 0.25])


def test_draws_are_whole_and_complete():
    random = np.random.default_rng(0)
    for _ in range(200):
        portions = random.random(random.integers(1, 9))
        portions /= portions.sum()
        total = int(random.integers(1, 10_000))
        draws = apportion(portions, total)
        assert draws.sum() == total and np.abs(draws - portions * total).max() < 1 + 1e-6
    for sizes in ([3, 7, 11], [1, 10**7, 3]):  # rounding must not turn once into twice
        assert apportion(np.array(sizes) / sum(sizes), sum(sizes)).tolist() == sizes


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"weights": [1]}, "1 weights"),
        ({"weights": [1, 0]}, "weight 0"),
        ({"weights": [1, float("nan")]}, "weight nan"),
        ({"weights": [1, -2]}, "weight -2"),
        ({"weights": [1e-9, 1]}, "source a"),
        ({"temperature": 0}, "temperature 0"),
        ({"size_cap": 0}, "size_cap 0"),
        ({"weights": [1, 1], "temperature": 2}, "temperature"),
        ({"seed": -1}, "seed -1"),
    ],
)
def test_settings_without_sense_are_errors(settings, message):
    with pytest.raises(ValueError, match=message):
        mixture(5, 5, **settings)


def test_no_sources_and_empty_sources_are_errors():
    with pytest.raises(ValueError, match="sources"):
        Mixture([])
    with pytest.raises(ValueError, match="source"):
        ListSource([])


def test_the_fingerprint_follows_content_and_shares():
    assert mixture(3, 4).fingerprint == mixture(3, 4).fingerprint
    others = [mixture(4, 3), mixture(3, 4, weights=[1, 1]), mixture(3), mixture(3, 5)]
    assert len({mixed.fingerprint for mixed in [mixture(3, 4), *others]}) == 5


def test_the_summary_counts_for_people():
    text = mixture(10, 30, weights=[1, 1]).summary()
    assert "2.00" in text and "0.67" in text and "50.0 %" in text


def test_the_order_cannot_be_changed_by_accident():
    with pytest.raises(ValueError):
        mixture(3).epoch_order(0)[0, 0] = 1
