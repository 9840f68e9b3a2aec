"""Batches as a function of the step.

`Loader.batch(step)` and `RowLoader.batch(step)` depend on (seed, step, global batch size) alone, so resuming is seeking
and nothing repeats or goes missing when the number of devices or hosts changes.
"""

import bisect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, SupportsIndex, TypeVar

import jax
import numpy as np
import xxhash

from instructrec_jax.arrays import Array
from instructrec_jax.data.batch import Batch, BatchTexts, Own, lay_out, lengths_of
from instructrec_jax.data.file_stream import Position
from instructrec_jax.data.media.text_images import images_per_row
from instructrec_jax.data.mixture import permutation
from instructrec_jax.data.packing import PackedRows, Plan, fit_epoch, plan_batch
from instructrec_jax.data.shapes import Shapes, Sizes
from instructrec_jax.distributed.launch import place
from instructrec_jax.distributed.mesh import DeviceMesh, batch_sharding


@dataclass(frozen=True)
class HostBatch:
    """A batch over all processes, as NumPy arrays, before `to_devices`.

    `batch` has the shapes of the whole batch; rows of other processes may be empty, see `Loader.own`.
    """

    batch: Batch
    tokens: int  # without padding, with targets
    shape: tuple[int, ...]  # (rows, length) or (rows, length, target_length)
    position: Position | None = None  # of a stream, after this batch
    views: tuple[int, ...] | None = None  # the shape of `batch.unlabeled`

    @property
    def described(self) -> str:
        """The shapes, as text."""
        room = f"{self.shape[0]} rows of {' + '.join(f'{length:,}' for length in self.shape[1:])} tokens"
        return room + (f", and {self.views[0]} of {self.views[1]:,} for both views" if self.views else "")


@dataclass(frozen=True)
class OwnRows:
    """What a process needs to know to gather only its rows of a batch.

    Attributes:
      lengths: int [examples] tokens of each example's only text; with targets also theirs.
      rows: rows of a batch -> bool [rows], those on the devices of this process.
      images: the images of each example; None: there are none.
    """

    lengths: Sequence[np.ndarray]
    rows: Callable[[int], np.ndarray]
    images: "ImageCounts | None" = None


@dataclass(frozen=True)
class ImageCounts:
    """Images of each example, int [examples], and their (height, width, channels); or sounds and (frames, mels)."""

    counts: np.ndarray
    shape: tuple[int, ...]

    def room(self, plan: Plan, indices: np.ndarray) -> Plan:
        """The plan of some examples with room for their images, which all processes agree on."""
        return replace(plan, images=(images_per_row(plan.row, self.counts[indices]), *self.shape))


