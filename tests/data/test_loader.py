"""Batches are a function of the step, however they are reached."""

import itertools
import json
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
import pytest
from datasets import Dataset

from instructrec_jax.data import loader as loader_module
from instructrec_jax.data.batch import BatchTexts, PerText, Text
from instructrec_jax.data.example import Example
from instructrec_jax.data.fields import FieldMapper, FieldsConfig
from instructrec_jax.data.loader import HostBatch, Loader, OwnRows, RowLoader, StreamLoader, StreamRowLoader
from instructrec_jax.data.mixture import Mixture
from instructrec_jax.data.skipped import SkippedRow
from instructrec_jax.data.sources import ListSource
from instructrec_jax.data.stream import StreamSource

SIZE = 23  # examples: no batch size below divides it


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Noise:
    """Random numbers, to tell the draws of two batches apart."""

    noise: PerText


def tokens_of(number: int) -> np.ndarray:
    return np.full(number % 9 + 1, number, np.int32)


def gather(indices: np.ndarray, rng: np.random.Generator) -> BatchTexts:
    noise = rng.integers(0, 1000, len(indices)).astype(np.int32)
    return BatchTexts([Text(tokens_of(int(i))) for i in indices], Noise(noise))


def make_loader(seed: int = 0, batch_size: int = 10) -> Loader:
    source = ListSource([Example(instruction=f"example {i}", id=str(i)) for i in range(SIZE)], "list")
    return Loader(Mixture([source], seed=seed).order, gather, batch_size, (16, 32), 2, seed)


def contents(batch: HostBatch) -> list[int]:
    """Numbers of the examples in a batch, in the order of the batch."""
    texts, numbers = batch.batch.texts, batch.batch.text_numbers
    rows, columns = np.nonzero((texts.segment_ids > 0) & (texts.positions == 0))
    order = numbers[rows, texts.segment_ids[rows, columns] - 1]
    return [int(n) for _, n in sorted(zip(order, texts.tokens[rows, columns], strict=True))]


def noise(batch: HostBatch) -> list[int]:
    """What was drawn for each text, in the order of the batch."""
    numbers, drawn = batch.batch.text_numbers, batch.batch.own.noise
    segments = np.arange(1, numbers.shape[1] + 1)
    rows, columns = np.nonzero((batch.batch.texts.segment_ids[:, None] == segments[:, None]).any(-1))
    return [int(value) for _, value in sorted(zip(numbers[rows, columns], drawn[rows, columns], strict=True))]


def assert_same(first: HostBatch, second: HostBatch) -> None:
    assert (first.tokens, first.shape) == (second.tokens, second.shape)
    jax.tree.map(np.testing.assert_array_equal, first.batch, second.batch)


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


def row_tokens(number: int) -> np.ndarray:
    return np.full(3 * (number % 9) + 2, number, np.int32)


def row_target(number: int) -> np.ndarray:
    return np.full(number % 4 + 1, number, np.int32)


LENGTHS = np.array([len(row_tokens(number)) for number in range(SIZE)])
TARGET_LENGTHS = np.array([len(row_target(number)) for number in range(SIZE)])


def gather_rows(indices: np.ndarray, rng: np.random.Generator) -> BatchTexts:
    return BatchTexts([Text(row_tokens(int(i))) for i in indices], gather(indices, rng).own)


def gather_pairs(indices: np.ndarray, rng: np.random.Generator) -> BatchTexts:
    """Targets of other lengths than their texts, with the same tokens."""
    texts = [Text(row_tokens(int(i)), target=row_target(int(i))) for i in indices]
    return BatchTexts(texts, gather(indices, rng).own)


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


# ------------------------------------------------------------------ streams


def make_stream(shuffle_block: int = 4) -> StreamSource:
    rows = Dataset.from_dict({"instruction": [f"text {i}" for i in range(SIZE)], "id": [str(i) for i in range(SIZE)]})
    dataset = rows.to_iterable_dataset(num_shards=2)
    return StreamSource(dataset, FieldMapper(FieldsConfig(output=None)), "stream", shuffle_block=shuffle_block, seed=3)


def gather_examples(examples: list[Example], rng: np.random.Generator) -> BatchTexts:
    return gather(np.array([int(example.id) for example in examples]), rng)


def make_stream_loader() -> StreamLoader:
    return StreamLoader(make_stream(), gather_examples, 5, (16, 32), 2, 0)


def test_a_stream_goes_on_from_every_position() -> None:
    batches = list(make_stream_loader().batches(0, 15))
    position = None
    for step in range(15):
        # Each run starts from the position that the run before it had after one batch.
        resumed = list(make_stream_loader().batches(step, 15, position))
        for ours, theirs in zip(resumed, batches[step:], strict=True):
            assert_same(ours, theirs)
        position = json.loads(json.dumps(resumed[0].position))  # as a checkpoint keeps it


def test_epochs_of_a_stream_follow_one_another() -> None:
    seen = [number for batch in make_stream_loader().batches(0, 14) for number in contents(batch)]
    assert sorted(seen[:SIZE]) == sorted(seen[SIZE : 2 * SIZE]) == sorted(seen[2 * SIZE : 3 * SIZE])
    assert sorted(seen[:SIZE]) == list(range(SIZE)) and seen[:SIZE] != seen[SIZE : 2 * SIZE]


def test_a_stream_of_pairs() -> None:
    def gather_examples(examples: list[Example], rng: np.random.Generator) -> BatchTexts:
        return gather_pairs(np.array([int(example.id) for example in examples]), rng)

    loader = StreamLoader(make_stream(), gather_examples, 5, (32, 64), 2, 0, target_buckets=(8, 16))
    seen = [number for batch in loader.batches(0, 14) for number in contents(batch)]
    assert sorted(seen[:SIZE]) == list(range(SIZE))


def test_a_stream_cannot_resume_without_a_position() -> None:
    with pytest.raises(ValueError, match="position"):
        next(make_stream_loader().batches(3, 5))


def make_stream_rows(encode: Callable[[list[Example]], list[Text]], stream: StreamSource) -> StreamRowLoader:
    def gather_texts(texts: list[Text], rng: np.random.Generator) -> BatchTexts:
        return BatchTexts(texts, Noise(rng.integers(0, 1000, len(texts)).astype(np.int32)))

    rows = {"batch_rows": 1, "window": 8, "length": 16, "target_length": None, "seed": 0}
    return StreamRowLoader(stream, encode, lambda text: text, gather_texts, **rows)


def test_the_next_window_is_encoded_while_one_is_used() -> None:
    """Its error and its bad rows wait until it is due."""
    encoded, second = list[int](), threading.Event()
    stream = make_stream()

    def encode(examples: list[Example]) -> list[Text]:
        encoded.append(len(examples))
        stream.know_skipped([SkippedRow(f"window {len(encoded)}", "", "", "")])
        if len(encoded) == 2:
            second.set()
            raise ValueError("a bad window")
        return [Text(tokens_of(int(example.id))) for example in examples]

    with closing(make_stream_rows(encode, stream).batches(0, 50)) as batches:
        assert next(batches).position["taken"] == 1  # type: ignore[index]
        assert second.wait(60), "only one batch of the first window was taken"
        assert [row.where for row in stream.skipped] == ["window 1"]
        with pytest.raises(ValueError, match="a bad window"):
            while (batch := next(batches)).position:
                last = batch
    assert last.position["taken"] == 0, "every batch of the first window came"  # type: ignore[index]
