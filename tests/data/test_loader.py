"""Batches are a function of the step, however they are reached."""

import json
from collections import Counter

import numpy as np
import pytest
from datasets import Dataset

from instructrec_jax.data.example import Example
from instructrec_jax.data.fields import FieldMapper, FieldsConfig
from instructrec_jax.data.loader import Batch, Loader, Parts, StreamLoader, Text
from instructrec_jax.data.mixture import Mixture
from instructrec_jax.data.sources import ListSource
from instructrec_jax.data.stream import StreamSource

SIZE = 23  # examples: no batch size below divides it


def tokens_of(number: int) -> np.ndarray:
    return np.full(number % 9 + 1, number, np.int32)


def gather(indices: np.ndarray, rng: np.random.Generator) -> Parts:
    noise = rng.integers(0, 1000, len(indices)).astype(np.int32)
    return Parts([Text(tokens_of(int(i))) for i in indices], per_text={"noise": noise})


def make_loader(seed: int = 0, batch_size: int = 10) -> Loader:
    source = ListSource([Example(instruction=f"example {i}", id=str(i)) for i in range(SIZE)], "list")
    return Loader(Mixture([source], seed=seed).order, gather, batch_size, (16, 32), 2, seed)


def contents(batch: Batch) -> list[int]:
    """Numbers of the examples in a batch, in the order of the batch."""
    live, arrays = batch.arrays["segment_ids"] > 0, batch.arrays
    starts = live & (arrays["positions"] == 0)
    rows, columns = np.nonzero(starts)
    order = arrays["text_numbers"][rows, arrays["segment_ids"][rows, columns] - 1]
    return [int(n) for _, n in sorted(zip(order, arrays["tokens"][rows, columns], strict=True))]


def noise(batch: Batch) -> list[int]:
    """What was drawn for each text, in the order of the batch."""
    segments = np.arange(1, batch.arrays["text_numbers"].shape[1] + 1)
    rows, columns = np.nonzero((batch.arrays["segment_ids"][:, None] == segments[:, None]).any(-1))
    pairs = zip(batch.arrays["text_numbers"][rows, columns], batch.arrays["noise"][rows, columns], strict=True)
    return [int(value) for _, value in sorted(pairs)]


def assert_same(first: Batch, second: Batch) -> None:
    assert (first.tokens, first.shape, set(first.arrays)) == (second.tokens, second.shape, set(second.arrays))
    for name, array in first.arrays.items():
        np.testing.assert_array_equal(array, second.arrays[name], err_msg=name)


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


def test_batch_tells_its_tokens_and_shape() -> None:
    batch = make_loader().batch(4)
    assert batch.tokens == sum(len(tokens_of(n)) for n in contents(batch)) == (batch.arrays["segment_ids"] > 0).sum()
    assert batch.shape == batch.arrays["tokens"].shape and batch.shape[0] % 2 == 0


@pytest.mark.parametrize("start", [0, 7])
def test_prefetched_batches_are_the_same(start: int) -> None:
    loader = make_loader()
    batches = list(loader.batches(start, 12))
    assert len(batches) == 12 - start
    for step, batch in enumerate(batches, start):
        assert_same(batch, make_loader().batch(step))
    assert list(loader.batches(12, 12)) == []


def test_an_error_while_prefetching_arrives() -> None:
    def broken(indices: np.ndarray, rng: np.random.Generator) -> Parts:
        if 11 in indices:
            raise ValueError("example 11 is broken.")
        return gather(indices, rng)

    loader = Loader(make_loader().order, broken, 10, (16, 32), 2, 0)
    with pytest.raises(ValueError, match="example 11 is broken"):
        list(loader.batches(0, 3))


def test_shares_of_processes_are_the_whole() -> None:
    def one(index: int, count: int) -> Batch:
        return Loader(make_loader().order, gather, 10, (16, 32), 4, 0, index, count).batch(3)

    whole, shares = one(0, 1), [one(0, 2), one(1, 2)]
    for share in shares:
        assert (share.tokens, share.shape) == (whole.tokens, whole.shape)
    for name, array in whole.arrays.items():
        np.testing.assert_array_equal(np.concatenate([share.arrays[name] for share in shares]), array, err_msg=name)


# ------------------------------------------------------------------ streams


def make_stream(shuffle_block: int = 4) -> StreamSource:
    rows = Dataset.from_dict({"instruction": [f"text {i}" for i in range(SIZE)], "id": [str(i) for i in range(SIZE)]})
    dataset = rows.to_iterable_dataset(num_shards=2)
    return StreamSource(dataset, FieldMapper(FieldsConfig(output=None)), "stream", shuffle_block=shuffle_block, seed=3)


def gather_examples(examples: list[Example], rng: np.random.Generator) -> Parts:
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


def test_a_stream_cannot_resume_without_a_position() -> None:
    with pytest.raises(ValueError, match="no position of the data stream"):
        next(make_stream_loader().batches(3, 5))
