"""A source that is read in order: files, or a HuggingFace `IterableDataset`."""

import copy
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from instructrec_jax.data.example import BadExample, Example
from instructrec_jax.data.fields import FieldMapper
from instructrec_jax.data.file_stream import PlacedRow, Position
from instructrec_jax.data.labels import check_styles
from instructrec_jax.data.masked import without_values
from instructrec_jax.data.media.picture_references import NO_FOLDERS, PictureFolders
from instructrec_jax.data.mixture import permutation
from instructrec_jax.data.skipped import (
    OnBadExample,
    SkippedRow,
    bad_rows,
    listing,
)

log = logging.getLogger(__name__)


class StreamSource:
    """A HuggingFace `IterableDataset` or a `FileStream`, read in order, epoch after epoch.

    `for example in stream` yields the rest of the current epoch; the next loop yields the next epoch.
    `get_state()` gives a JSON-serializable position; `set_state` returns to it, and the same examples follow in the
    same order if the data and its shards are unchanged. `set_state(None)` returns to the start of the current epoch.
    All processes read the whole stream in the same order.

    Limits: rows are checked when they are read, their number is unknown, the shuffle is within blocks of
    `shuffle_block` rows, and only saved positions can be read from.

    Raises, while it is read:
      ValueError: a bad row (`on_bad_example="error"`), or an epoch without a valid row.
    """

    def __init__(
        self,
        dataset: Any,
        mapper: FieldMapper,
        name: str,
        on_bad_example: OnBadExample = "error",
        *,
        shuffle_block: int = 1000,
        seed: int = 0,
        pictures: PictureFolders = NO_FOLDERS,
    ) -> None:
        if shuffle_block < 1:
            raise ValueError(f"source {name}: shuffle_block {shuffle_block} must be at least 1 (no shuffle).")
        self.dataset, self.mapper, self.name, self.task = dataset, mapper, name, mapper.task
        self.on_bad_example, self.shuffle_block, self.seed = on_bad_example, shuffle_block, seed
        self.pictures = pictures
        self._beginning = copy.deepcopy(dataset.state_dict())
        self._skipped: dict[str, SkippedRow] = {}
        self._listed: int | None = None  # of these; None: all
        self._unread: set[str] = set()
        self._held_out = False  # whether any example was
        self._check: Callable[[Example], None] = lambda example: None
        self._keep: Callable[[Example], bool] = lambda example: True
        self._epoch = 0
        self._rewind()

    def _rewind(self) -> None:
        self._block = self._taken = 0  # finished blocks, rows taken from the current block
        self._usable = 0  # valid examples of this epoch so far, without those held out
        self._block_state = copy.deepcopy(self._beginning)  # the data set's state at the start of the current block

    def use(self, keep: Callable[[Example], bool], check: Callable[[Example], None]) -> None:
        """What a training does with the examples.

        Args:
          keep: whether an example is not held out.
          check: the task's check of those that are kept, which raises BadExample.
        """
        self._keep, self._check = keep, check

    def share_skipped(self, rows: dict[str, SkippedRow]) -> None:
        """Lists the skipped rows in `rows`, by place, which other sources fill, too."""
        self._skipped = rows

    @property
    def skipped(self) -> list[SkippedRow]:
        return list(self._skipped.values())[: self._listed]

    def count_skipped(self) -> int:
        """The number of bad rows met so far, with those of examples that were read ahead."""
        return len(self._skipped)

    def list_skipped(self, count: int) -> None:
        """Makes `skipped` the first `count` of them."""
        self._listed = count

    def know_skipped(self, rows: Iterable[SkippedRow]) -> None:
        """Adds the rows that the resumed run had skipped (the stream's state does not hold them)."""
        self._skipped |= {row.where: row for row in rows}

    def get_state(self) -> Position:
        return {
            "epoch": self._epoch,
            "block": self._block,
            "taken": self._taken,
            "usable": self._usable,
            "dataset": copy.deepcopy(self._block_state),
            "shuffle": [self.seed, self.shuffle_block],
        }

    def set_state(self, state: Position | None) -> None:
        if state is None:
            return self._rewind()
        if list(state["shuffle"]) != [self.seed, self.shuffle_block]:
            before, now = list(state["shuffle"]), [self.seed, self.shuffle_block]
            message = f"(seed, shuffle_block) were {before} when the position was saved, now {now}"
            raise ValueError(f"source {self.name}: {message}; restore both to resume.")
        self._epoch, self._block = state["epoch"], state["block"]
        self._taken, self._usable = state["taken"], state["usable"]
        self._block_state = copy.deepcopy(state["dataset"])
        self.know_skipped([SkippedRow(**row) for row in state.get("skipped", [])])  # states of version 0.1 have them

    def __iter__(self) -> Iterator[Example]:
        self.dataset.load_state_dict(copy.deepcopy(self._block_state))
        rows = iter(self.dataset)
        while True:
            block = list(itertools.islice(rows, self.shuffle_block))
            following = copy.deepcopy(self.dataset.state_dict())
            for place in permutation(len(block), self.seed, self._epoch, self._block)[self._taken :]:
                example = self._read(block[place], self._block * self.shuffle_block + int(place))
                self._taken += 1
                if example is not None:
                    self._usable += 1
                    yield example
            self._block, self._taken, self._block_state = self._block + 1, 0, following
            if len(block) < self.shuffle_block:
                break
        if not self._usable and self._held_out:
            raise ValueError(f"source {self.name}: data.hold_out removes every example: hold out less.")
        if not self._usable:
            raise ValueError(f"source {self.name}: none of its rows is valid.\n{listing(self.skipped)}")
        self._epoch += 1
        self._rewind()

    def _read(self, row: Mapping[str, object] | PlacedRow, number: int) -> Example | None:
        placed = row if isinstance(row, PlacedRow) else PlacedRow(f"{self.name}, row {number}", row)
        where = placed.where
        try:
            if placed.error is not None:
                raise placed.error
            example = replace(self.mapper(placed.row, placed.columns, self.pictures.of(where)), where=where)
            check_styles(self.mapper.answer_styles, self.name)
            self._note_unread(placed.row)
            if not self._keep(example):
                self._held_out = True
                return None
            self._check(example)
            return example
        except BadExample as found:
            error = found if self.mapper.mask is None else without_values(found)
            self._skipped[where] = SkippedRow(where, error.field, error.reason, error.detail)
            if self.on_bad_example == "error":
                raise ValueError(bad_rows(self.name, [self._skipped[where]])) from None
            return None

    def _note_unread(self, row: Mapping[str, object]) -> None:
        new = [name for name in self.mapper.unread(row) if name not in self._unread]
        if new:
            self._unread.update(new)
            log.warning(
                "source %s: unread fields: %s. Name them in fields.ignore to silence this warning.",
                self.name,
                ", ".join(new),
            )
