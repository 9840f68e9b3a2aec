"""Batches are a function of the step, however they are reached."""

import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest
from numbered_batches import (
    SIZE,
    Noise,
    assert_same,
    contents,
    gather,
    gather_pairs,
    noise,
    row_target,
    row_tokens,
    tokens_of,
)

from instructrec_jax.data import loader as loader_module
from instructrec_jax.data.batch import BatchTexts, Text
from instructrec_jax.data.example import Example
from instructrec_jax.data.loader import Loader, OwnRows, RowLoader
from instructrec_jax.data.mixture import Mixture
from instructrec_jax.data.sources import ListSource


def make_loader(seed: int = 0, batch_size: int = 10) -> Loader:
    source = ListSource([Example(instruction=f"example {i}", id=str(i)) for i in range(SIZE)], "list")
    return Loader(Mixture([source], seed=seed).order, gather, batch_size, (16, 32), 2, seed)


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    forward, backward = make_loader(), make_loader()
    there = [forward.batch(step) for step in range(20)]
    back = [backward.batch(step) for step in reversed(range(20))][::-1]
    for first, second in zip(there, back, strict=True):
        assert_same(first, second)
    # What is drawn differs between two steps and between two seeds; so does the order.
    other = make_loader(seed=1).batch(0)
    assert len({tuple(noise(batch)) for batch in (*there, other)}) == 21
    assert contents(other) != contents(there[0])


def test_every_example_once_an_epoch_across_batch_boundaries() -> None:
    loader = make_loader()
    seen = [number for step in range(30) for number in contents(loader.batch(step))]
    epochs = [seen[start : start + SIZE] for start in range(0, len(seen) - SIZE + 1, SIZE)]
    assert len(epochs) == 13
    for epoch in epochs:
        assert sorted(epoch) == list(range(SIZE))
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs)  # shuffled anew each time


def test_a_batch_larger_than_the_data_set() -> None:
    loader = make_loader(batch_size=50)
    seen = [number for step in range(23) for number in contents(loader.batch(step))]
    assert Counter(seen) == {number: 50 for number in range(SIZE)}


def test_batches_of_pairs() -> None:
    loader = Loader(make_loader().order, gather_pairs, 10, (32, 64), 2, 0, target_buckets=(8, 16))
    for step in range(3):
        batch = loader.batch(step)
        rows, length, target_length = batch.shape
        assert contents(batch) == contents(make_loader().batch(step))
        targets = batch.batch.targets
        assert targets is not None and targets.tokens.shape == (rows, target_length) and target_length in (8, 16)
        live = targets.segment_ids > 0
        expected = np.concatenate([row_target(i) for i in contents(batch)])
        assert sorted(targets.tokens[live]) == sorted(expected)
        assert batch.tokens == live.sum() + (batch.batch.texts.segment_ids > 0).sum()


def test_batch_tells_its_tokens_and_shape() -> None:
    batch = make_loader().batch(4)
    assert batch.tokens == sum(len(tokens_of(n)) for n in contents(batch)) == (batch.batch.texts.segment_ids > 0).sum()
    assert batch.shape == batch.batch.texts.tokens.shape and batch.shape[0] % 2 == 0


@pytest.mark.parametrize("start", [0, 7])
def test_prefetched_batches_are_the_same(start: int) -> None:
    loader = make_loader()
    batches = list(loader.batches(start, 12))
    assert len(batches) == 12 - start
    for step, batch in enumerate(batches, start):
        assert_same(batch, make_loader().batch(step))
    assert list(loader.batches(12, 12)) == []


def test_an_error_while_prefetching_arrives() -> None:
    def broken(indices: np.ndarray, rng: np.random.Generator) -> BatchTexts:
        if 11 in indices:
            raise ValueError("example 11 is broken.")
        return gather(indices, rng)

    loader = Loader(make_loader().order, broken, 10, (16, 32), 2, 0)
    with pytest.raises(ValueError, match="example 11 is broken"):
        list(loader.batches(0, 3))


# ------------------------------------------------------------------ batches of rows


LENGTHS = np.array([len(row_tokens(number)) for number in range(SIZE)])
TARGET_LENGTHS = np.array([len(row_target(number)) for number in range(SIZE)])


