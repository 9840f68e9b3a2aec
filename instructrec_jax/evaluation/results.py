"""Writes the files of an evaluation and prints its table."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from instructrec_jax.distributed.heartbeat import heartbeat
from instructrec_jax.distributed.launch import is_first
from instructrec_jax.evaluation.evaluator import MeasuredOn, ScoredRow, table
from instructrec_jax.evaluation.headline import headline
from instructrec_jax.evaluation.tables import Evaluation, Group, Mistake, format_examples, format_table
from instructrec_jax.files import write_json, write_jsonl
from instructrec_jax.tasks.answers import Shown
from instructrec_jax.tasks.scores import Scores


@dataclass(frozen=True)
class Results:
    """An evaluation; printed, it is the table.

    Attributes:
      predictions: a record per case of the row that the others are compared with.
    """

    evaluation: Evaluation
    predictions: Iterable[Mapping[str, object]] = field(repr=False)

    def __str__(self) -> str:
        return format_table(self.evaluation, more="the attribute evaluation")

    __repr__ = __str__

    @property
    def metrics(self) -> dict[str, float | None]:
        """All metrics of the first row."""
        return {
            name: value for row in (self.evaluation["rows"] or [])[:1] for name, value in (row["values"] or {}).items()
        }


def results_of(
    rows: Sequence[ScoredRow], *, metric: str, measured_on: MeasuredOn, tuned: str = "after tuning"
) -> Results:
    """Arguments as in `show_results`."""
    shown = next(row for row in rows if row.name == tuned)
    sizes = []
    for name, scores in shown.scores.items():
        count = len(scores.predictions)
        sizes.append(f"{count:,} case{'s' * (count != 1)}" + (f" ({name})" if name else ""))
    protocol = "; ".join(
        [
            *sizes,
            *_owners(shown.scores.values()),
            *dict.fromkeys(s.protocol for s in shown.scores.values() if s.protocol),
        ]
    )
    records = ({"segment": s, **record} for s, scores in shown.scores.items() for record in scores.predictions)
    return Results(table(rows, tuned=tuned, protocol=protocol, metric=metric, measured_on=measured_on), records)


def show_results(
    folder: Path,
    rows: Sequence[ScoredRow],
    examples: list[Shown],
    *,
    metric: str,
    measured_on: MeasuredOn,
    greater: bool,
    tuned: str = "after tuning",
    more: str = "report.html",
    mistakes: Sequence[Mistake] = (),
    groups: Sequence[Group] = (),
) -> str:
    """Writes evaluation.json, predictions.jsonl and examples.json into `folder`; prints the table and the examples.

    Returns the headline, to be printed last.

    Args:
      greater: whether a higher value of `metric` is better.
      more: the file in `folder` that has all of a list that is too long for the terminal.
      measured_on: the split, as the headings of table and report name it.
      tuned: name of the row whose predictions are written and that every other row is compared with.
      mistakes, groups: of that row; see `mistakes.mistakes_of` and `groups.group_metrics`.
    """
    with heartbeat("computing intervals and paired differences"):
        results = results_of(rows, metric=metric, measured_on=measured_on, tuned=tuned)
    shown = next(row for row in results.evaluation["rows"] or [] if row["name"] == tuned)
    said = headline(
        rows,
        tuned=tuned,
        metric=metric,
        measured_on=measured_on,
        greater=greater,
        more=str(folder / more),
        intervals=shown["intervals"],
    )
    if not is_first():
        return said
    if groups:
        results.evaluation["groups"] = list(groups)
    shown_mistakes: Evaluation = {"mistakes": list(mistakes)} if mistakes else {}
    write_json(folder / "evaluation.json", {**results.evaluation, **shown_mistakes})
    write_jsonl(folder / "predictions.jsonl", results.predictions)
    write_json(folder / "examples.json", examples)
    print("\n" + format_table(results.evaluation, more=str(folder / more)))
    if examples:
        print("\n" + format_examples(examples))
    return said


def _owners(scores: Iterable[Scores]) -> list[str]:
    """What the intervals resample, where cases share an owner: a sentence, or nothing."""
    counts = sorted({max(len(np.unique(each)) for each in s.owners.values()) for s in scores if s.owners})
    number = " to ".join(f"{count:,}" for count in dict.fromkeys([*counts[:1], *counts[-1:]]))
    return [f"intervals resample their {number} users, documents or conversations"] if counts else []
