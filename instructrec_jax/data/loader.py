"""Batches as a function of the step.

`Loader.batch(step)` and `RowLoader.batch(step)` depend on (seed, step, global batch size) alone, so resuming is seeking
and nothing repeats or goes missing when the number of devices or hosts changes. Every batch, of every family and task,
carries

    tokens, token_types, segment_ids, positions   int32 [rows, length]; segment 0 is padding
    text_numbers                                  int32 [rows, segments], index in the batch of each segment's text

and the arrays that the task adds; and for an encoder–decoder

    target_tokens, target_segment_ids, target_positions   int32 [rows, target_length]

where a target has the row and segment number of its text.
"""

import bisect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import numpy as np

from instructrec_jax.data.mixture import permutation
from instructrec_jax.data.packing import Plan, fit_epoch, plan_batch
from instructrec_jax.distributed.mesh import DeviceMesh, batch_sharding, data_shards


@dataclass(frozen=True, slots=True)
class Text:
    """One tokenized text: int32 [length] tokens, and token types where the network has them.

    `target`: decoder input of an encoder–decoder, int32 [target length].
    """

    tokens: np.ndarray
    types: np.ndarray | None = None
    target: np.ndarray | None = None


@dataclass
class BatchTexts:
    """A task's texts and arrays for some examples, before packing.

    Arrays per token have the lengths of the texts or, with targets, of the targets.
    """

    texts: list[Text]
    per_token: dict[str, list[np.ndarray]] = field(default_factory=dict)  # one [length] array per text
    per_text: dict[str, np.ndarray] = field(default_factory=dict)  # [texts, ...] -> [rows, segments, ...]
    per_example: dict[str, np.ndarray] = field(default_factory=dict)  # unchanged
    slots: dict[str, np.ndarray] = field(default_factory=dict)  # indices of texts -> indices of pooled vectors


@dataclass(frozen=True)
class Batch:
    """The rows of this process, and the sizes of the global batch."""

    arrays: dict[str, np.ndarray]
    tokens: int  # without padding, with targets, over all processes
    shape: tuple[int, ...]  # (rows, length) or (rows, length, target_length), over all processes
    totals: dict[str, int]  # leading dimension of each array over all processes
    position: dict[str, Any] | None = None  # of a stream, after this batch


def lengths_of(texts: Sequence[Text]) -> tuple[np.ndarray, np.ndarray | None]:
    """Tokens of each text, int64 [texts], and of each target, or None without targets.

    Raises ValueError when some texts have targets and others do not.
    """
    lengths = np.array([len(text.tokens) for text in texts])
    targets = [len(text.target) for text in texts if text.target is not None]
    if targets and len(targets) < len(texts):
        raise ValueError(f"{len(targets)} of {len(texts)} texts have a target: either all or none must have one.")
    return lengths, np.array(targets) if targets else None


