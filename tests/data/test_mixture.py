"""The order of a mixture against counting by hand."""

import collections

import numpy as np
import pytest

from instructrec_jax.data.example import Example
from instructrec_jax.data.mixture import Mixture, Versions, apportion, permutation, shares
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


# ---------------------------------------------------------------- versions of examples


def test_each_round_takes_one_version_of_every_example_and_as_many_rounds_take_all() -> None:
    versions = Versions.of(np.arange(15), 3)
    assert len(versions) == 5
    rounds = [versions.chosen(np.arange(5), turn, 7, 0) for turn in range(6)]
    for taken in rounds:
        assert (taken // 3).tolist() == [0, 1, 2, 3, 4]
    for example in range(5):
        taken_of = [int(taken[example]) % 3 for taken in rounds]
        assert sorted(taken_of[:3]) == [0, 1, 2] and taken_of[:3] == taken_of[3:]
    assert len({tuple(versions.chosen(np.arange(5), 0, seed) % 3) for seed in range(9)}) > 3


def test_versions_that_were_left_out_or_became_several_entries() -> None:
    # example 0: versions 0 (two windows), 1 (one), 2 (two); example 1: version 2 only; example 3: versions 0 and 1
    numbers = np.array([0, 0, 1, 2, 2, 5, 9, 10])
    versions = Versions.of(numbers, 3)
    found = [versions.entries[a:b].tolist() for a, b in zip(versions.starts[:-1], versions.starts[1:], strict=True)]
    assert found == [[0, 2, 3], [1, 4], [5], [6, 7]]


def test_a_mixture_draws_examples_and_not_versions() -> None:
    sources = [source("a", 12), source("b", 4)]  # a: four examples of three versions
    mixed = Mixture(sources, versions=[Versions.of(np.arange(12), 3), None], seed=1)
    assert (len(mixed), mixed.epoch_size, mixed.sizes.tolist(), mixed.draws.tolist()) == (16, 8, [4, 4], [4, 4])
    epochs = [mixed.order(epoch) for epoch in range(3)]
    for order in epochs:
        assert sorted(np.where(order < 12, order // 3, order - 8).tolist()) == list(range(8))
    drawn = np.concatenate(epochs)
    assert sorted(drawn[drawn < 12].tolist()) == list(range(12))  # three epochs hold every version once
    again = Mixture(sources, versions=[Versions.of(np.arange(12), 3), None], seed=1)
    assert [again.order(epoch).tolist() for epoch in (2, 0, 1)] == [epochs[n].tolist() for n in (2, 0, 1)]
    assert mixed.example_at(8 + 3) == mixed[int(epochs[1][3])]


def test_a_weight_is_a_share_of_examples_with_versions_too() -> None:
    sources = [source("a", 12), source("b", 4)]
    mixed = Mixture(sources, weights=[3.0, 1.0], versions=[Versions.of(np.arange(12), 3), None])
    assert mixed.draws.tolist() == [6, 2]
    assert collections.Counter((mixed.order(0)[mixed.order(0) < 12] // 3).tolist()).most_common()[-1][1] >= 1
