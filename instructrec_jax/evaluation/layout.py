"""Text tables that fit the terminal: columns aligned, or wrapped and stacked where they would not fit."""

import shutil
import textwrap
from collections.abc import Sequence

SHORTEST_HEADER, SHORTEST_NAME = 12, 20


def text_width() -> int:
    """The columns of the terminal (or of $COLUMNS); 100 for files and pipes."""
    return max(40, shutil.get_terminal_size((100, 24)).columns)


def aligned(table: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> list[str]:
    """The rows of a table as lines; cells may have several lines, and those of the first row end on one line.

    Args:
      left: the columns that are aligned to the left.
    """
    widths = [max(len(line) for cell in column for line in cell.split("\n")) for column in zip(*table, strict=True)]
    lines = []
    for number, row in enumerate(table):
        cells = [cell.split("\n") for cell in row]
        height = max(len(cell) for cell in cells)
        pads = [[""] * (height - len(cell)) for cell in cells]
        cells = [pad + cell if number == 0 else cell + pad for cell, pad in zip(cells, pads, strict=True)]
        for texts in zip(*cells, strict=True):
            each = enumerate(zip(texts, widths, strict=True))
            lines.append("  ".join(text.ljust(w) if i in left else text.rjust(w) for i, (text, w) in each))
    return lines


def fitted(table: Sequence[Sequence[str]], width: int, groups: Sequence[int] = ()) -> list[str]:
    """A table with a header and names in the first column, in lines of at most `width` characters where possible.

    Where it is too wide, names and headers are wrapped; then columns are stacked in several tables below each other.

    Args:
      groups: the sizes of the groups of columns, after the first column, that stay side by side where they fit; empty:
        each alone.
    """
    if fits(aligned(table), width):
        return aligned(table)
    header, *rows = table
    most = [max(SHORTEST_HEADER, *(len(row[i]) for row in rows)) for i in range(len(header))]
    left = width - sum(2 + size for size in most[1:])  # for the names, beside all columns
    longest = left if left >= SHORTEST_NAME else max(SHORTEST_NAME, width // 3)
    names = ["\n".join(textwrap.wrap(row[0], longest, subsequent_indent="  ")) for row in rows]
    heads = [_wrapped_head(text, size) for text, size in zip(header, most, strict=True)]

    def fit(columns: list[int]) -> bool:
        return fits(aligned(_columns(heads, names, rows, columns)), width)

    blocks: list[list[int]] = [[]]
    start = 1
    for size in groups or [1] * (len(header) - 1):
        group = list(range(start, start + size))
        start += size
        for columns in [group] if fit(group) else [[column] for column in group]:
            if blocks[-1] and not fit(blocks[-1] + columns):
                blocks.append([])
            blocks[-1] += columns
    lines: list[str] = []
    for block in blocks:
        lines += [*([""] if lines else []), *aligned(_columns(heads, names, rows, block))]
    return lines


def fits(lines: Sequence[str], width: int) -> bool:
    return all(len(line.rstrip()) <= width for line in lines)


def _columns(
    heads: Sequence[str], names: Sequence[str], rows: Sequence[Sequence[str]], columns: Sequence[int]
) -> list[list[str]]:
    inside = [[name, *(row[i] for i in columns)] for name, row in zip(names, rows, strict=True)]
    return [[heads[0], *(heads[i] for i in columns)], *inside]


def _wrapped_head(text: str, width: int) -> str:
    """A header in lines; each keeps the blank at its end, above the mark of the best value."""
    end = " " * (len(text) - len(text.rstrip()))
    return "\n".join(line + end for line in textwrap.wrap(text, width)) or text