def gather_rows(indices: np.ndarray, rng: np.random.Generator) -> BatchTexts:
    return BatchTexts([Text(row_tokens(int(i))) for i in indices], gather(indices, rng).own)


def make_row_loader(
    seed: int = 0, rows: int = 4, *, pairs: bool = False, weights: list[float] | None = None
) -> RowLoader:
    """Rows of 48 tokens (and 8 of targets); with weights, the examples come from two sources."""
    examples = [Example(instruction=f"example {i}", id=str(i)) for i in range(SIZE)]
    parts = [examples] if weights is None else [examples[:9], examples[9:]]
    sources = [ListSource(part, f"list {number}") for number, part in enumerate(parts)]
    order = Mixture(sources, weights=weights, seed=seed).order
    if not pairs:
        return RowLoader(order, gather_rows, LENGTHS, rows, 48, seed)
    targets: Any = {"target_lengths": TARGET_LENGTHS, "target_length": 8}
    return RowLoader(order, gather_pairs, LENGTHS, rows, 48, seed, **targets)


@pytest.mark.parametrize("pairs", [False, True])
def test_rows_depend_on_seed_and_step_alone(pairs: bool) -> None:
    forward, backward = make_row_loader(pairs=pairs), make_row_loader(pairs=pairs)
    there = [forward.batch(step) for step in range(20)]
    back = [backward.batch(step) for step in reversed(range(20))][::-1]
    for step, (first, second) in enumerate(zip(there, back, strict=True)):
        assert_same(first, second)
        assert first.shape == ((4, 48, 8) if pairs else (4, 48)) and first.batch.texts.tokens.shape == (4, 48)
        assert_same(first, make_row_loader(pairs=pairs).batch(step))  # also where nothing came before
        sides = [first.batch.texts, first.batch.targets]
        assert first.tokens == sum((side.segment_ids > 0).sum() for side in sides if side is not None)
    assert contents(make_row_loader(seed=1).batch(0)) != contents(there[0])
    assert len({tuple(noise(batch)) for batch in there}) == 20


@pytest.mark.parametrize("pairs", [False, True])
def test_every_example_once_an_epoch_of_rows(pairs: bool) -> None:
    loader = make_row_loader(rows=1, pairs=pairs)
    size = len(loader.epoch(0))
    seen = [contents(loader.batch(step)) for step in range(6 * size)]
    epochs = [seen[start : start + size] for start in range(0, len(seen), size)]
    for epoch in epochs:
        assert sorted(itertools.chain(*epoch)) == list(range(SIZE))
    assert len({str(epoch) for epoch in epochs}) == 6  # other rows, in another order
    if not pairs:  # lengths that several examples have, so that these change places
        companions = [{tuple(sorted(row)) for row in epoch} for epoch in epochs]
        assert companions[0] != companions[1] != companions[2]
    # Whatever the number of rows a step: the same rows one after another, across the ends of epochs.
    for rows in (3, 8, 50):
        wide = make_row_loader(rows=rows, pairs=pairs)
        steps = len(seen) // rows
        assert [contents(wide.batch(step)) for step in range(steps)] == [
            list(itertools.chain(*seen[step * rows : (step + 1) * rows])) for step in range(steps)
        ]


def test_a_row_holds_its_texts_side_by_side() -> None:
    loader = make_row_loader(pairs=True)
    batch = loader.batch(2).batch
    assert batch.targets is not None
    for row, number in enumerate(range(8, 12)):
        for side, make in ((batch.texts, row_tokens), (batch.targets, row_target)):
            texts = [make(int(i)) for i in loader.row(number)]
            together = np.concatenate(texts)
            np.testing.assert_array_equal(side.tokens[row, : len(together)], together)
            expected = np.repeat(np.arange(1, len(texts) + 1), [len(text) for text in texts])
            np.testing.assert_array_equal(side.segment_ids[row, : len(together)], expected)
            assert not side.segment_ids[row, len(together) :].any()


