"""Packing: the row, segment and offset of each text, and the shape of the batch.

The plan depends on the lengths alone, so all hosts make the same plan. Attention stays inside a segment, so a packed
batch computes the same as an unpacked one. The target of a text (the decoder input of an encoder–decoder) is in a
target row, with the row and segment number of its text.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

TOKENS_PER_SEGMENT = 8  # a row of length L holds at most L // 8 texts: bounds the pooled [rows, segments, hidden]
EPOCH_PART = 32768  # texts packed together in an epoch: bounds the rows searched for each pair


@dataclass(frozen=True)
class Plan:
    """The place of each text: `row`, `segment` (from 1) and `start` are int [texts].

    With targets, `target_length` is the length of target rows and `target_start`, int [texts], the start of each
    target in its row. `images`: (images that a row has room for, height, width, channels), of sounds
    (sounds, frames, mels); None: as the texts need.
    """

    rows: int
    length: int
    row: np.ndarray
    segment: np.ndarray
    start: np.ndarray
    target_length: int | None = None
    target_start: np.ndarray | None = None
    images: tuple[int, ...] | None = None

    def of_texts(self, numbers: np.ndarray) -> "Plan":
        """The plan with some of the texts only, int [chosen]."""
        starts = None if self.target_start is None else self.target_start[numbers]
        placed = {"row": self.row[numbers], "segment": self.segment[numbers], "start": self.start[numbers]}
        return replace(self, **placed, target_start=starts)

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, length), or (rows, length, target_length)."""
        return (self.rows, self.length, *([] if self.target_length is None else [self.target_length]))

    @property
    def segments(self) -> int:
        return max_segments(self.length)

    @property
    def slot(self) -> np.ndarray:
        """Index of each text in the pooled vectors flattened to [rows * segments]."""
        return self.row * self.segments + self.segment - 1


