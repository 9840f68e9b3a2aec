"""What an evaluation leaves behind, and what it shows."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from instructrec_jax.distributed.launch import is_first
from instructrec_jax.evaluation.evaluator import Contender, MeasuredOn, table
from instructrec_jax.evaluation.tables import format_examples, format_table
from instructrec_jax.files import write_json, write_jsonl
from instructrec_jax.tasks.base import Scores


def show_results(
    folder: Path,
    contenders: Sequence[Contender],
    examples: list[dict[str, Any]],
    *,
    metric: str,
    measured_on: MeasuredOn,
    tuned: str = "after tuning",
) -> None:
    """Writes evaluation.json, predictions.jsonl and examples.json into `folder` and prints table and examples.

    Args:
      measured_on: where the cases come from: headings of table and report say it.
      tuned: the contender whose predictions are kept and that the others are compared with.
    """
    shown = next(c for c in contenders if c.name == tuned)
    said = [_cases(scores) + (f" {segment}" if segment else "") for segment, scores in shown.scores.items()]
    protocol = "; ".join([*said, *dict.fromkeys(s.protocol for s in shown.scores.values() if s.protocol)])
    result = table(contenders, tuned=tuned, protocol=protocol, metric=metric, measured_on=measured_on)
    if not is_first():
        return
    write_json(folder / "evaluation.json", result)
    rows = ({"segment": s, **record} for s, scores in shown.scores.items() for record in scores.predictions)
    write_jsonl(folder / "predictions.jsonl", rows)
    write_json(folder / "examples.json", examples)
    print("\n" + format_table(result))
    if examples:
        print("\n" + format_examples(examples))


def _cases(scores: Scores) -> str:
    """How many cases there are, and of how many owners where some share one: these are what intervals resample."""
    owners = {len(np.unique(each)) for each in scores.owners.values()}
    of = f" of {max(owners):,} owners (users, documents or conversations, which intervals resample)" if owners else ""
    return f"{len(scores.predictions):,} cases{of}"
