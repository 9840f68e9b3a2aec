"""Batches of sources that are read in order."""

import itertools
import json
import threading
from collections.abc import Callable
from contextlib import closing

import numpy as np
import pytest
from datasets import Dataset
from numbered_batches import SIZE, Noise, assert_same, contents, gather, gather_pairs, tokens_of

from instructrec_jax.data.batch import BatchTexts, Text
from instructrec_jax.data.example import Example
from instructrec_jax.data.fields import FieldMapper, FieldsConfig
from instructrec_jax.data.loader import HostBatch
from instructrec_jax.data.skipped import SkippedRow
from instructrec_jax.data.stream import StreamSource
from instructrec_jax.data.stream_loader import StreamLoader, StreamRowLoader


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


def test_a_stream_compiles_few_shapes_and_resumes_in_the_shape_that_it_had() -> None:
    """Texts of 2 to 26 tokens, and later ones of 60: one shape for the first, one for all that follow."""

    def batches(start: int, position: object) -> list[HostBatch]:
        def gather_longer(examples: list[Example], rng: np.random.Generator) -> BatchTexts:
            numbers = [int(example.id) for example in examples]
            long = next(steps) >= 6
            return BatchTexts(
                [Text(np.full(60 if long and n % 3 else 3 * (n % 9) + 2, n, np.int32)) for n in numbers], None
            )

        steps = itertools.count(start)
        loader = StreamLoader(make_stream(), gather_longer, 5, (32, 64), 1, 0)
        return list(loader.batches(start, 30, position))  # type: ignore[arg-type]

    whole = batches(0, None)
    shapes = [batch.shape for batch in whole]
    assert len(set(shapes[:6])) == 1 and len(set(shapes)) == 2
    assert shapes == sorted(shapes, key=lambda shape: shape[1]), "a shape stays"
    for step in (3, 9, 20):
        resumed = batches(step, json.loads(json.dumps(whole[step - 1].position)))
        for ours, theirs in zip(resumed, whole[step:], strict=True):
            assert_same(ours, theirs)


def test_a_position_without_a_shape_is_that_of_the_stream() -> None:
    """As checkpoints of earlier versions have it."""
    batches = list(make_stream_loader().batches(0, 6))
    position = batches[2].position
    assert position is not None
    resumed = list(make_stream_loader().batches(3, 6, position["stream"]))
    assert list(map(contents, resumed)) == list(map(contents, batches[3:]))
