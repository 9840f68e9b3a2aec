"""Skipped rows: the record of each, the summary for users, and the file skipped.jsonl."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, TypedDict

from instructrec_jax.data.example import BadExample
from instructrec_jax.files import append_jsonl, read_jsonl, write_jsonl

OnBadExample = Literal["error", "skip"]


@dataclass(frozen=True, slots=True)
class SkippedRow:
    """A skipped row: file and line, the bad field, the category of the error, and the value found."""

    where: str
    field: str
    reason: str
    detail: str


def listing(rows: Sequence[SkippedRow]) -> str:
    """The first ten errors, a line each. Rows with the same error share a line."""
    places: dict[tuple[str, str, str], list[str]] = {}
    for row in rows:
        places.setdefault((row.field, row.reason, row.detail), []).append(row.where)
    lines = []
    for error, where in list(places.items())[:10]:
        more = f" (and {len(where) - 1:,} more)" if len(where) > 1 else ""
        lines.append(str(BadExample(*error, where[0] + more)))
    return "\n".join(f"  {line}" for line in lines)


def bad_rows(name: str, rows: Sequence[SkippedRow]) -> str:
    many = "at least 10 bad rows" if len(rows) >= 10 else f"{len(rows)} bad row{'s' if len(rows) > 1 else ''}"
    if len({(row.field, row.reason, row.detail) for row in rows}) == 1 and rows[0].reason == "missing column":
        return f"source {name}: {listing(rows).strip()}"
    hint = "Correct them, or set on_bad_example: skip to leave bad rows out (they are counted and listed)."
    return f"source {name}: {many}.\n{listing(rows)}\n{hint}"


def summarize_skipped(rows: Sequence[SkippedRow]) -> str:
    """A summary of the skipped rows for the end of a run; "" for none."""
    if not rows:
        return ""
    counts = Counter((row.reason, row.field.split("[")[0]) for row in rows)
    kinds = [f"{n:,} {reason}" + (f" ({name})" if name else "") for (reason, name), n in counts.most_common()]
    first = str(BadExample(rows[0].field, rows[0].reason, rows[0].detail, rows[0].where))
    return f"{len(rows):,} bad rows were skipped: {', '.join(kinds)}. The first: {first}"


class SkippedFields(TypedDict):
    """A line of skipped.jsonl."""

    where: str
    field: str
    reason: str
    detail: str


def write_skipped(run_dir: str | os.PathLike[str], rows: Sequence[SkippedRow]) -> Path | None:
    """Writes the skipped rows to `skipped.jsonl` in the run directory (none: no file)."""
    path = Path(run_dir) / "skipped.jsonl"
    if not rows:
        path.unlink(missing_ok=True)
        return None
    write_jsonl(path, map(asdict, rows))
    return path


def add_skipped(run_dir: str | os.PathLike[str], rows: Sequence[SkippedRow], written: int) -> int:
    """Appends the rows after the first `written` ones to `skipped.jsonl`; returns the new number of rows.

    For a stream, whose bad rows are found while it is read: a bad row is on disk before the next checkpoint.
    """
    if rows[written:]:
        append_jsonl(Path(run_dir) / "skipped.jsonl", map(asdict, rows[written:]))
    return len(rows)


def read_skipped(run_dir: str | os.PathLike[str]) -> list[SkippedRow]:
    """The rows of `skipped.jsonl`; [] without such a file. Raises ValueError naming a damaged file."""
    path = Path(run_dir) / "skipped.jsonl"
    rows = read_jsonl(path, SkippedFields) if path.exists() else []
    return [SkippedRow(row["where"], row["field"], row["reason"], row["detail"]) for row in rows]