def rows_here(mesh: DeviceMesh, rows: int) -> np.ndarray:
    """bool [rows]: the rows of a batch on the devices of this process."""
    found = np.zeros(rows, bool)
    for index in batch_sharding(mesh, rows).addressable_devices_indices_map((rows,)).values():
        found[index] = True
    return found


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
      own: to gather only the texts of this process's rows; None: all of the batch.
      shapes: of the run's batches; None: each batch has the cheapest shape for itself.
    """

    order: Callable[[int], np.ndarray]
    gather: Callable[[np.ndarray, np.random.Generator], BatchTexts]
    batch_size: int
    buckets: Sequence[int]
    row_multiple: int
    seed: int
    target_buckets: Sequence[int] = ()
    own: "OwnRows | None" = None
    shapes: Shapes | None = None
    _epochs: dict[int, np.ndarray] = field(default_factory=dict, repr=False)

    def _epoch(self, epoch: int) -> np.ndarray:
        if epoch not in self._epochs:
            for old in [e for e in self._epochs if e < epoch - 2]:
                self._epochs.pop(old, None)
            self._epochs[epoch] = self.order(epoch)
        return self._epochs[epoch]

    def indices(self, step: int) -> np.ndarray:
        """The examples of a step, from the epochs put end to end, int64 [batch_size]."""
        epoch, first = divmod(step * self.batch_size, len(self._epoch(0)))
        found = [self._epoch(epoch)[first : first + self.batch_size]]
        while (missing := self.batch_size - sum(map(len, found))) > 0:
            epoch += 1
            found.append(self._epoch(epoch)[:missing])
        return np.concatenate(found)

    def gathered(self, step: int) -> BatchTexts:
        """The texts of a step and their arrays, of all processes."""
        return self.gather(self.indices(step), np.random.default_rng([self.seed, step]))

    def plan(self, sizes: Sizes) -> Plan:
        if self.shapes is not None:
            return self.shapes.plan(sizes)
        return plan_batch(sizes.lengths, self.buckets, self.row_multiple, sizes.targets, self.target_buckets)

    def batch(self, step: int) -> HostBatch:
        if self.own is None:
            parts = self.gathered(step)
            return planned_batch(parts, self.plan(Sizes.of(parts.texts)))
        indices, rng = self.indices(step), np.random.default_rng([self.seed, step])
        planned = [side[indices] for side in self.own.lengths]
        images, targets = self.own.images, planned[1] if len(planned) > 1 else None
        plan = self.plan(Sizes(planned[0], targets, None if images is None else images.counts[indices]))
        plan = plan if images is None or plan.images is not None else images.room(plan, indices)
        return own_batch(lambda some: self.gather(indices[some], rng), plan, planned, self.own.rows(plan.rows))

    def batches(self, start: int, stop: int) -> Iterator[HostBatch]:
        """Batches of the steps start..stop-1, made ahead of time by a thread."""
        return prefetch(self.batch, start, stop)


def pack(
    parts: BatchTexts,
    buckets: Sequence[int],
    row_multiple: int,
    target_buckets: Sequence[int] = (),
) -> HostBatch:
    lengths, target_lengths = lengths_of(parts.texts)
    plan = plan_batch(lengths, buckets, row_multiple, target_lengths, target_buckets)
    return planned_batch(parts, plan)


def planned_batch(parts: BatchTexts, plan: Plan) -> HostBatch:
    tokens = sum(int(lengths.sum()) for lengths in lengths_of(parts.texts) if lengths is not None)
    return HostBatch(lay_out(parts, plan), tokens, plan.shape)


def own_batch(
    gather: Callable[[np.ndarray], BatchTexts], plan: Plan, planned: Sequence[np.ndarray], rows: np.ndarray | None
) -> HostBatch:
    """The batch of a plan with the texts of some rows.

    Args:
      gather: numbers of texts in the batch -> these texts.
      planned: int [texts], the lengths in the plan; with targets also theirs.
      rows: bool [rows]; None: all.
    """
    some = np.arange(len(plan.row)) if rows is None else np.flatnonzero(rows[plan.row])
    if not len(some):
        some = np.zeros(1, np.int64)  # tasks gather at least one text; its row lies on no device of this process
    parts = gather(some)
    _check_lengths(parts, [side[some] for side in planned])
    batch = lay_out(replace(parts, numbers=some.astype(np.int32)), plan.of_texts(some))
    return HostBatch(batch, sum(int(side.sum()) for side in planned), plan.shape)


def _check_lengths(parts: BatchTexts, planned: Sequence[np.ndarray]) -> None:
    lengths, target_lengths = lengths_of(parts.texts)
    made = [lengths] if target_lengths is None else [lengths, target_lengths]
    if len(made) != len(planned) or not all(map(np.array_equal, made, planned)):
        raise ValueError("batch_rows needs one text per example, but the task made other texts of the examples.")


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
      rows_here: as in `OwnRows`, to gather only these; None: all of the batch.
      images: as in `OwnRows`.
    """

    order: Callable[[int], np.ndarray]
    gather: Callable[[np.ndarray, np.random.Generator], BatchTexts]
    lengths: np.ndarray
    batch_rows: int
    length: int
    seed: int
    target_lengths: np.ndarray | None = None
    target_length: int | None = None
    rows_here: Callable[[int], np.ndarray] | None = None
    images: ImageCounts | None = None
    _epochs: dict[int, "_Epoch"] = field(default_factory=dict, repr=False)
    _ends: list[int] = field(default_factory=list, repr=False)  # rows of the epochs 0..e together
    _packed: dict[bytes, PackedRows] = field(default_factory=dict, repr=False)  # rows of the last lengths packed

    @property
    def _sides(self) -> list[np.ndarray]:
        return [self.lengths] if self.target_lengths is None else [self.lengths, self.target_lengths]

    def epoch(self, epoch: int) -> "_Epoch":
        """The rows of an epoch in order, each as the indices of its examples."""
        if epoch not in self._epochs:
            for old in [e for e in self._epochs if e < epoch - 1]:
                del self._epochs[old]
            examples = self._by_length(epoch)
            rows = self._pack(examples)
            self._epochs[epoch] = _Epoch(examples, rows, permutation(len(rows), self.seed, epoch, 0, 1))
        return self._epochs[epoch]

    def _by_length(self, epoch: int) -> np.ndarray:
        """The examples of an epoch sorted by length, ties in the epoch's order."""
        order = self.order(epoch)
        return order[np.lexsort([side[order] for side in reversed(self._sides)])]

    def _pack(self, examples: np.ndarray) -> PackedRows:
        """Rows of indices into `examples`, which are sorted by length."""
        lengths = self.lengths[examples]
        targets = None if self.target_lengths is None else self.target_lengths[examples]
        key = xxhash.xxh3_128_digest(b"".join(side[examples].tobytes() for side in self._sides))
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
        tokens = sum(int(side[rows.examples].sum()) for side in self._sides)
        return tokens / (len(rows) * (self.length + (self.target_length or 0)))

    def batch(self, step: int) -> HostBatch:
        rows = [self.row(number) for number in range(step * self.batch_rows, (step + 1) * self.batch_rows)]
        indices, rng = np.concatenate(rows), np.random.default_rng([self.seed, step])
        planned = [side[indices] for side in self._sides]
        plan = plan_of_rows(planned, list(map(len, rows)), self.batch_rows, self.length, self.target_length)
        plan = plan if self.images is None else self.images.room(plan, indices)
        here = None if self.rows_here is None else self.rows_here(plan.rows)
        return own_batch(lambda some: self.gather(indices[some], rng), plan, planned, here)

    def batches(self, start: int, stop: int) -> Iterator[HostBatch]:
        """Batches of the steps start..stop-1, made ahead of time by a thread."""
        return prefetch(self.batch, start, stop)


