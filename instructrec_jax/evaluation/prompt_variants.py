"""Prompt variants: the same cases with other instructions, and how much the metric varies."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypedDict

import numpy as np

from instructrec_jax.data.example import Example
from instructrec_jax.evaluation.evaluator import ScoredRow

OLD = "{instruction}"  # placeholder for the case's own instruction


class Sensitivity(TypedDict):
    """A metric over prompt variants: its mean, standard deviation (n − 1) and worst variant."""

    metric: str
    wordings: int
    mean: float
    spread: float
    worst: float
    worst_wording: str


def read_wordings(path: Path) -> list[str]:
    """Reads prompt variants, one per line; `{instruction}` in a variant stands for the case's own instruction.

    Raises ValueError for a file that is not UTF-8, has fewer than two variants, or repeats one.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}). Save it as UTF-8.") from error
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    if len(lines) < 2:
        raise ValueError(f"{path} has {len(lines)} prompts: write at least two, one per line.")
    if len(set(lines)) < len(lines):
        repeated = next(line for line in lines if lines.count(line) > 1)
        raise ValueError(f"{path} lists the prompt {repeated!r} twice: remove one.")
    return lines


def reworded(example: Example, wording: str) -> Example:
    """The same case with another instruction.

    Raises:
      ValueError: a wording without `{instruction}` for a case without input: nothing of the case would be left.
    """
    if OLD not in wording and example.input is None:
        raise ValueError(
            f"the prompt {wording!r} would replace all of example {example.id!r}, which has no input. Write {OLD} "
            "where its own instruction belongs, or read the text as its input (fields.input)."
        )
    return replace(example, instruction=wording.replace(OLD, example.instruction))


def sensitivity(rows: Sequence[ScoredRow], metric: str, *, greater: bool) -> dict[str, Sensitivity]:
    """Statistics of a metric over prompt variants (one row each), by segment.

    Args:
      greater: whether a higher value is better.
    """
    found: dict[str, Sensitivity] = {}
    for segment in rows[0].scores:
        values = np.array([row.scores[segment].metrics[metric] for row in rows])
        worst = int(values.argmin() if greater else values.argmax())
        found[segment] = {
            "metric": metric,
            "wordings": len(values),
            "mean": float(values.mean()),
            "spread": float(values.std(ddof=1)),
            "worst": float(values[worst]),
            "worst_wording": rows[worst].name,
        }
    return found


def format_sensitivity(found: Mapping[str, Sensitivity]) -> str:
    """One line a segment."""
    lines = []
    for segment, each in found.items():
        where = f"{each['metric']}, {segment}," if segment else each["metric"]
        lines.append(
            f"{where} over {each['wordings']} prompts: mean {each['mean']:.4f}, standard deviation "
            f"{each['spread']:.4f}, worst {each['worst']:.4f} ({each['worst_wording']})"
        )
    return "\n".join(lines)
