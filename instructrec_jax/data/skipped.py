"""What is kept of bad rows, and how people hear of them."""

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
    """A row that was left out: where it is, which field is bad, why in a few words, and what was found."""

    where: str
    field: str
    reason: str
    detail: str


def listing(rows: Sequence[SkippedRow]) -> str:
    lines = [str(BadExample(row.field, row.reason, row.detail, row.where)) for row in rows[:10]]
    return "\n".join(f"  {line}" for line in lines)


def bad_rows(name: str, rows: Sequence[SkippedRow]) -> str:
    many = "at least 10 bad rows" if len(rows) >= 10 else f"{len(rows)} bad row{'s' if len(rows) > 1 else ''}"
    hint = "Correct them, or set on_bad_example: skip to leave such rows out (they are counted and listed)."
    return f"source {name}: {many}.\n{listing(rows)}\n{hint}"


def summarize_skipped(rows: Sequence[SkippedRow]) -> str:
    """A paragraph on what was left out, for the end of a run; "" when nothing was."""
    if not rows:
        return ""
    counts = Counter((row.reason, row.field.split("[")[0]) for row in rows)
    kinds = [f"{n:,} {reason}" + (f" ({name})" if name else "") for (reason, name), n in counts.most_common()]
    first = str(BadExample(rows[0].field, rows[0].reason, rows[0].detail, rows[0].where))
    return f"{len(rows):,} rows were skipped as bad: {', '.join(kinds)}. The first: {first}"


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
    """Adds the rows after the first `written` ones to `skipped.jsonl`; returns how many there are now.

    For a stream, whose bad rows come to light as it is read: each is on disk before the checkpoint that lies behind it.
    """
    if rows[written:]:
        append_jsonl(Path(run_dir) / "skipped.jsonl", map(asdict, rows[written:]))
    return len(rows)


def read_skipped(run_dir: str | os.PathLike[str]) -> list[SkippedRow]:
    """The rows of `skipped.jsonl`; none where there is no such file. A damaged file is a ValueError that names it."""
    path = Path(run_dir) / "skipped.jsonl"
    rows = read_jsonl(path, SkippedFields) if path.exists() else []
    return [SkippedRow(row["where"], row["field"], row["reason"], row["detail"]) for row in rows]
