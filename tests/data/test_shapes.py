"""The shapes of a run's batches: at most two, each batch in the cheapest that holds it."""

import itertools
from typing import Any

import numpy as np
import pytest

from instructrec_jax.data.batch import Text
from instructrec_jax.data.packing import fit, plan_batch, round_to
from instructrec_jax.data.shapes import SPARE, Shape, Sizes, choose_shapes, grown, spread

BUCKETS, TARGETS = (32, 64, 128), (8, 16)


def ragged(seed: int, count: int = 40, texts: int = 12, *, pairs: bool = False, images: bool = False) -> list[Sizes]:
    """Mostly short texts with a few long ones."""
    rng = np.random.default_rng(seed)
    lengths = np.clip(rng.lognormal(2.5, 0.9, (count, texts)).astype(int), 1, BUCKETS[-1])
    targets = rng.integers(1, TARGETS[-1] + 1, (count, texts)) if pairs else [None] * count
    counts = rng.integers(0, 3, (count, texts)) if images else [None] * count
    return [Sizes(*each) for each in zip(lengths, targets, counts, strict=True)]


@pytest.mark.parametrize(("pairs", "images"), [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("multiple", [1, 6])
@pytest.mark.parametrize("seed", range(6))
def test_every_batch_fits_one_of_two_shapes(seed: int, multiple: int, pairs: bool, images: bool) -> None:
    batches = ragged(seed, pairs=pairs, images=images)
    shapes = choose_shapes(batches, BUCKETS, multiple, TARGETS, pixels=(4, 4, 3) if images else None)
    assert len(shapes.shapes) <= 2
    found = [shapes.plan(sizes) for sizes in batches]
    laid = {(plan.shape, plan.images) for plan in found}
    assert laid == {
        ((s.rows, s.length, *([s.target_length] if pairs else [])), (s.images, 4, 4, 3) if images else None)
        for s in shapes.shapes
    }
    assert all(plan.rows % multiple == 0 for plan in found)
    largest = shapes.shapes[-1]
    assert found[shapes.largest_step].shape[:2] == (largest.rows, largest.length)
    tokens = sum(int(side.sum()) for sizes in batches for side in sizes.sides)
    if multiple == 1 or len(laid) == 1:
        places = sum(plan.rows * (plan.length + (plan.target_length or 0)) for plan in found)
        assert shapes.padding == pytest.approx(1 - tokens / places)


def rows_of(length: int, sizes: Sizes) -> float:
    return fit(sizes.lengths, length).rows if sizes.lengths.max() <= length else np.inf


@pytest.mark.parametrize("seed", range(8))
def test_no_other_two_shapes_compute_less(seed: int) -> None:
    """Brute force over lengths and numbers of rows, of batches that are all tried."""
    batches = ragged(seed, count=12, texts=6)
    shapes = choose_shapes(batches, BUCKETS, 1)
    ours = sum(Shape(*shapes.plan(sizes).shape).cost for sizes in batches)
    need = np.array([[rows_of(length, sizes) for length in BUCKETS] for sizes in batches])
    every = [Shape(rows, length) for length in BUCKETS for rows in range(1, 7)]
    best = np.inf
    for pair in itertools.combinations_with_replacement(every, 2):
        costs = [
            min((s.cost for s in pair if need[number][BUCKETS.index(s.length)] <= s.rows), default=np.inf)
            for number in range(len(batches))
        ]
        best = min(best, sum(costs))
    assert best <= ours + 1e-9
    assert ours <= best / 0.95 + 1e-9, "one shape only where a second saves less than 5%"


def test_equal_batches_have_one_shape() -> None:
    shapes = choose_shapes([Sizes(np.full(8, 30))] * 10, BUCKETS, 2)
    assert shapes.shapes == [Shape(8, 32)]
    assert shapes.described == "8 rows of 32 tokens (6.2% padding)" and shapes.padding == 1 / 16


def test_two_shapes_are_described() -> None:
    batches = [Sizes(np.full(8, 30), np.full(8, 8))] * 9 + [Sizes(np.full(8, 120), np.full(8, 8))]
    shapes = choose_shapes(batches, BUCKETS, 1, TARGETS)
    assert [s.described for s in shapes.shapes] == ["8 rows of 32 + 8 tokens", "8 rows of 128 + 8 tokens"]
    assert shapes.largest_step == 9 and shapes.described.startswith("8 rows of 32 + 8 tokens or 8 rows")


def test_batches_that_were_not_looked_at_have_room() -> None:
    """More rows, and rows for the longest text; what fits none has the cheapest shape for itself, as without shapes."""
    batches = [Sizes(np.full(16, 30))] * 4
    shapes = choose_shapes(batches, BUCKETS, 2, longest=Sizes(np.array([100])), steps=[0, 9, 18, 27], spare=True)
    assert [s.length for s in shapes.shapes] == [128]
    needed = fit(batches[0].lengths, 128).rows
    assert shapes.shapes[-1].rows == round_to(int(np.ceil(needed * (1 + SPARE))), 2)
    assert shapes.largest_step == 0
    huge = Sizes(np.full(16, 128))
    assert shapes.plan(huge).shape == plan_batch(huge.lengths, BUCKETS, 2).shape


def test_a_single_shape_on_request() -> None:
    batches = [*[Sizes(np.full(8, 30))] * 9, Sizes(np.full(8, 120))]
    assert len(choose_shapes(batches, BUCKETS, 1).shapes) == 2
    assert choose_shapes(batches, BUCKETS, 1, most=1).shapes == [Shape(8, 128)]


def test_sizes_of_texts() -> None:
    texts = [Text(np.zeros(3, np.int32), target=np.zeros(2, np.int32)), Text(np.zeros(1, np.int32), target=np.ones(1))]
    sizes = Sizes.of(texts)
    assert sizes.same_as(Sizes(np.array([3, 1]), np.array([2, 1]))) and sizes.images is None
    assert not sizes.same_as(Sizes(np.array([3, 1])))
    assert not sizes.same_as(Sizes(np.array([3, 1]), np.array([2, 1]), np.array([1, 0])))
    assert sizes.fits(3, 2) and not sizes.fits(2, 2) and not sizes.fits(3, 1)


@pytest.mark.parametrize(("count", "most", "expected"), [(3, 5, [0, 1, 2]), (10, 2, [0, 9]), (5, 3, [0, 2, 4])])
def test_numbers_are_spread(count: int, most: int, expected: list[int]) -> None:
    assert spread(count, most) == expected


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_a_stream_grows_and_never_shrinks(seed: int, pairs: bool) -> None:
    shape: Any = None
    seen = []
    for sizes in ragged(seed, count=200, pairs=pairs, images=True):
        before, shape = shape, grown(sizes, shape, BUCKETS, 4, TARGETS)
        plan = shape.plan(sizes)
        assert plan is not None and plan.rows == shape.rows and shape.rows % 4 == 0
        if before is not None:
            assert shape.length >= before.length and shape.images >= before.images
        seen.append(shape)
    assert len(set(seen)) <= 7
