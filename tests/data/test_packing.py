"""Where texts go: checked place by place on random lengths."""

import numpy as np
import pytest

from instructrec_jax.data.loader import Parts, Text, lay_out
from instructrec_jax.data.packing import (
    Plan,
    best_fit,
    length_buckets,
    max_segments,
    plan_batch,
    round_up,
    unpacked,
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
    with pytest.raises(ValueError, match=r"a text of 129 tokens does not fit into the longest row \(128\)"):
        plan_batch(np.array([5, 129]), BUCKETS, 1)


def make_parts(lengths: np.ndarray) -> Parts:
    """Tokens that tell where they come from: 1000 * text + place."""
    tokens = [1000 * number + np.arange(length) for number, length in enumerate(lengths)]
    return Parts(
        [Text(t, t % 2 if number % 2 else None) for number, t in enumerate(tokens)],
        per_token={"labels": [t + 7 for t in tokens]},
        per_text={"targets": np.arange(len(lengths), dtype=np.float32)[:, None] * [1, 10]},
        per_example={"whole": np.arange(8) * 3},
        slots={"query_slots": np.arange(len(lengths))[: len(lengths) // 8 * 8][::-1].copy()},
    )


@pytest.mark.parametrize("packed", [True, False])
def test_lay_out_places_every_token_once(packed: bool) -> None:
    lengths = np.maximum(random_lengths(3, 24, 60), 2)
    parts = make_parts(lengths)
    plan = plan_batch(lengths, BUCKETS, 4) if packed else unpacked(lengths, 64, 5)
    check(plan, lengths)
    arrays = lay_out(parts, plan)
    live = arrays["segment_ids"] > 0
    assert live.sum() == lengths.sum()
    assert sorted(arrays["tokens"][live]) == sorted(np.concatenate([t.tokens for t in parts.texts]))
    for name in ("tokens", "token_types", "positions", "labels"):
        assert not arrays[name][~live].any()
        assert arrays[name].dtype == np.int32 and arrays[name].shape == (plan.rows, plan.length)
    np.testing.assert_array_equal(arrays["positions"][live], arrays["tokens"][live] % 1000)
    np.testing.assert_array_equal(arrays["labels"][live], arrays["tokens"][live] + 7)
    numbers = arrays["tokens"] // 1000
    np.testing.assert_array_equal(arrays["token_types"][live], np.where(numbers % 2, arrays["tokens"] % 2, 0)[live])
    # The per-text arrays of a token's (row, segment) are those of the text it comes from.
    assert arrays["text_numbers"].shape == (plan.rows, max_segments(plan.length))
    for row, column in zip(*np.nonzero(live), strict=True):
        number, segment = numbers[row, column], arrays["segment_ids"][row, column]
        assert arrays["text_numbers"][row, segment - 1] == number
        assert arrays["targets"][row, segment - 1].tolist() == [number, 10 * number]
    flat = arrays["text_numbers"].reshape(-1)
    np.testing.assert_array_equal(flat[arrays["query_slots"]], np.arange(24)[::-1])
    np.testing.assert_array_equal(arrays["whole"], np.arange(8) * 3)


@pytest.mark.parametrize("processes", [2, 4])
def test_shares_of_processes_are_the_whole(processes: int) -> None:
    lengths = np.maximum(random_lengths(5, 24, 60), 2)
    parts, plan = make_parts(lengths), plan_batch(lengths, BUCKETS, 4)
    whole = lay_out(parts, plan)
    shares = [lay_out(parts, plan, index, processes) for index in range(processes)]
    for name, array in whole.items():
        np.testing.assert_array_equal(np.concatenate([share[name] for share in shares]), array, err_msg=name)
        assert len({share[name].shape for share in shares}) == 1
