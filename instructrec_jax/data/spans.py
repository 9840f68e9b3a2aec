"""Where the records of a text file lie: one pass over its bytes, in blocks, so memory is flat but for the numbers.

All functions give int64 [records, 3]: first byte, byte after the last, line of the first byte counted from 1.

Why our own scanner of JSON arrays: a streaming parser (ijson) gives values but not their places in the file, so no
element could be read again by number, and one damaged element ends it. This scan is as fast as ijson's C backend,
about 100 MB a second.
"""

import csv
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

BLOCK = 1 << 20  # bytes that are read at once
_NEWLINE, _QUOTE, _BACKSLASH, _COMMA = b'\n"\\,'
_WHITE = b" \t\r\n"
_OPENS, _CLOSES = b"[{", b"]}"


def line_spans(stream: BinaryIO, start: int) -> np.ndarray:
    """The lines from byte `start` on, with their line ends."""
    ends, place = [], start
    stream.seek(start)
    while block := stream.read(BLOCK):
        ends.append(np.flatnonzero(np.frombuffer(block, np.uint8) == _NEWLINE) + (place + 1))
        place += len(block)
    edges = np.concatenate([[start], *ends, [place]]).astype(np.int64)
    if len(edges) > 2 and edges[-2] == place or place == start:
        edges = edges[:-1]  # nothing after the last line end
    return np.stack([edges[:-1], edges[1:], np.arange(1, len(edges))], axis=1)


# ---------------------------------------------------------------- CSV


def csv_spans(stream: BinaryIO, start: int) -> np.ndarray:
    """The records of a CSV file; a malformed record is one line."""
    stream.seek(start)
    has_quotes = any(b'"' in block for block in iter(lambda: stream.read(BLOCK), b""))
    if not has_quotes:
        return line_spans(stream, start)
    return np.fromiter(_quoted_spans(stream, start), np.dtype((np.int64, 3)))


def _quoted_spans(stream: BinaryIO, start: int) -> Iterator[tuple[int, int, int]]:
    line = 1
    with long_cells():
        while True:
            stream.seek(start)
            edges = [start]  # of the lines of this record
            try:
                for _ in csv.reader(_characters(stream, edges), strict=True):
                    yield start, edges[-1], line
                    line += len(edges) - 1
                    start = edges[-1]
                    edges[:] = [start]
                return
            except csv.Error:  # its first line is the bad record; continue with the next line
                yield start, edges[1], line
                start, line = edges[1], line + 1


def _characters(stream: BinaryIO, edges: list[int]) -> Iterator[str]:
    for data in stream:
        edges.append(edges[-1] + len(data))
        yield data.decode("latin-1")  # one character per byte, so offsets of separators and quotes are byte offsets


class long_cells:
    """Lifts the csv module's limit on the length of a cell (a global of the process)."""

    def __enter__(self) -> None:
        self.limit = csv.field_size_limit(2**31 - 1)

    def __exit__(self, *_: object) -> None:
        csv.field_size_limit(self.limit)


# ---------------------------------------------------------------- JSON


class NoArray(ValueError):
    """A file is not one JSON array. `line`: where that shows."""

    def __init__(self, problem: str, line: int) -> None:
        super().__init__(problem)
        self.problem, self.line = problem, line


def array_spans(stream: BinaryIO, start: int) -> np.ndarray:
    """The elements of the JSON array that a file holds, with the white space around them.

    Only brackets, quotes and commas are looked at: an element that is not JSON shows when it is read.

    Raises `NoArray` for anything else than one complete array.
    """
    scan = _ArrayScan(start)
    stream.seek(start)
    while block := stream.read(BLOCK):
        scan.add(block)
    return scan.finish()


