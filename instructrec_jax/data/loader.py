"""Batches as a function of the step.

`Loader.batch(step)` depends on (seed, step, global batch size) alone, so resuming is seeking and nothing repeats
or goes missing when the number of devices or hosts changes. Every batch, of every family and task, carries

    tokens, token_types, segment_ids, positions   int32 [rows, length]; segment 0 is padding
    text_numbers                                  int32 [rows, segments], which text of the batch lies there

beside the arrays that the task adds.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import grain
import jax
import numpy as np
from jax.sharding import Mesh

from instructrec_jax.data.packing import Plan, plan_batch
from instructrec_jax.distributed.mesh import batch_sharding


@dataclass(frozen=True, slots=True)
class Text:
    """One tokenised text: int32 [length] tokens, and token types where the network has them."""

    tokens: np.ndarray
    types: np.ndarray | None = None


@dataclass
class Parts:
    """What a task makes of some examples, before the texts are laid out in rows."""

    texts: list[Text]
    per_token: dict[str, list[np.ndarray]] = field(default_factory=dict)  # one [length] array a text
    per_text: dict[str, np.ndarray] = field(default_factory=dict)  # [texts, ...] -> [rows, segments, ...]
    per_example: dict[str, np.ndarray] = field(default_factory=dict)  # as it is
    slots: dict[str, np.ndarray] = field(default_factory=dict)  # numbers of texts -> indices of pooled vectors


@dataclass(frozen=True)
class Batch:
    """The rows of this process (all of them on one process) and what the batch holds in total."""

    arrays: dict[str, np.ndarray]
    tokens: int  # without padding, over all processes
    shape: tuple[int, int]  # (rows, length), over all processes
    position: Any = None  # of a stream, after this batch


def lay_out(parts: Parts, plan: Plan, process_index: int = 0, process_count: int = 1) -> dict[str, np.ndarray]:
    """Lays texts out as planned. Each process gets an equal share of every array's leading dimension."""

    def mine(array: np.ndarray) -> np.ndarray:
        share = len(array) // process_count
        return array[process_index * share : (process_index + 1) * share]

    first, last = plan.rows * process_index // process_count, plan.rows * (process_index + 1) // process_count
    names = {"tokens", "token_types", "segment_ids", "positions", *parts.per_token}
    arrays = {name: np.zeros((last - first, plan.length), np.int32) for name in names}
    for number, text in enumerate(parts.texts):
        row = plan.row[number] - first
        if not 0 <= row < last - first:
            continue
        span = slice(plan.start[number], plan.start[number] + len(text.tokens))
        arrays["tokens"][row, span] = text.tokens
        arrays["segment_ids"][row, span] = plan.segment[number]
        arrays["positions"][row, span] = np.arange(len(text.tokens))
        if text.types is not None:
            arrays["token_types"][row, span] = text.types
        for name, values in parts.per_token.items():
            arrays[name][row, span] = values[number]
    per_text = {"text_numbers": np.arange(len(parts.texts), dtype=np.int32), **parts.per_text}
    for name, each in per_text.items():
        whole = np.zeros((plan.rows, plan.segments, *each.shape[1:]), each.dtype)
        whole[plan.row, plan.segment - 1] = each
        arrays[name] = mine(whole)
    for name, each in parts.per_example.items():
        arrays[name] = mine(each)
    for name, numbers in parts.slots.items():
        arrays[name] = mine(plan.slot[numbers].astype(np.int32))
    return arrays


@dataclass(frozen=True)
class Loader:
    """Batches of an indexable data set.

    Attributes:
      order: epoch -> int64 [examples an epoch], indices of examples in that epoch's order.
      gather: (indices, random generator) -> Parts: the task's view of some examples.
      batch_size: examples a step, over all processes.
      buckets: allowed row lengths.
      row_multiple: rows are a multiple of this (data-parallel devices x accumulation).
    """

    order: Callable[[int], np.ndarray]
    gather: Callable[[np.ndarray, np.random.Generator], Parts]
    batch_size: int
    buckets: Sequence[int]
    row_multiple: int
    seed: int
    process_index: int = 0
    process_count: int = 1
    _epochs: dict[int, np.ndarray] = field(default_factory=dict, repr=False)

    def _epoch(self, epoch: int) -> np.ndarray:
        if epoch not in self._epochs:
            for old in [e for e in self._epochs if e < epoch - 2]:
                self._epochs.pop(old, None)
            self._epochs[epoch] = self.order(epoch)
        return self._epochs[epoch]

    def indices(self, step: int) -> np.ndarray:
        """Examples of a step: the epochs follow one another without a gap, each holds every example once."""
        size = len(self._epoch(0))
        positions = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        return np.array([self._epoch(int(p // size))[p % size] for p in positions])

    def batch(self, step: int) -> Batch:
        parts = self.gather(self.indices(step), np.random.default_rng([self.seed, step]))
        return pack(parts, self.buckets, self.row_multiple, self.process_index, self.process_count)

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """Batches of the steps start..stop-1, made ahead of time by a thread."""
        return prefetch(self.batch, start, stop)


def pack(
    parts: Parts, buckets: Sequence[int], row_multiple: int, process_index: int = 0, process_count: int = 1
) -> Batch:
    lengths = np.array([len(text.tokens) for text in parts.texts])
    plan = plan_batch(lengths, buckets, row_multiple)
    arrays = lay_out(parts, plan, process_index, process_count)
    return Batch(arrays, int(lengths.sum()), (plan.rows, plan.length))


@dataclass(frozen=True)
class _Steps:
    """The shape of a random-access source that grain asks for."""

    function: Callable[[int], Batch]
    start: int
    stop: int

    def __len__(self) -> int:
        return max(0, self.stop - self.start)

    def __getitem__(self, index: Any) -> Batch:
        return self.function(self.start + int(index))


def prefetch(function: Callable[[int], Batch], start: int, stop: int) -> Iterator[Batch]:
    source = grain.MapDataset.source(_Steps(function, start, stop))
    return iter(source.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)))


@dataclass
class StreamLoader:
    """Batches of a source that can only be read in order.

    The position of the stream after each batch travels with it and goes into the checkpoint. What a stream cannot
    promise: a shuffle of the whole, and the same batches when its files or its shard count change.
    """

    stream: Any  # iterable of examples with get_state / set_state
    gather: Callable[[list[Any], np.random.Generator], Parts]  # here: examples instead of indices
    batch_size: int
    buckets: Sequence[int]
    row_multiple: int
    seed: int
    process_index: int = 0
    process_count: int = 1

    def batches(self, start: int, stop: int, position: Any = None) -> Iterator[Batch]:
        if start and position is None:
            raise ValueError("the checkpoint holds no position of the data stream, so it cannot be resumed.")
        if position is not None:
            self.stream.set_state(position)
        examples = iter(self.stream)
        for step in range(start, stop):
            chosen: list[Any] = []
            while len(chosen) < self.batch_size:
                try:
                    chosen.append(next(examples))
                except StopIteration:
                    examples = iter(self.stream)  # the next epoch
            parts = self.gather(chosen, np.random.default_rng([self.seed, step]))
            batch = pack(parts, self.buckets, self.row_multiple, self.process_index, self.process_count)
            yield Batch(batch.arrays, batch.tokens, batch.shape, self.stream.get_state())


def to_devices(arrays: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Puts each process's share of the rows onto its devices."""
    count = jax.process_count()
    return {
        name: jax.make_array_from_process_local_data(
            batch_sharding(mesh, len(array) * count), array, (len(array) * count, *array.shape[1:])
        )
        for name, array in arrays.items()
    }
