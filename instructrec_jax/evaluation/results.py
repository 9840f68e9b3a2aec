"""What an evaluation leaves behind, and what it shows."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from instructrec_jax.distributed.launch import is_first
from instructrec_jax.evaluation.evaluator import Contender, table
from instructrec_jax.evaluation.tables import format_examples, format_table
from instructrec_jax.files import write_json, write_jsonl


def show_results(
    folder: Path,
    contenders: Sequence[Contender],
    examples: list[dict[str, Any]],
    *,
    metric: str,
    tuned: str = "after tuning",
) -> None:
    """Writes evaluation.json, predictions.jsonl and examples.json into `folder` and prints table and examples.

    Args:
      tuned: the contender whose predictions are kept and that the others are compared with.
    """
    shown = next(c for c in contenders if c.name == tuned)
    counts = {segment: len(s.predictions) for segment, s in shown.scores.items()}
    said = [f"{count:,} cases" + (f" {name}" if name else "") for name, count in counts.items()]
    protocol = "; ".join([*said, *dict.fromkeys(s.protocol for s in shown.scores.values() if s.protocol)])
    result = table(contenders, tuned=tuned, protocol=protocol, metric=metric)
    if not is_first():
        return
    write_json(folder / "evaluation.json", result)
    rows = ({"segment": s, **record} for s, scores in shown.scores.items() for record in scores.predictions)
    write_jsonl(folder / "predictions.jsonl", rows)
    write_json(folder / "examples.json", examples)
    print("\n" + format_table(result))
    if examples:
        print("\n" + format_examples(examples))
