"""The help of a verb, from its docstring, in lines that fit the terminal."""

import re
import shutil
import textwrap
from itertools import groupby

LEAST = 32  # columns of an explanation, below which it stands under its command


def fitted_help(doc: str, width: int | None = None) -> str:
    """A docstring with wrapped paragraphs, and indented lines (a command, blanks, an explanation) in two columns.

    Args:
      width: characters of a line; None: those of the terminal.
    """
    width = width or max(60, min(shutil.get_terminal_size().columns, 120))
    blocks = []
    for are_commands, same in groupby(
        doc.strip().splitlines(), key=lambda line: line.startswith("  ") if line else None
    ):
        lines = list(same)
        if are_commands is None:
            blocks.append("")
        else:
            blocks += _commands(lines, width) if are_commands else textwrap.wrap(" ".join(lines), width)
    return "\n".join(blocks)


def _commands(lines: list[str], width: int) -> list[str]:
    pairs = [re.split(r"\s{2,}", line.strip(), maxsplit=1) for line in lines]
    column = 4 + max((len(command) for command, *said in pairs if said), default=0)
    beside = width - column >= LEAST
    shown = []
    for command, *said in pairs:
        if said and beside:
            indent = " " * column
            shown += textwrap.wrap(
                said[0], width, initial_indent=f"  {command}".ljust(column), subsequent_indent=indent
            )
        else:
            shown += textwrap.wrap(
                command, width, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False
            )
            shown += textwrap.wrap(" ".join(said), width, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return shown