def max_segments(length: int) -> int:
    return max(1, length // TOKENS_PER_SEGMENT)


def length_buckets(max_length: int) -> tuple[int, ...]:
    """Row lengths that a run may use: powers of two from 32, and the maximum itself."""
    powers = [2**i for i in range(5, 31) if 2**i < max_length]
    return (*powers, max_length)


def round_up(count: int, multiple: int) -> int:
    """Rounds a row count up to one of eight steps per octave, so that few shapes are compiled."""
    step = max(1, 2 ** (count.bit_length() - 4))
    step = step * multiple // np.gcd(step, multiple)
    return int(-(-count // step) * step)


def round_to(count: int, multiple: int) -> int:
    """The next multiple of `multiple`."""
    return -(-count // multiple) * multiple


def row_cost(length: int, target_length: int = 0) -> float:
    """What a row costs: its tokens, and what they attend to (a target attends to the text, too)."""
    return length * (1 + length / 2048) + target_length * (1 + (length + target_length) / 2048)


def best_fit(
    lengths: np.ndarray, row_length: int, longest_first: bool = True
) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
    """Best-fit bin packing (Johnson, 1973): number of rows, then row, segment and start of each text.

    Each text goes into the row with the least sufficient room. `longest_first` packs tighter than the given order.
    """
    most = max_segments(row_length)
    sizes = lengths.tolist()  # lists, because the loop reads and writes single entries
    row, segment, start = ([0] * len(sizes) for _ in range(3))
    segments: list[int] = []
    with_room: list[list[int]] = [[] for _ in range(row_length + 1)]  # room left -> rows
    rooms = 0  # bit r is set if some row has room r: the lowest set bit at or above `size` is the best fit
    for index in np.argsort(-lengths, kind="stable").tolist() if longest_first else range(len(sizes)):
        size = sizes[index]
        fitting = rooms >> size
        if fitting:
            room = size + (fitting & -fitting).bit_length() - 1
            rows = with_room[room]
            target = rows.pop()
            if not rows:
                rooms ^= 1 << room
        else:
            room, target = row_length, len(segments)
            segments.append(0)
        number = segments[target] = segments[target] + 1
        row[index], segment[index], start[index] = target, number, row_length - room
        if room > size and number < most:
            with_room[room - size].append(target)
            rooms |= 1 << (room - size)
    return len(segments), np.array(row, np.int32), np.array(segment, np.int32), np.array(start, np.int32)


def best_fit_pairs(
    lengths: np.ndarray,
    target_lengths: np.ndarray,
    row_length: int,
    target_length: int,
    longest_first: bool = True,
) -> tuple[int, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Best-fit packing of pairs: a pair fits a row where both sides fit; the best row has the least room left, summed
    over both sides as shares of their row lengths. Also returns the start of each target.
    """
    count, most = len(lengths), max_segments(row_length)
    row, segment, start, target_start = (np.zeros(count, np.int32) for _ in range(4))
    # Per row: the room left on each side (-1: the row is closed), both as one number, and the segments in it.
    room, target_room = np.full(count, row_length), np.full(count, target_length)
    left, segments = np.full(count, 2 * row_length * target_length), np.zeros(count, np.int64)
    rows = 0
    order = np.argsort(-(lengths / row_length + target_lengths / target_length), kind="stable")
    for index in order.tolist() if longest_first else range(count):
        size, target_size = int(lengths[index]), int(target_lengths[index])
        fits = (room[:rows] >= size) & (target_room[:rows] >= target_size)
        at = int(np.where(fits, left[:rows], np.iinfo(np.int64).max).argmin()) if rows else 0
        if not rows or not fits[at]:
            at, rows = rows, rows + 1
        segments[at] += 1
        row[index], segment[index] = at, segments[at]
        start[index], target_start[index] = row_length - room[at], target_length - target_room[at]
        room[at] -= size
        target_room[at] -= target_size
        left[at] = room[at] * target_length + target_room[at] * row_length
        if segments[at] == most:
            room[at] = -1
    return rows, row, segment, start, target_start


def fit(
    lengths: np.ndarray,
    length: int,
    target_lengths: np.ndarray | None = None,
    target_length: int | None = None,
    longest_first: bool = True,
) -> Plan:
    """Packs texts, or pairs of a text and its target, into rows of one shape by best fit.

    Raises ValueError for a text or target that is longer than a row.
    """
    check_fits(lengths, length, target_lengths, target_length)
    if target_lengths is None:
        rows, row, segment, start = best_fit(lengths, length, longest_first)
        return Plan(rows, length, row, segment, start)
    assert target_length is not None
    rows, row, segment, start, target_start = best_fit_pairs(
        lengths, target_lengths, length, target_length, longest_first
    )
    return Plan(rows, length, row, segment, start, target_length, target_start)


def fit_epoch(
    lengths: np.ndarray,
    length: int,
    target_lengths: np.ndarray | None,
    target_length: int | None,
    order: np.ndarray,
) -> "PackedRows":
    """The rows of an epoch: indices of the texts of each.

    The texts are packed in a random `order`; within each `EPOCH_PART`, texts longer than half a row come first,
    because no two of them share a row. Sorting all texts by length would separate long from short texts and gain only
    a few tokens per row.
    """
    long = lengths > length // 2
    if target_lengths is not None and target_length is not None:
        long = long | (target_lengths > target_length // 2)
    texts, counts = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for first in range(0, len(order), EPOCH_PART):
        part = order[first : first + EPOCH_PART]
        part = part[np.argsort(~long[part], kind="stable")]
        targets = None if target_lengths is None else target_lengths[part]
        plan = fit(lengths[part], length, targets, target_length, longest_first=False)
        texts.append(part[np.lexsort([plan.segment, plan.row])])
        counts.append(np.bincount(plan.row))
    return PackedRows(np.concatenate(texts), np.concatenate([[0], np.cumsum(np.concatenate(counts))]))


@dataclass(frozen=True)
class PackedRows:
    """Rows of texts: row r holds texts[ends[r] : ends[r + 1]].

    Attributes:
      texts: int64 [texts].
      ends: int64 [rows + 1], from 0.
    """

    texts: np.ndarray
    ends: np.ndarray

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        return self.texts[self.ends[row] : self.ends[row + 1]]


def check_fits(
    lengths: np.ndarray, length: int, target_lengths: np.ndarray | None = None, target_length: int | None = None
) -> None:
    if lengths.max() > length:
        raise ValueError(f"a text of {lengths.max()} tokens exceeds the longest row ({length}).")
    if target_lengths is not None and target_lengths.max() > (target_length or 0):
        raise ValueError(
            f"a target of {target_lengths.max()} tokens exceeds the longest target row ({target_length or 0})."
        )


def plan_batch(
    lengths: np.ndarray,
    buckets: Sequence[int],
    row_multiple: int,
    target_lengths: np.ndarray | None = None,
    target_buckets: Sequence[int] = (),
) -> Plan:
    """Packs one global batch into the cheapest allowed shape.

    Args:
      lengths: int [texts], each at least 1 and at most `buckets[-1]`.
      buckets: allowed row lengths, ascending.
      row_multiple: divisor of the row count (data-parallel devices x accumulation).
      target_lengths, target_buckets: the same for targets; None and () without targets.
    """
    check_fits(lengths, buckets[-1], target_lengths, target_buckets[-1] if target_buckets else None)
    longest, longest_target = lengths.max(), 0 if target_lengths is None else target_lengths.max()
    best: tuple[float, Plan] | None = None
    for length, target_length in product(buckets, [0] if target_lengths is None else target_buckets):
        if length < longest or target_length < longest_target:
            continue
        cost = row_cost(length, target_length)
        least = -(-lengths.sum() // length)
        if target_lengths is not None:
            least = max(least, -(-target_lengths.sum() // target_length))
        if best is not None and round_up(int(least), row_multiple) * cost >= best[0]:
            continue
        plan = fit(lengths, length, target_lengths, target_length or None)
        rows = round_up(plan.rows, row_multiple)
        if best is None or rows * cost < best[0]:
            best = rows * cost, replace(plan, rows=rows)
    assert best is not None  # check_fits: the longest buckets hold every text
    return best[1]


def unpacked(lengths: np.ndarray, length: int, row_multiple: int = 1, target_length: int | None = None) -> Plan:
    """One text per row, in order: the reference layout for tests of packing."""
    count = len(lengths)
    rows = -(-count // row_multiple) * row_multiple
    zeros = np.zeros(count, np.int32)
    target_start = None if target_length is None else zeros
    return Plan(rows, length, np.arange(count, dtype=np.int32), zeros + 1, zeros, target_length, target_start)
