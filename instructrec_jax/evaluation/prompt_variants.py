"""How much the words of an instruction matter: the same cases asked in several ways."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from instructrec_jax.data.example import Example
from instructrec_jax.evaluation.evaluator import Contender

OLD = "{instruction}"  # stands for the case's own instruction


def read_wordings(path: Path) -> list[str]:
    """Instructions, a line each; `{instruction}` in one stands for the case's own."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}.") from error
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    if len(lines) < 2:
        raise ValueError(f"{path} holds {len(lines)} wordings: write at least two, a line each.")
    if len(set(lines)) < len(lines):
        raise ValueError(f"{path} holds {next(line for line in lines if lines.count(line) > 1)!r} twice.")
    return lines


def reworded(examples: Sequence[Example], wording: str) -> list[Example]:
    """The same cases with another instruction.

    Raises:
      ValueError: a wording that leaves a case without what it is about: it has no input, and no `{instruction}` either.
    """
    for example in examples:
        if OLD not in wording and example.input is None:
            raise ValueError(
                f"the wording {wording!r} would be all that example {example.id!r} says, since it has no input: write "
                f"{OLD} where its own instruction belongs, or keep the two apart (fields.instruction, fields.input)."
            )
    return [replace(e, instruction=wording.replace(OLD, e.instruction)) for e in examples]


def sensitivity(contenders: Sequence[Contender], metric: str, *, greater: bool) -> dict[str, dict[str, Any]]:
    """Of each segment: the mean of a metric over wordings, its standard deviation (n - 1), and the worst wording."""
    found = {}
    for segment in contenders[0].scores:
        values = np.array([c.scores[segment].metrics[metric] for c in contenders])
        worst = int(values.argmin() if greater else values.argmax())
        found[segment] = {
            "metric": metric,
            "wordings": len(values),
            "mean": float(values.mean()),
            "spread": float(values.std(ddof=1)),
            "worst": float(values[worst]),
            "worst_wording": contenders[worst].name,
        }
    return found


def format_sensitivity(found: dict[str, dict[str, Any]]) -> str:
    lines = []
    for segment, each in found.items():
        where = f"{each['metric']}, {segment}," if segment else each["metric"]
        lines.append(
            f"{where} over {each['wordings']} wordings: mean {each['mean']:.4f}, standard deviation "
            f"{each['spread']:.4f}, worst {each['worst']:.4f} ({each['worst_wording']})"
        )
    return "\n".join(lines)