class _ArrayScan:
    """The state between two blocks: byte, line, inside a text, after a backslash in it, depth of brackets."""

    def __init__(self, start: int) -> None:
        self.place, self.line = start, 1
        self.quoted = self.escaped = False
        self.depth = 0
        self.ended = False
        self.marks: list[np.ndarray] = []  # [separators, 2]: byte and line of the opening bracket, commas, the closing

    def add(self, block: bytes) -> None:
        if self.ended or not self.marks:
            block = self._outside(block)
        if not block:
            return
        data = np.frombuffer(block, np.uint8)
        all_kinds = np.frombuffer(block.translate(_KINDS), np.uint8)
        places = np.flatnonzero(all_kinds != 0)
        kinds = all_kinds[places]
        places, kinds = self._unescaped(places, kinds, len(block))
        is_quote = kinds == 1
        # An odd number of quotes so far: inside of a text. (The sum overflows, but its last bit stays right.)
        inside = (np.cumsum(is_quote, dtype=np.uint8) & 1) != self.quoted
        self.quoted = bool((is_quote.sum() + self.quoted) % 2)
        structural = ~inside & ~is_quote
        places, kinds = places[structural], kinds[structural]
        depths = self.depth + np.cumsum(_STEPS[kinds])
        if len(depths):
            self.depth = int(depths[-1])
        ends = np.flatnonzero(depths <= 0)
        chosen = (depths == 1) & (kinds == _SEPARATES)
        lines = _Lines(data, self.line)
        if len(ends):  # the array's closing bracket
            last = int(ends[0])
            self.ended, chosen[last:], chosen[last] = True, False, True
            self.marks.append(lines.marks(places[chosen], self.place))
            after = int(places[last]) + 1
            self.line, self.place = lines.at(after), self.place + after
            self._outside(block[after:])
            return
        self.marks.append(lines.marks(places[chosen], self.place))
        self.line, self.place = lines.at(len(block)), self.place + len(block)

    def _outside(self, block: bytes) -> bytes:
        """Passes white space before or after the array; what follows the opening bracket is returned."""
        rest = block.lstrip(_WHITE)
        white = block[: len(block) - len(rest)]
        self.line, self.place = self.line + white.count(b"\n"), self.place + len(white)
        if not rest:
            return b""
        if self.ended:
            raise NoArray(f"{_shown(rest)} follows the array", self.line)
        if rest[0] != _OPENS[0]:
            raise NoArray(f"it starts with {_shown(rest)}", self.line)
        self.marks.append(np.array([[self.place, self.line]], np.int64))
        self.place, self.depth = self.place + 1, 1
        return rest[1:]

    def _unescaped(self, places: np.ndarray, kinds: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Without backslashes, and without the quotes that they escape."""
        back = places[kinds == _SLASHES]
        first = -1 if self.escaped else 0  # the block before ended with an open escape
        self.escaped = False
        if not len(back) and first == 0:
            return places, kinds
        back = np.concatenate([[-1], back]) if first else back
        begins = np.flatnonzero(np.diff(back, prepend=-9) != 1)  # of runs of backslashes
        lengths = np.diff(np.append(begins, len(back)))
        after = back[begins] + lengths  # the byte after each run
        odd = after[lengths % 2 == 1]
        self.escaped = bool(len(odd)) and int(odd[-1]) == size
        escaped = np.zeros(size + 1, bool)
        escaped[odd] = True
        keep = (kinds != _SLASHES) & ~(escaped[places] & (kinds == 1))
        return places[keep], kinds[keep]

    def finish(self) -> np.ndarray:
        if not self.marks:
            raise NoArray("it is blank", self.line)
        if not self.ended:
            missing = "a text is not closed" if self.quoted else "the array is not closed"
            raise NoArray(f"{missing} at the end of the file, so it may be incomplete", self.line)
        marks = np.concatenate(self.marks)
        return np.stack([marks[:-1, 0] + 1, marks[1:, 0], marks[:-1, 1]], axis=1)


class _Lines:
    """Line numbers of places in a block whose first byte is in line `first`."""

    def __init__(self, data: np.ndarray, first: int) -> None:
        self.ends, self.first = np.flatnonzero(data == _NEWLINE), first

    def at(self, place: int) -> int:
        return self.first + int(np.searchsorted(self.ends, place))

    def marks(self, places: np.ndarray, start: int) -> np.ndarray:
        return np.stack([places + start, self.first + np.searchsorted(self.ends, places)], axis=1)


_SLASHES, _SEPARATES = 2, 3
_KINDS = bytes(
    {_QUOTE: 1, _BACKSLASH: _SLASHES, _COMMA: _SEPARATES, **dict.fromkeys(_OPENS, 4), **dict.fromkeys(_CLOSES, 5)}.get(
        byte, 0
    )
    for byte in range(256)
)
_STEPS = np.array([0, 0, 0, 0, 1, -1], np.int32)


def _shown(data: bytes) -> str:
    return repr(data[:20].decode("utf-8", "replace"))