def test_rows_of_a_weighted_mixture() -> None:
    """Its epochs have different examples, and so different numbers of rows; a later one is found all the same."""
    one = make_row_loader(rows=1, weights=[3.0, 1.0])
    sizes = [len(one.epoch(epoch)) for epoch in range(8)]
    assert len(set(sizes)) > 1
    seen = [contents(one.batch(step)) for step in range(sum(sizes))]
    ends = np.cumsum([0, *sizes])
    mixture = Mixture(
        [ListSource([Example(instruction="a", id=str(i)) for i in range(n)], str(n)) for n in (9, 14)], weights=[3, 1]
    )
    for epoch in range(8):
        drawn = list(itertools.chain(*seen[ends[epoch] : ends[epoch + 1]]))
        assert sorted(drawn) == sorted(mixture.order(epoch))
    for step in (len(seen) - 1, 0, 11):
        assert contents(make_row_loader(rows=1, weights=[3.0, 1.0]).batch(step)) == seen[step]


def test_equal_epochs_are_packed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    whole = loader_module.fit_epoch
    monkeypatch.setattr(loader_module, "fit_epoch", lambda *a: calls.append(1) or whole(*a))
    make_row_loader().batch(100)
    assert len(calls) == 1


def test_real_share_of_rows() -> None:
    loader = make_row_loader(pairs=True)
    tokens = LENGTHS.sum() + TARGET_LENGTHS.sum()
    assert loader.real_share() == pytest.approx(tokens / (len(loader.epoch(0)) * 56))


def test_prefetched_rows_are_the_same() -> None:
    for step, batch in enumerate(make_row_loader().batches(5, 9), 5):
        assert_same(batch, make_row_loader().batch(step))


@pytest.mark.parametrize(
    "change",
    [
        lambda parts: BatchTexts(parts.texts + parts.texts[:1], None),
        lambda parts: BatchTexts([Text(text.tokens[:1]) for text in parts.texts], None),
        lambda parts: BatchTexts([Text(text.tokens, target=text.tokens) for text in parts.texts], None),
    ],
)
def test_other_texts_than_planned_are_an_error(change: Any) -> None:
    loader = RowLoader(make_row_loader().order, lambda *a: change(gather_rows(*a)), LENGTHS, 4, 48, 0)
    with pytest.raises(ValueError, match="batch_rows"):
        loader.batch(0)


# ------------------------------------------------------------------ the rows of one process


@pytest.mark.parametrize("kind", ["examples", "rows", "pairs"])
def test_only_the_texts_of_own_rows_are_gathered(kind: str) -> None:
    """The rows are those of the whole batch, byte for byte; others are empty."""
    asked: list[int] = []

    def gathered(indices: np.ndarray, rng: np.random.Generator) -> BatchTexts:
        asked.extend(indices.tolist())
        parts = (gather_pairs if kind == "pairs" else gather_rows)(indices, rng)
        return replace(parts, own=Noise(indices.astype(np.int32)))  # of the example alone

    sides = [LENGTHS, TARGET_LENGTHS] if kind == "pairs" else [LENGTHS]

    def made(here: Callable[[int], np.ndarray] | None) -> Loader | RowLoader:
        order = make_row_loader().order
        if kind == "rows":
            return RowLoader(order, gathered, LENGTHS, 4, 48, 0, rows_here=here)
        own = None if here is None else OwnRows(sides, here)
        return Loader(order, gathered, 10, (32, 64), 4, 0, (8, 16) if kind == "pairs" else (), own=own)

    for step in range(3):
        whole = made(None).batch(step)
        rows = len(whole.batch.texts.tokens)
        of_step, found = sorted(asked), 0
        for process in range(rows + 1):  # the last one has no row at all
            asked.clear()
            batch = made(lambda count, process=process: np.arange(count) == process).batch(step)  # type: ignore[misc]
            assert (batch.tokens, batch.shape) == (whole.tokens, whole.shape)
            if process < rows:
                texts = int(whole.batch.texts.segment_ids[process].max())
                assert len(asked) == max(texts, 1)
                found += texts
                for one, other in zip(*map(jax.tree.leaves, (batch.batch, whole.batch)), strict=True):
                    np.testing.assert_array_equal(one[process], other[process])
        assert found == len(of_step)
        asked.clear()
