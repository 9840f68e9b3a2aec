"""One table: the model before and after tuning beside simple baselines, on the same cases."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from instructrec_jax.evaluation.predictor import remember
from instructrec_jax.evaluation.tables import lower_is_better
from instructrec_jax.metrics.ranking import bootstrap_interval, paired_bootstrap
from instructrec_jax.tasks.base import Encoded, Predict, Scores, Task


@dataclass
class EvaluationConfig:
    """Evaluation while training, and after it."""

    every: int = 100  # steps between evaluations on data.validation; 0: never
    metric: str | None = None  # what the best checkpoint and early stopping look at; null: the task's own
    patience: int | None = None  # stop after this many evaluations without a better metric; null: never
    max_examples: int | None = None  # evaluate on the first so many validation examples; null: all
    segment_by: str | None = None  # also report separately for each value of this field of the examples' origin


@dataclass
class Contender:
    """One row of the table: scores on all test cases, and on each segment of them."""

    name: str
    scores: dict[str, Scores]


def segments(encoded: Sequence[Encoded], key: str | None) -> dict[str, list[Encoded]]:
    """The cases by the value of `origin[key]`; all of them under "" when there is no key."""
    if key is None:
        return {"": list(encoded)}
    groups: dict[str, list[Encoded]] = {}
    for e in encoded:
        if key not in e.example.origin:
            raise ValueError(
                f"evaluation.segment_by is {key!r}, but test example {e.example.id!r} has no origin[{key!r}]."
            )
        groups.setdefault(e.example.origin[key], []).append(e)
    return groups


def contend(name: str, task: Task, predict: Predict, groups: dict[str, list[Encoded]]) -> Contender:
    """Scores a model on every segment; each text goes through it once."""
    once = remember(predict)
    return Contender(name, {segment: task.score(once, cases) for segment, cases in groups.items()})


def baseline_contenders(task: Task, train: Sequence[Encoded], groups: dict[str, list[Encoded]]) -> list[Contender]:
    by_name: dict[str, Contender] = {}
    if not train:  # a stream: nothing to fit simple methods on
        return []
    for segment, cases in groups.items():
        for name, scores in task.baselines(train, cases).items():
            by_name.setdefault(name, Contender(name, {})).scores[segment] = scores
    return list(by_name.values())


def table(contenders: Sequence[Contender], *, tuned: str, protocol: str, metric: str) -> dict[str, Any]:
    """The table as JSON-able data, for the terminal and the report.

    Args:
      tuned: name of the row that the others are compared with, by paired bootstrap over cases, on `metric`.
    """

    def label(name: str, segment: str) -> str:
        return f"{name}, {segment}" if segment else name

    def values(contender: Contender) -> dict[str, float]:
        return {label(m, s): v for s, scores in contender.scores.items() for m, v in scores.metrics.items()}

    by_name = {c.name: c for c in contenders}
    differences = []
    for other in contenders:
        if tuned not in by_name or other.name == tuned:
            continue
        for segment, scores in by_name[tuned].scores.items():
            for compared in dict.fromkeys([metric, *scores.compared]):
                mine, theirs = scores.cases.get(compared), other.scores[segment].cases.get(compared)
                if mine is None or theirs is None:
                    continue
                both = ~np.isnan(mine) & ~np.isnan(theirs)  # a case without candidates has no value
                mean, low, high = paired_bootstrap(mine[both], theirs[both])
                differences.append(
                    {
                        "name": f"{tuned} − {other.name}",
                        "metric": label(compared, segment),
                        "mean": mean,
                        "low": low,
                        "high": high,
                    }
                )
    shown = by_name.get(tuned, contenders[0])
    reports = [f"{segment}\n{scores.report}".strip() for segment, scores in shown.scores.items() if scores.report]
    main = [label(m, s) for s, scores in shown.scores.items() for m in scores.main or scores.metrics]
    return {
        "protocol": protocol,
        "metrics": main,
        "all_metrics": list(values(shown)),
        "rows": [
            {
                "name": c.name,
                "values": values(c),
                "intervals": {
                    label(metric, s): list(interval[1:])
                    for s, scores in c.scores.items()
                    if (interval := _interval(scores.cases.get(metric))) is not None
                },
                "protocol": "; ".join(dict.fromkeys(scores.protocol for scores in c.scores.values())),
            }
            for c in contenders
        ],
        "differences": differences,
        "segments": [
            row for segment in shown.scores for row in _segment_rows(contenders, shown, segment, metric, label)
        ],
        "report": "\n\n".join(reports),
        "charts": {label(name, s): data for s, scores in shown.scores.items() for name, data in scores.charts.items()},
    }


def _interval(values: np.ndarray | None, n: int = 10_000) -> tuple[float, float, float] | None:
    """(mean, low, high), or None where there is nothing to average."""
    there = None if values is None else values[~np.isnan(values)]
    return None if there is None or not len(there) else bootstrap_interval(there, n=n)


def _segment_rows(
    contenders: Sequence[Contender], shown: Contender, segment: str, metric: str, label: Callable[[str, str], str]
) -> list[dict[str, Any]]:
    """The metric on parts of the cases: the shown contender with its interval, the others' means beside it."""
    rows = []
    for name, inside in shown.scores[segment].segments.items():
        per_case = {c.name: c.scores[segment].cases.get(metric) for c in contenders}
        parts = {who: values[inside] for who, values in per_case.items() if values is not None}
        interval = _interval(parts.get(shown.name), n=2000)
        if interval is None:
            continue
        rows.append(
            {
                "name": label(name, segment),
                "cases": len(inside),
                "metric": metric,
                "low": interval[1],
                "high": interval[2],
                "shown": shown.name,
                "values": {who: float(np.nanmean(v)) for who, v in parts.items() if not np.isnan(v).all()},
            }
        )
    return rows


def greater_is_better(task: Task, metric: str) -> bool:
    """The task says so of its own metric; of any other, its name does."""
    return task.greater_is_better if metric == task.metric else not lower_is_better(metric)


def better(new: float, old: float | None, *, greater: bool) -> bool:
    if old is None or not math.isfinite(new):
        return math.isfinite(new)
    return new > old if greater else new < old
