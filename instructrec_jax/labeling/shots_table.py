"""The table of `evaluate --shots`: accuracy by way to train and number of examples, with time and memory."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from instructrec_jax.evaluation.layout import aligned
from instructrec_jax.files import write_json, write_text
from instructrec_jax.labeling.shots import ARMS, Measured
from instructrec_jax.labeling.simulate import interval

Table = list[tuple[str, ...]]


def table_of(found: Sequence[Measured]) -> Table:
    """A header, and a row for each way; time and memory are those of the most examples."""
    shots = sorted({each.arm.shots for each in found})
    most = shots[-1]
    header = ("", *(f"{n} per label" for n in shots), f"seconds at {most}", f"GB at {most}")
    rows: Table = [header]
    for name, title in ARMS.items():
        own = [each for each in found if each.arm.name == name]
        last = [each for each in own if each.arm.shots == most]
        seconds, memory = np.median([each.seconds for each in last]), max(each.memory for each in last)
        cells = (_accuracy([each.accuracy for each in own if each.arm.shots == n]) for n in shots)
        rows.append((title, *cells, f"{seconds:,.0f}", f"{memory / 1e9:.2f}"))
    return rows


def _accuracy(values: Sequence[float]) -> str:
    mean, low, high = interval(values)
    return f"{mean:.3f}" if np.isnan(low) else f"{mean:.3f} ± {(high - low) / 2:.3f}"


def about(found: Sequence[Measured]) -> str:
    """What the numbers of the table are."""
    seeds = len({each.arm.seed for each in found})
    spread = "one seed" if seeds == 1 else f"mean of {seeds} seeds ± half of its 95% interval (Student's t)"
    steps = max(each.steps for each in found)
    return (
        f"Accuracy on {found[0].cases:,} cases, {spread}; {steps:,} steps for each way that has steps. Seconds to open "
        "the network and train (median), with the compilation of what no earlier process has compiled; peak memory "
        "until then (largest). Each draw and way has a process of its own."
    )


def written(found: Sequence[Measured], out: Path) -> str:
    """The table as text, after writing OUT/shots.json and OUT/shots.md."""
    table, said = table_of(found), about(found)
    write_json(out / "shots.json", {"about": said, "arms": [asdict(each) for each in found]})
    header, *rows = table
    lines = [header, ("---",) * len(header), *rows]
    write_text(out / "shots.md", "\n".join([said, "", *("| " + " | ".join(row) + " |" for row in lines)]) + "\n")
    return "\n".join([said, *aligned(table), f"written: {out / 'shots.md'}, {out / 'shots.json'}"])
