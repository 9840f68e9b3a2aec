"""Where texts go: checked place by place on random lengths."""

import numpy as np
import pytest

from instructrec_jax.data import packing
from instructrec_jax.data.packing import (
    Plan,
    best_fit,
    fit,
    fit_epoch,
    length_buckets,
    max_segments,
    plan_batch,
    round_up,
)

BUCKETS = (32, 64, 128)


def random_lengths(seed: int, count: int, longest: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.minimum(rng.geometric(rng.uniform(0.02, 0.5), count), longest)


def check(plan: Plan, lengths: np.ndarray) -> None:
    """Every text lies in its row alone, segments of a row are 1..S from left to right, without gaps between them."""
    taken = np.zeros((plan.rows, plan.length), int)
    for row, start, length in zip(plan.row, plan.start, lengths, strict=True):
        assert 0 <= row < plan.rows and start >= 0 and start + length <= plan.length
        taken[row, start : start + length] += 1
    assert taken.max() == 1
    for row in range(plan.rows):
        inside = np.flatnonzero(plan.row == row)
        inside = inside[np.argsort(plan.start[inside])]
        assert list(plan.segment[inside]) == list(range(1, len(inside) + 1))
        assert len(inside) <= plan.segments
        assert list(plan.start[inside]) == list(np.cumsum([0, *lengths[inside]])[:-1])
    assert len(set(plan.slot)) == len(lengths) and plan.slot.max() < plan.rows * plan.segments


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("row_length", BUCKETS)
def test_best_fit(seed: int, row_length: int) -> None:
    lengths = random_lengths(seed, 5 + 13 * seed, row_length)
    rows, row, segment, start = best_fit(lengths, row_length)
    check(Plan(rows, row_length, row, segment, start), lengths)
    assert set(row) == set(range(rows))  # no row is empty
    # A row was opened only for a text that fitted into no earlier row: no two rows could be one.
    used = np.bincount(row, lengths)
    for later in range(rows):
        first = lengths[(row == later) & (segment == 1)][0]
        for earlier in range(later):
            full = (row == earlier).sum() == max_segments(row_length)
            assert full or used[earlier] + first > row_length


def test_best_fit_takes_the_tightest_row() -> None:
    # Longest first: 20 and 18 open rows with 12 and 14 left; 12 fills the first exactly, 10 goes to the other.
    rows, row, segment, start = best_fit(np.array([10, 18, 12, 20]), 32)
    assert rows == 2
    assert (row.tolist(), segment.tolist(), start.tolist()) == ([1, 1, 0, 0], [2, 1, 2, 1], [18, 0, 20, 0])


def test_a_row_takes_no_more_texts_than_its_pooled_vectors() -> None:
    rows, row, segment, _ = best_fit(np.ones(9, int), 32)
    assert max_segments(32) == 4 and max_segments(3) == 1
    assert rows == 3 and np.bincount(row).tolist() == [4, 4, 1] and segment.max() == 4


def test_length_buckets() -> None:
    assert length_buckets(128) == (32, 64, 128)
    assert length_buckets(100) == (32, 64, 100)
    assert length_buckets(16) == (16,)


@pytest.mark.parametrize("multiple", [1, 3, 4, 8])
def test_round_up_climbs_a_coarse_ladder(multiple: int) -> None:
    values = [round_up(count, multiple) for count in range(1, 1025)]
    for count, value in enumerate(values, 1):
        assert value >= count and value % multiple == 0 and type(value) is int
        assert value - count < max(1, count / 8) * multiple  # little is wasted
    assert values == sorted(values)
    assert len(set(values)) <= 8 * 10  # eight steps an octave


def test_round_up_by_hand() -> None:
    assert [round_up(n, 1) for n in (1, 7, 15, 16, 17, 33, 100)] == [1, 7, 15, 16, 18, 36, 104]
    assert [round_up(n, 8) for n in (1, 9, 17)] == [8, 16, 24]


@pytest.mark.parametrize("seed", range(6))
def test_plan_batch_takes_the_cheapest_shape(seed: int) -> None:
    lengths = random_lengths(seed, 40, 100)
    plan = plan_batch(lengths, BUCKETS, 4)
    check(plan, lengths)
    costs = {}
    for length in (bucket for bucket in BUCKETS if bucket >= lengths.max()):
        rows = round_up(best_fit(lengths, length)[0], 4)
        costs[rows, length] = rows * (length + length**2 / 2048)
    assert (plan.rows, plan.length) == min(costs, key=lambda shape: costs[shape])


def test_plan_batch_prefers_short_rows_for_short_texts() -> None:
    assert plan_batch(np.full(64, 30), BUCKETS, 1).length == 32  # two to a row of 64 would pay for attention
    assert plan_batch(np.full(64, 33), BUCKETS, 1).length == 128  # three to a row of 128, one to a row of 64


def test_too_long_a_text_is_an_error() -> None:
    with pytest.raises(ValueError, match="129.*128"):
        plan_batch(np.array([5, 129]), BUCKETS, 1)


# ------------------------------------------------------------------ pairs of a text and its target


def random_pairs(seed: int, count: int, longest: int, longest_target: int) -> tuple[np.ndarray, np.ndarray]:
    return random_lengths(seed, count, longest), random_lengths(seed + 100, count, longest_target)


def check_pairs(plan: Plan, lengths: np.ndarray, target_lengths: np.ndarray) -> None:
    """Both sides by themselves lie as `check` wants it; the row and segment are the same."""
    assert plan.target_length is not None and plan.target_start is not None
    check(plan, lengths)
    taken = np.zeros((plan.rows, plan.target_length), int)
    for row, start, length in zip(plan.row, plan.target_start, target_lengths, strict=True):
        assert start >= 0 and start + length <= plan.target_length
        taken[row, start : start + length] += 1
    assert taken.max() == 1
    for row in range(plan.rows):
        inside = np.flatnonzero(plan.row == row)
        inside = inside[np.argsort(plan.segment[inside])]
        assert list(plan.target_start[inside]) == list(np.cumsum([0, *target_lengths[inside]])[:-1])


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("shape", [(64, 64), (128, 32), (32, 128)])
def test_pairs_fit_where_both_sides_do(seed: int, shape: tuple[int, int]) -> None:
    lengths, targets = random_pairs(seed, 5 + 17 * seed, *shape)
    plan = fit(lengths, shape[0], targets, shape[1])
    check_pairs(plan, lengths, targets)
    assert set(plan.row) == set(range(plan.rows))
    # No row was opened for a pair that an earlier row had room for.
    used, targets_used = np.bincount(plan.row, lengths), np.bincount(plan.row, targets)
    for later in range(plan.rows):
        (first,) = np.flatnonzero((plan.row == later) & (plan.segment == 1))
        for earlier in range(later):
            full = (plan.row == earlier).sum() == max_segments(shape[0])
            long = used[earlier] + lengths[first] > shape[0] or targets_used[earlier] + targets[first] > shape[1]
            assert full or long


def test_a_pair_goes_where_least_room_is_left() -> None:
    # The third fits into both rows and leaves less in the second; the last fits the first row alone.
    plan = fit(np.array([60, 40, 4, 2]), 64, np.array([10, 30, 2, 20]), 32, longest_first=False)
    assert (plan.row.tolist(), plan.segment.tolist()) == ([0, 1, 1, 0], [1, 1, 2, 2])
    assert plan.target_start is not None
    assert (plan.start.tolist(), plan.target_start.tolist()) == ([0, 0, 40, 60], [0, 0, 30, 10])


@pytest.mark.parametrize("seed", range(4))
def test_plan_batch_of_pairs_takes_the_cheapest_shape(seed: int) -> None:
    lengths, targets = random_pairs(seed, 40, 100, 20 if seed % 2 else 60)
    plan = plan_batch(lengths, BUCKETS, 4, targets, (32, 64))
    check_pairs(plan, lengths, targets)
    costs = {}
    for length in (bucket for bucket in BUCKETS if bucket >= lengths.max()):
        for target_length in (bucket for bucket in (32, 64) if bucket >= targets.max()):
            rows = round_up(fit(lengths, length, targets, target_length).rows, 4)
            attended = length**2 + target_length**2 + target_length * length
            costs[rows, length, target_length] = rows * (length + target_length + attended / 2048)
    assert costs[plan.shape] == pytest.approx(min(costs.values()))  # type: ignore[index]


def test_too_long_a_target_is_an_error() -> None:
    with pytest.raises(ValueError, match="target.*40.*32"):
        plan_batch(np.array([5, 6]), BUCKETS, 1, np.array([3, 40]), (16, 32))
    with pytest.raises(ValueError, match="target.*40"):
        plan_batch(np.array([5, 6]), BUCKETS, 1, np.array([3, 40]))


# ------------------------------------------------------------------ whole epochs


def alpaca_like(count: int, longest: int, seed: int = 0, mean: float = 150) -> np.ndarray:
    lengths = np.random.default_rng(seed).lognormal(np.log(mean) - 0.32, 0.8, count)
    return np.clip(lengths.astype(int), 5, longest)


@pytest.mark.parametrize("pairs", [False, True])
def test_an_epoch_in_rows(pairs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "EPOCH_PART", 300)
    lengths, targets = alpaca_like(1000, 512), alpaca_like(1000, 256, seed=1, mean=60) if pairs else None
    rows = fit_epoch(lengths, 512, targets, 256 if pairs else None, np.random.default_rng(0).permutation(1000))
    assert sorted(np.concatenate(rows)) == list(range(1000))
    assert all(len(row) and lengths[row].sum() <= 512 and len(row) <= max_segments(512) for row in rows)
    assert targets is None or all(targets[row].sum() <= 256 for row in rows)


@pytest.mark.parametrize("mean", [100, 150, 200])
def test_rows_of_an_epoch_are_nearly_full_and_mix_lengths(mean: float) -> None:
    lengths = alpaca_like(2000, 2048, mean=mean)
    rows = fit_epoch(lengths, 2048, None, None, np.random.default_rng(0).permutation(2000))
    assert lengths.sum() / (len(rows) * 2048) >= 0.97
    # Longest first would make some rows of long texts alone and some of short ones; chance gives nearly all both.
    median = np.median(lengths)
    mixed = [lengths[row].min() < median < lengths[row].max() for row in rows]
    assert np.mean(mixed) > 0.95
