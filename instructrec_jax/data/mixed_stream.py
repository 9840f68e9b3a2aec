"""Several sources read in order as one stream, in the proportion of their weights; and the skipped rows of streams."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from instructrec_jax.data.example import BadExample, Example
from instructrec_jax.data.file_stream import Position
from instructrec_jax.data.mixture import IndexableSource, permutation
from instructrec_jax.data.skipped import OnBadExample, SkippedRow, add_skipped, bad_rows, read_skipped, write_skipped
from instructrec_jax.data.stream import StreamSource
from instructrec_jax.distributed.launch import is_first


class IndexedStream:
    """A source of known size as a stream: its examples in a new random order each epoch.

    Args:
      number: of the source in the mixture.

    Raises ValueError, while it is read, for an example that the task cannot use (`on_bad_example="error"`), and for an
    epoch without any.
    """

    def __init__(self, source: IndexableSource, on_bad_example: OnBadExample, seed: int, number: int) -> None:
        self.source, self.seed, self.number, self.name = source, seed, number, source.name
        self.on_bad_example: OnBadExample = on_bad_example
        self._keep: Callable[[Example], bool] = lambda example: True
        self._check: Callable[[Example], None] = lambda example: None
        self._skipped: dict[str, SkippedRow] = {}
        self._epoch = self._place = self._usable = 0

    def use(self, keep: Callable[[Example], bool], check: Callable[[Example], None]) -> None:
        """See `StreamSource.use`."""
        self._keep, self._check = keep, check

    def share_skipped(self, rows: dict[str, SkippedRow]) -> None:
        """See `StreamSource.share_skipped`."""
        self._skipped = rows
        rows |= {row.where: row for row in self.source.skipped}

    def get_state(self) -> Position:
        return {"epoch": self._epoch, "place": self._place, "usable": self._usable}

    def set_state(self, state: Position | None) -> None:
        if state is None:
            self._place = self._usable = 0
        else:
            self._epoch, self._place, self._usable = int(state["epoch"]), int(state["place"]), int(state["usable"])

    def __iter__(self) -> Iterator[Example]:
        for index in permutation(len(self.source), self.seed, self.number, self._epoch)[self._place :]:
            self._place += 1
            example = self.source[int(index)]
            if self._keep(example) and self._is_usable(example):
                self._usable += 1
                yield example
        if not self._usable:
            raise ValueError(f"source {self.name}: data.hold_out removes every example, or none is usable.")
        self._epoch, self._place, self._usable = self._epoch + 1, 0, 0

    def _is_usable(self, example: Example) -> bool:
        try:
            self._check(example)
        except BadExample as error:
            row = SkippedRow(example.where, error.field, error.reason, error.detail)
            self._skipped[example.where] = row
            if self.on_bad_example == "error":
                raise ValueError(bad_rows(self.name, [row])) from None
            return False
        return True


class MixedStream:
    """An endless stream: each next example comes from the source that is farthest behind its share.

    So the order depends on the weights and on the sources' own orders alone, and a position is small: how many examples
    were drawn from each source, and each source's own position.

    Args:
      weights: shares of the sources, positive, in any unit.
    """

    def __init__(self, streams: Sequence[StreamSource | IndexedStream], weights: Sequence[float]) -> None:
        self.streams, self.shares = streams, np.array(weights, np.float64) / sum(weights)
        self.name = " + ".join(stream.name for stream in streams)
        self._drawn = np.zeros(len(streams), np.int64)
        self._listed: int | None = None  # see `StreamSource.list_skipped`
        self._skipped: dict[str, SkippedRow] = {}  # of all sources, in the order in which they were met
        for stream in streams:
            stream.share_skipped(self._skipped)

    @property
    def skipped(self) -> list[SkippedRow]:
        return list(self._skipped.values())[: self._listed]

    def count_skipped(self) -> int:
        return len(self._skipped)

    def list_skipped(self, count: int) -> None:
        self._listed = count

    def know_skipped(self, rows: Iterable[SkippedRow]) -> None:
        """See `StreamSource.know_skipped`."""
        self._skipped |= {row.where: row for row in rows}

    def use(self, keep: Callable[[Example], bool], check: Callable[[Example], None]) -> None:
        """See `StreamSource.use`."""
        for stream in self.streams:
            stream.use(keep, check)

    def get_state(self) -> Position:
        return {"drawn": self._drawn.tolist(), "sources": [stream.get_state() for stream in self.streams]}

    def set_state(self, state: Position | None) -> None:
        sources = [None] * len(self.streams) if state is None else state["sources"]
        if len(sources) != len(self.streams):
            raise ValueError(f"the position is one of {len(sources)} sources, but {len(self.streams)} are listed now.")
        for stream, own in zip(self.streams, sources, strict=True):
            stream.set_state(own)
        if state is not None:
            self._drawn = np.array(state["drawn"], np.int64)

    def __iter__(self) -> Iterator[Example]:
        reading = [iter(stream) for stream in self.streams]
        while True:
            behind = self.shares * (self._drawn.sum() + 1) - self._drawn
            number = int(np.argmax(behind))
            example = next(reading[number], None)
            if example is None:  # the source's next epoch
                reading[number] = iter(self.streams[number])
                continue
            self._drawn[number] += 1
            yield example


def resume_skipped(source: object, run_dir: Path, resumes: bool) -> int:
    """Prepares skipped.jsonl for the bad rows of a stream; returns the number of rows in it.

    Args:
      source: the training data; only a stream finds bad rows while it is read.
      resumes: whether the run is resumed and keeps the file; otherwise the file starts empty.
    """
    if not isinstance(source, StreamSource | MixedStream):
        return 0
    if not resumes:
        if is_first():
            write_skipped(run_dir, [])
        return 0
    source.know_skipped(read_skipped(run_dir))
    return len(source.skipped)


def list_skipped(source: object, run_dir: Path, listed: int) -> int:
    """Appends a stream's skipped rows after the first `listed` ones to skipped.jsonl; returns the new number."""
    if isinstance(source, StreamSource | MixedStream) and is_first():
        return add_skipped(run_dir, source.skipped, listed)
    return listed
