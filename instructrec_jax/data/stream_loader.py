"""Batches of sources that are read in order: a batch carries the position after it, which a checkpoint keeps."""

from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from typing import Generic, Protocol, TypeVar

import numpy as np

from instructrec_jax.data.batch import BatchTexts, Text, lengths_of
from instructrec_jax.data.file_stream import Position
from instructrec_jax.data.loader import HostBatch, own_batch, plan_of_rows, planned_batch
from instructrec_jax.data.mixture import permutation
from instructrec_jax.data.packing import fit_epoch
from instructrec_jax.data.shapes import Shape, Sizes, grown

Item = TypeVar("Item", covariant=True)
Made = TypeVar("Made")


class Stream(Protocol[Item]):
    """A source that is read in order, such as `data.stream.StreamSource`."""

    def __iter__(self) -> Iterator[Item]: ...

    def get_state(self) -> Position: ...

    def set_state(self, state: Position | None) -> None: ...


class StreamReadAhead(Stream[Item], Protocol[Item]):
    """A stream whose examples are read before they are needed."""

    def count_skipped(self) -> int:
        """The number of bad rows met so far."""

    def list_skipped(self, count: int) -> None:
        """Lists only the first `count` of them: a run lists the bad rows before the examples that it used."""


@dataclass
class StreamLoader(Generic[Item]):
    """Batches of a source that is read in order.

    Each batch carries the stream's position after it, which is saved in the checkpoint. Limits: no global shuffle, and
    other batches when the files or the number of shards change.

    As the lengths to come are unknown, a batch has the shape of the one before. One that does not fit gets a larger
    shape, with room for a quarter more rows, so few shapes are compiled. The position has the shape, too.

    Attributes:
      pixels: (height, width, channels) of images, (frames, mels) of sounds; None: the network reads none.
    """

    stream: Stream[Item]
    gather: Callable[[list[Item], np.random.Generator], BatchTexts]  # here: examples instead of indices
    batch_size: int
    buckets: Sequence[int]
    row_multiple: int
    seed: int
    target_buckets: Sequence[int] = ()
    pixels: tuple[int, ...] | None = None

    def batches(self, start: int, stop: int, position: Position | None = None) -> Iterator[HostBatch]:
        if start and position is None:
            raise ValueError("the checkpoint has no position of the data stream, so the run cannot be resumed.")
        shape: Shape | None = None
        if position is not None:
            is_whole = "shape" in position  # before, it was that of the stream alone
            self.stream.set_state(position["stream"] if is_whole else position)
            shape = Shape(**position["shape"]) if is_whole else None
        examples = iter(self.stream)
        for step in range(start, stop):
            chosen: list[Item] = []
            while len(chosen) < self.batch_size:
                try:
                    chosen.append(next(examples))
                except StopIteration:
                    examples = iter(self.stream)  # the next epoch
            parts = self.gather(chosen, np.random.default_rng([self.seed, step]))
            sizes = Sizes.of(parts.texts)
            shape = grown(sizes, shape, self.buckets, self.row_multiple, self.target_buckets)
            plan = shape.plan(sizes)
            assert plan is not None
            if shape.images and self.pixels is not None:
                plan = replace(plan, images=(shape.images, *self.pixels))
            after = {"stream": self.stream.get_state(), "shape": asdict(shape)}
            yield replace(planned_batch(parts, plan), position=after)


@dataclass
class StreamRowLoader(Generic[Item, Made]):
    """Batches of packed rows of a source that is read in order.

    `window` examples at a time are encoded, packed and dealt to batches, whose numbers of rows differ by one at most
    (the missing ones are empty). A position is that of the stream before the window, and the batches taken from it, so
    a resumed run reads the window again and packs it alike. A thread reads and encodes the next window while batches
    of this one are used.

    Attributes:
      encode: examples -> what batches are gathered from, with one text each. Called in that thread, as the stream is.
      texts: the same -> its text.
      gather: these -> the texts and arrays of a batch.
      batch_rows: rows per step, over all processes.
      length, target_length: row lengths.
    """

    stream: StreamReadAhead[Item]
    encode: Callable[[list[Item]], list[Made]]
    texts: Callable[[Made], Text]
    gather: Callable[[list[Made], np.random.Generator], BatchTexts]
    batch_rows: int
    window: int
    length: int
    target_length: int | None
    seed: int

    def batches(self, start: int, stop: int, position: Position | None = None) -> Iterator[HostBatch]:
        if start and position is None:
            raise ValueError("the checkpoint has no position of the data stream, so the run cannot be resumed.")
        taken = 0
        if position is not None:
            self.stream.set_state(position["window"])
            taken = position["taken"]
        step = start
        with closing(ahead(self._windows())) as windows:
            while step < stop:
                window = next(windows)
                self.stream.list_skipped(window.skipped)
                dealt = self._dealt(window.items, step - taken)
                for number in range(taken, len(dealt)):
                    if step == stop:
                        return
                    rest = {"window": window.before, "taken": number + 1}
                    after = rest if number + 1 < len(dealt) else {"window": window.after, "taken": 0}
                    yield replace(self._batch(window.items, dealt[number], step), position=after)
                    step += 1
                taken = 0

    def _windows(self) -> Iterator["_Window[Made]"]:
        examples = iter(self.stream)
        while True:
            before = self.stream.get_state()
            window: list[Item] = []
            while len(window) < self.window:
                if (example := next(examples, None)) is None:
                    examples = iter(self.stream)  # the next epoch
                else:
                    window.append(example)
            yield _Window(before, self.encode(window), self.stream.get_state(), self.stream.count_skipped())

    def _dealt(self, items: Sequence[Made], first: int) -> list[list[np.ndarray]]:
        """The rows of each batch of a window whose first step is `first`, as the indices of their texts."""
        lengths, targets = lengths_of([self.texts(item) for item in items])
        order = permutation(len(items), self.seed, first, 0, 2)
        rows = fit_epoch(lengths, self.length, targets, self.target_length, order)
        shuffled = permutation(len(rows), self.seed, first, 0, 1)
        return [[rows[int(row)] for row in part] for part in np.array_split(shuffled, -(-len(rows) // self.batch_rows))]

    def _batch(self, items: Sequence[Made], rows: Sequence[np.ndarray], step: int) -> HostBatch:
        chosen = [items[int(index)] for index in np.concatenate(rows)]
        rng = np.random.default_rng([self.seed, step])
        planned = [each for each in lengths_of([self.texts(item) for item in chosen]) if each is not None]
        plan = plan_of_rows(planned, list(map(len, rows)), self.batch_rows, self.length, self.target_length)
        return own_batch(lambda some: self.gather([chosen[int(i)] for i in some], rng), plan, planned, None)


@dataclass(frozen=True)
class _Window(Generic[Made]):
    """Encoded examples, the stream's positions before and after them, and the bad rows met up to their end."""

    before: Position
    items: list[Made]
    after: Position
    skipped: int


def ahead(items: Iterator[Made]) -> Generator[Made, None, None]:
    """The endless `items`; a thread makes the next one while one is used. An error is raised where its item is due."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, items)
        while True:
            item = coming.result()
            coming = thread.submit(next, items)
            yield item
