"""Recommendations as a table on a terminal, and questions about ambiguous titles."""

import sys
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from instructrec_jax.answering.evidence import line
from instructrec_jax.answering.requests import Answer
from instructrec_jax.evaluation.layout import text_width
from instructrec_jax.evaluation.tables import wrapped


def table(answer: Answer) -> str:
    """An answer as a table of text; evidence that does not fit beside the titles stands below them."""
    said = [f"prompt: {answer.prompt}"] if answer.prompt else []  # none for a picture alone
    said += [f"note: {note}" for note in answer.notes]
    lines = [*(wrapped(text, "", "  ", text_width()) for text in said), ""]
    header = ("", "title", "score", "evidence (+ raises the score, − lowers it)")
    rows = [(str(r.rank), r.title, f"{r.score:.4f}", line(r.evidence)) for r in answer.recommendations]
    indent = " " * 6
    widths = [max(width(row[column]) for row in (header, *rows)) for column in range(3)]
    beside = sum(widths) + 6 + max(width(row[3]) for row in (header, *rows)) <= text_width()
    for row in (header, *rows):
        rank, title, score = (" " * (w - width(cell)) for cell, w in zip(row, widths, strict=False))
        shown = f"{rank}{row[0]}  {row[1]}{title}  {score}{row[2]}"
        lines.append(f"{shown}  {row[3]}".rstrip() if beside else shown)
        lines += [wrapped(row[3], indent, indent, text_width())] if row[3] and not beside else []
    return "\n".join(lines)


def width(text: str) -> int:
    """Width of a text on a terminal, in columns."""
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(unicodedata.category(c) in ("Mn", "Me", "Cf") for c in text)


def ask_person(question: str, choices: Sequence[str]) -> int | None:
    """Asks for a choice on the terminal; returns its index, or None for none of them."""
    print(f"{question}:", file=sys.stderr)
    for number, choice in enumerate(choices, 1):
        print(f"  {number}  {choice}", file=sys.stderr)
    print("  0  none of these", file=sys.stderr)
    while True:
        print("number: ", end="", file=sys.stderr, flush=True)
        answer = sys.stdin.readline()
        if not answer:
            return None
        if answer.strip().isdecimal() and int(answer) <= len(choices):
            return int(answer) - 1 if int(answer) else None


def named_weight(option: str, text: str | None) -> tuple[str | None, float | None]:
    """("coKNN", 0.15) of "coKNN=0.15"; ("coKNN", None) of "coKNN". Raises ValueError for an invalid weight."""
    if text is None or Path(text).is_dir():
        return text, None
    name, sign, weight = text.rpartition("=")
    if not sign:
        return text, None
    try:
        return name, float(weight)
    except ValueError:
        raise ValueError(f"{option} must be NAME or NAME=WEIGHT, such as coKNN=0.15, but is {text!r}.") from None