def lay_out(
    parts: BatchTexts, plan: Plan, process_index: int = 0, process_count: int = 1, multiple: int = 1
) -> dict[str, np.ndarray]:
    """The arrays of a plan. Each process gets an equal share of every array's leading dimension.

    An array whose length is not a multiple of `multiple` cannot be split over devices: each process gets all of it.
    """
    if (lengths_of(parts.texts)[1] is None) != (plan.target_length is None):
        raise ValueError("the texts and the plan disagree: either both or neither must have targets.")

    def mine(array: np.ndarray) -> np.ndarray:
        if len(array) % process_count or len(array) % multiple:
            return array
        share = len(array) // process_count
        return array[process_index * share : (process_index + 1) * share]

    first, last = plan.rows * process_index // process_count, plan.rows * (process_index + 1) // process_count

    def empty(length: int, *names: str) -> dict[str, np.ndarray]:
        return {name: np.zeros((last - first, length), np.int32) for name in names}

    arrays = empty(plan.length, "tokens", "token_types", "segment_ids", "positions")
    if plan.target_length is None:
        arrays |= empty(plan.length, *parts.per_token)
    else:
        names = ("target_tokens", "target_segment_ids", "target_positions")
        arrays |= empty(plan.target_length, *names, *parts.per_token)
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
        if plan.target_start is not None and text.target is not None:
            span = slice(plan.target_start[number], plan.target_start[number] + len(text.target))
            arrays["target_tokens"][row, span] = text.target
            arrays["target_segment_ids"][row, span] = plan.segment[number]
            arrays["target_positions"][row, span] = np.arange(len(text.target))
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
      order: epoch -> int64 [examples per epoch], indices of examples in the epoch's order.
      gather: (indices, random generator) -> BatchTexts: the task's texts of some examples.
      batch_size: examples per step, over all processes.
      buckets: allowed row lengths.
      row_multiple: divisor of the row count (data-parallel devices x accumulation).
      target_buckets: allowed lengths of target rows; () without targets.
    """

    order: Callable[[int], np.ndarray]
    gather: Callable[[np.ndarray, np.random.Generator], BatchTexts]
    batch_size: int
    buckets: Sequence[int]
    row_multiple: int
    seed: int
    process_index: int = 0
    process_count: int = 1
    target_buckets: Sequence[int] = ()
    _epochs: dict[int, np.ndarray] = field(default_factory=dict, repr=False)

    def _epoch(self, epoch: int) -> np.ndarray:
        if epoch not in self._epochs:
            for old in [e for e in self._epochs if e < epoch - 2]:
                self._epochs.pop(old, None)
            self._epochs[epoch] = self.order(epoch)
        return self._epochs[epoch]

    def indices(self, step: int) -> np.ndarray:
        """The examples of a step, from the epochs put end to end, int64 [batch_size]."""
        size = len(self._epoch(0))
        positions = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        return np.array([self._epoch(int(p // size))[p % size] for p in positions])

    def batch(self, step: int) -> Batch:
        parts = self.gather(self.indices(step), np.random.default_rng([self.seed, step]))
        where = self.process_index, self.process_count
        return pack(parts, self.buckets, self.row_multiple, *where, self.target_buckets)

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """Batches of the steps start..stop-1, made ahead of time by a thread."""
        return prefetch(self.batch, start, stop)


def pack(
    parts: BatchTexts,
    buckets: Sequence[int],
    row_multiple: int,
    process_index: int = 0,
    process_count: int = 1,
    target_buckets: Sequence[int] = (),
) -> Batch:
    lengths, target_lengths = lengths_of(parts.texts)
    plan = plan_batch(lengths, buckets, row_multiple, target_lengths, target_buckets)
    return planned_batch(parts, plan, process_index, process_count, row_multiple)


def planned_batch(parts: BatchTexts, plan: Plan, process_index: int, process_count: int, multiple: int = 1) -> Batch:
    tokens = sum(int(lengths.sum()) for lengths in lengths_of(parts.texts) if lengths is not None)
    arrays = lay_out(parts, plan, process_index, process_count, multiple)
    others = {name: len(each) for name, each in (parts.per_example | parts.slots).items()}
    return Batch(arrays, tokens, plan.shape, dict.fromkeys(arrays, plan.rows) | others)


@dataclass(frozen=True)
class RowLoader:
    """Batches of a fixed number of packed rows of an indexable data set.

    The examples of an epoch are packed as a whole, and its rows are shuffled: batch(step) holds the rows
    step * batch_rows to (step + 1) * batch_rows - 1 of the epochs put end to end. All batches have one shape.

    The packing depends on the seed and on the lengths of the epoch's examples, not on their order. So epochs with the
    same lengths have the same number of rows, and the start of a later epoch is known without packing the earlier
    ones. (Epochs of a weighted mixture differ in their lengths; each is packed once to count its rows.) Examples of
    equal length exchange places from epoch to epoch; an example with a unique length shares its row with the same
    lengths in every epoch.

    Attributes:
      order, gather, seed: as in `Loader`; `gather` gives one text per example.
      lengths: int [examples], tokens of each example.
      target_lengths: tokens of each target, or None.
      batch_rows: rows per step, over all processes.
      length, target_length: row lengths.
    """

    order: Callable[[int], np.ndarray]
    gather: Callable[[np.ndarray, np.random.Generator], BatchTexts]
    lengths: np.ndarray
    batch_rows: int
    length: int
    seed: int
    process_index: int = 0
    process_count: int = 1
    target_lengths: np.ndarray | None = None
    target_length: int | None = None
    _epochs: dict[int, list[np.ndarray]] = field(default_factory=dict, repr=False)
    _ends: list[int] = field(default_factory=list, repr=False)  # rows of the epochs 0..e together
    _packed: dict[bytes, list[np.ndarray]] = field(default_factory=dict, repr=False)  # rows of the last lengths packed

    @property
    def _sides(self) -> list[np.ndarray]:
        return [self.lengths] if self.target_lengths is None else [self.lengths, self.target_lengths]

    def epoch(self, epoch: int) -> list[np.ndarray]:
        """The rows of an epoch in order, each as the indices of its examples."""
        if epoch not in self._epochs:
            for old in [e for e in self._epochs if e < epoch - 1]:
                del self._epochs[old]
            examples = self._by_length(epoch)
            rows = self._pack(examples)
            shuffled = permutation(len(rows), self.seed, epoch, 0, 1)
            self._epochs[epoch] = [examples[rows[number]] for number in shuffled]
        return self._epochs[epoch]

    def _by_length(self, epoch: int) -> np.ndarray:
        """The examples of an epoch sorted by length, ties in the epoch's order."""
        order = self.order(epoch)
        return order[np.lexsort([side[order] for side in reversed(self._sides)])]

    def _pack(self, examples: np.ndarray) -> list[np.ndarray]:
        """Rows of indices into `examples`, which are sorted by length."""
        lengths = self.lengths[examples]
        targets = None if self.target_lengths is None else self.target_lengths[examples]
        key = b"".join(side[examples].tobytes() for side in self._sides)
        if key not in self._packed:
            order = permutation(len(examples), self.seed, 0, 0, 2)
            self._packed.clear()
            self._packed[key] = fit_epoch(lengths, self.length, targets, self.target_length, order)
        return self._packed[key]

    def row(self, number: int) -> np.ndarray:
        """The examples of a row, counted over the epochs put end to end."""
        while not self._ends or self._ends[-1] <= number:
            rows = self._pack(self._by_length(len(self._ends)))
            self._ends.append(len(rows) + (self._ends[-1] if self._ends else 0))
        epoch = bisect.bisect_right(self._ends, number)
        return self.epoch(epoch)[number - (self._ends[epoch - 1] if epoch else 0)]

    def real_share(self) -> float:
        """The share of positions in the first epoch's rows that are not padding."""
        rows = self.epoch(0)
        tokens = sum(int(side[np.concatenate(rows)].sum()) for side in self._sides)
        return tokens / (len(rows) * (self.length + (self.target_length or 0)))

    def batch(self, step: int) -> Batch:
        rows = [self.row(number) for number in range(step * self.batch_rows, (step + 1) * self.batch_rows)]
        indices = np.concatenate(rows)
        parts = self.gather(indices, np.random.default_rng([self.seed, step]))
        lengths, target_lengths = lengths_of(parts.texts)
        counts = [len(row) for row in rows]
        first = np.repeat(np.cumsum([0, *counts[:-1]]), counts)  # of each text's row

        def starts(lengths: np.ndarray) -> np.ndarray:
            before = np.cumsum(lengths) - lengths
            return before - before[first]

        made = [lengths] if target_lengths is None else [lengths, target_lengths]
        same = len(made) == len(self._sides) and all(map(np.array_equal, made, (s[indices] for s in self._sides)))
        if parts.per_example or parts.slots or not same:
            raise ValueError("batch_rows needs one text per example, but the task made other texts of the examples.")
        plan = Plan(
            self.batch_rows,
            self.length,
            row=np.repeat(np.arange(self.batch_rows), counts),
            segment=1 + np.arange(len(indices)) - first,
            start=starts(lengths),
            target_length=self.target_length,
            target_start=None if target_lengths is None else starts(target_lengths),
        )
        return planned_batch(parts, plan, self.process_index, self.process_count)

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """Batches of the steps start..stop-1, made ahead of time by a thread."""
        return prefetch(self.batch, start, stop)