def plan_of_rows(
    planned: Sequence[np.ndarray], counts: Sequence[int], batch_rows: int, length: int, target_length: int | None
) -> Plan:
    """The plan of texts that lie in rows one after another.

    Args:
      planned: int [texts], the lengths that the rows were packed for; with targets also theirs.
      counts: texts of each row; fewer than `batch_rows` leave the last rows empty.
    """
    first = np.repeat(np.cumsum([0, *counts[:-1]]), counts)  # of each text's row

    def starts(lengths: np.ndarray) -> np.ndarray:
        before = np.cumsum(lengths) - lengths
        return before - before[first]

    return Plan(
        batch_rows,
        length,
        row=np.repeat(np.arange(len(counts)), counts),
        segment=1 + np.arange(len(planned[0])) - first,
        start=starts(planned[0]),
        target_length=target_length,
        target_start=starts(planned[1]) if len(planned) > 1 else None,
    )


@dataclass(frozen=True)
class _Epoch:
    """The rows of an epoch: row r holds the examples[rows[order[r]]]."""

    examples: np.ndarray
    rows: PackedRows
    order: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> np.ndarray:
        return self.examples[self.rows[int(self.order[row])]]


T = TypeVar("T")


@dataclass(frozen=True)
class _Steps(Generic[T]):
    """A function of the step as grain's random-access source."""

    function: Callable[[int], T]
    start: int
    stop: int

    def __len__(self) -> int:
        return max(0, self.stop - self.start)

    def __getitem__(self, index: SupportsIndex) -> T:
        return self.function(self.start + index.__index__())


def prefetch(function: Callable[[int], T], start: int, stop: int) -> Iterator[T]:
    """function(start), ..., function(stop - 1), made ahead of time by a thread."""
    import grain  # takes half a second to import, and only training needs it

    source = grain.MapDataset.source(_Steps(function, start, stop))
    return iter(source.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)))


def to_devices(batch: Batch[Own], mesh: DeviceMesh) -> Batch[Own]:
    """Splits the rows over the devices. The batch is equal in every process; arrays that are on devices stay there."""

    def put(array: Array) -> jax.Array:
        return array if isinstance(array, jax.Array) else place(array, batch_sharding(mesh, len(array)))

    return jax.tree.map(put, batch)
