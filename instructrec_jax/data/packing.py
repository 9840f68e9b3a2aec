"""Several short texts to a row: which text goes where, and in which shape.

The plan is made from lengths alone, so every host makes the same one; attention stays inside a segment, so a
packed batch computes what an unpacked one does.
"""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

TOKENS_PER_SEGMENT = 8  # a row of length L holds at most L // 8 texts: bounds the pooled [rows, segments, hidden]


@dataclass(frozen=True)
class Plan:
    """Where each text lies. `row` and `segment` (1-based) and `start` are int arrays, one entry a text."""

    rows: int
    length: int
    row: np.ndarray
    segment: np.ndarray
    start: np.ndarray

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
    """Rounds a row count up to a coarse ladder (eight steps an octave) so that few shapes occur."""
    step = max(1, 2 ** (count.bit_length() - 4))
    step = step * multiple // np.gcd(step, multiple)
    return int(-(-count // step) * step)


def best_fit(lengths: np.ndarray, row_length: int) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
    """Best-fit decreasing bin packing (Johnson, 1973): rows used, then row, segment and start of each text."""
    count = len(lengths)
    row, segment, start = (np.zeros(count, np.int32) for _ in range(3))
    segments: list[int] = []
    free: list[tuple[int, int]] = []  # (room left, row), sorted: the first that fits is the tightest
    for index in np.argsort(-lengths, kind="stable"):
        size = int(lengths[index])
        at = bisect.bisect_left(free, (size, -1))
        room, target = free.pop(at) if at < len(free) else (row_length, len(segments))
        if target == len(segments):
            segments.append(0)
        segments[target] += 1
        row[index], segment[index], start[index] = target, segments[target], row_length - room
        if room > size and segments[target] < max_segments(row_length):
            bisect.insort(free, (room - size, target))
    return len(segments), row, segment, start


def plan_batch(lengths: np.ndarray, buckets: Sequence[int], row_multiple: int) -> Plan:
    """Packs one global batch into the cheapest of the allowed shapes.

    Args:
      lengths: int [texts], each at least 1 and at most `buckets[-1]`.
      buckets: the row lengths to choose from, ascending.
      row_multiple: the row count is a multiple of this (data-parallel devices x accumulation).
    """
    best: tuple[float, Plan] | None = None
    for length in buckets:
        if length < lengths.max():
            continue
        rows, *where = best_fit(lengths, length)
        rows = round_up(rows, row_multiple)
        cost = rows * length * (1 + length / 2048)  # the second term stands for attention's quadratic share
        if best is None or cost < best[0]:
            best = cost, Plan(rows, length, *where)
    if best is None:
        raise ValueError(f"a text of {lengths.max()} tokens does not fit into the longest row ({buckets[-1]}).")
    return best[1]


def unpacked(lengths: np.ndarray, length: int, row_multiple: int = 1) -> Plan:
    """One text a row, in order: the plain layout that packing is tested against."""
    count = len(lengths)
    rows = -(-count // row_multiple) * row_multiple
    zeros = np.zeros(count, np.int32)
    return Plan(rows, length, np.arange(count, dtype=np.int32), zeros + 1, zeros)