@dataclass(frozen=True)
class _Steps:
    """A function of the step as grain's random-access source."""

    function: Callable[[int], Batch]
    start: int
    stop: int

    def __len__(self) -> int:
        return max(0, self.stop - self.start)

    def __getitem__(self, index: Any) -> Batch:
        return self.function(self.start + int(index))


def prefetch(function: Callable[[int], Batch], start: int, stop: int) -> Iterator[Batch]:
    import grain  # takes half a second to import, and only training needs it

    source = grain.MapDataset.source(_Steps(function, start, stop))
    return iter(source.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)))


@dataclass
class StreamLoader:
    """Batches of a source that is read in order.

    Each batch carries the stream's position after it, which is saved in the checkpoint. Limits: no global shuffle, and
    other batches when the files or the number of shards change.
    """

    stream: Any  # iterable of examples with get_state / set_state
    gather: Callable[[list[Any], np.random.Generator], BatchTexts]  # here: examples instead of indices
    batch_size: int
    buckets: Sequence[int]
    row_multiple: int
    seed: int
    process_index: int = 0
    process_count: int = 1
    target_buckets: Sequence[int] = ()

    def batches(self, start: int, stop: int, position: Any = None) -> Iterator[Batch]:
        if start and position is None:
            raise ValueError("the checkpoint has no position of the data stream, so the run cannot be resumed.")
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
            where = self.process_index, self.process_count
            batch = pack(parts, self.buckets, self.row_multiple, *where, self.target_buckets)
            yield replace(batch, position=self.stream.get_state())


def process_share(mesh: DeviceMesh) -> tuple[int, int]:
    """(index, count) of this process's share of a batch's rows.

    Processes that split a sequence or a matrix between them have the same share. Where the devices of processes are
    interleaved, each process gets all rows: (0, 1).
    """
    shards = data_shards(mesh)
    held: dict[int, set[int]] = {}
    where: Mapping[Any, Any] = batch_sharding(mesh, shards).devices_indices_map((shards,))
    for device, (index,) in where.items():
        held.setdefault(device.process_index, set()).update(range(*index.indices(shards)))
    mine = held[jax.process_index()]
    size, first = len(mine), min(mine)
    blocks = all(len(rows) == size and min(rows) % size == 0 and max(rows) < min(rows) + size for rows in held.values())
    return (first // size, shards // size) if blocks else (0, 1)


def to_devices(
    arrays: dict[str, np.ndarray], mesh: DeviceMesh, totals: dict[str, int] | None = None
) -> dict[str, jax.Array]:
    """Puts the rows on their devices.

    Args:
      arrays: this process's share, see `process_share`; or the global arrays, equal in every process.
      totals: leading dimensions over all processes; None: `arrays` are global.
    """
    lengths = {name: len(array) for name, array in arrays.items()} if totals is None else totals
    return {
        name: jax.make_array_from_process_local_data(
            batch_sharding(mesh, lengths[name]), array, (lengths[name], *array.shape[1:])
        )
        for name, array in arrays.items()
    }
