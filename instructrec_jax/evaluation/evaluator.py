"""One table: the model before and after tuning beside simple baselines, on the same cases."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from instructrec_jax.evaluation.predictor import remember
from instructrec_jax.evaluation.tables import lower_is_better
from instructrec_jax.metrics.bootstrap import bootstrap_interval, paired_bootstrap, percentile_interval, resampled
from instructrec_jax.tasks.base import Encoded, Predict, Scores, Task

MeasuredOn = Literal["train", "validation", "validation (also chose the checkpoint)", "test"]


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


def measured_on(split: Literal["train", "validation", "test"], *, chose_checkpoint: bool) -> MeasuredOn:
    """How a table names its cases.

    Args:
      chose_checkpoint: whether the checkpoint was chosen by evaluations on the validation cases.
    """
    return "validation (also chose the checkpoint)" if split == "validation" and chose_checkpoint else split


def baseline_contenders(task: Task, train: Sequence[Encoded], groups: dict[str, list[Encoded]]) -> list[Contender]:
    """A row for each baseline; one that cannot be fitted has a note instead of values."""
    by_name: dict[str, Contender] = {}
    if not train:  # a stream: nothing to fit baselines on
        return []
    for segment, cases in groups.items():
        for name, scores in task.baselines(train, cases).items():
            by_name.setdefault(name, Contender(name, {})).scores[segment] = scores
    return list(by_name.values())


def table(
    contenders: Sequence[Contender], *, tuned: str, protocol: str, metric: str, measured_on: MeasuredOn
) -> dict[str, Any]:
    """The table as JSON-able data, for the terminal and the report.

    Args:
      tuned: name of the row that the others are compared with, by paired bootstrap over cases, on `metric`.
      measured_on: where the cases come from, as the heading says it.
    """
    by_name = {c.name: c for c in contenders}
    shown = by_name.get(tuned, contenders[0])
    bootstrap = _Bootstrap()
    reports = [f"{segment}\n{scores.report}".strip() for segment, scores in shown.scores.items() if scores.report]
    return {
        "split": measured_on,
        "protocol": protocol,
        "metrics": [_label(m, s) for s, scores in shown.scores.items() for m in scores.main or scores.metrics],
        "all_metrics": list(_values(shown)),
        "rows": [
            {
                "name": c.name,
                "values": _values(c),
                "intervals": {
                    _label(metric, s): list(interval)
                    for s, scores in c.scores.items()
                    if (interval := bootstrap.interval(scores, metric)) is not None
                },
                "protocol": "; ".join(dict.fromkeys(scores.protocol for scores in c.scores.values())),
                "note": "; ".join(dict.fromkeys(scores.note for scores in c.scores.values() if scores.note)),
            }
            for c in contenders
        ],
        "differences": _differences(contenders, by_name[tuned], metric, bootstrap) if tuned in by_name else [],
        "segments": [row for segment in shown.scores for row in _segment_rows(contenders, shown, segment, metric)],
        "report": "\n\n".join(reports),
        "charts": {_label(n, s): data for s, scores in shown.scores.items() for n, data in scores.charts.items()},
    }


def _label(name: str, segment: str) -> str:
    return f"{name}, {segment}" if segment else name


def _values(contender: Contender) -> dict[str, float]:
    return {_label(m, s): v for s, scores in contender.scores.items() for m, v in scores.metrics.items()}


class _Bootstrap:
    """95% intervals of metrics and of their differences; each corpus metric is resampled once."""

    def __init__(self) -> None:
        self.resamples: dict[tuple[int, str], np.ndarray] = {}

    def interval(self, scores: Scores, metric: str, n: int = 10_000) -> tuple[float, float] | None:
        """None for a metric without values of single cases, or all of whose cases have one owner."""
        values, owners = scores.cases.get(metric), scores.owners.get(metric)
        if owners is not None and (owners == owners[0]).all():
            return None
        if values is None:
            return percentile_interval(self._resampled(scores, metric)) if metric in scores.corpus else None
        there = ~np.isnan(values)
        if not there.any():
            return None
        return bootstrap_interval(values[there], owners=None if owners is None else owners[there], n=n)[1:]

    def difference(self, mine: Scores, theirs: Scores, metric: str) -> tuple[float, float, float] | None:
        """Mean, low and high of mine − theirs, paired over the cases."""
        owners = mine.owners.get(metric)
        if owners is not None and (owners == owners[0]).all():
            return None
        if metric in mine.cases and metric in theirs.cases:
            a, b = mine.cases[metric], theirs.cases[metric]
            both = ~np.isnan(a) & ~np.isnan(b)  # a case without candidates has no value
            return paired_bootstrap(a[both], b[both], owners=None if owners is None else owners[both])
        if metric in mine.corpus and metric in theirs.corpus:
            ends = percentile_interval(self._resampled(mine, metric) - self._resampled(theirs, metric))
            return None if ends is None else (mine.metrics[metric] - theirs.metrics[metric], *ends)
        return None

    def _resampled(self, scores: Scores, metric: str) -> np.ndarray:
        key = id(scores), metric
        if key not in self.resamples:
            self.resamples[key] = resampled(scores.corpus[metric], scores.owners.get(metric))
        return self.resamples[key]


def _differences(
    contenders: Sequence[Contender], tuned: Contender, metric: str, bootstrap: _Bootstrap
) -> list[dict[str, Any]]:
    """The tuned model against each other row, on the metric and on those that the task compares."""
    rows = []
    for other in (c for c in contenders if c.name != tuned.name):
        for segment, scores in tuned.scores.items():
            for compared in dict.fromkeys([metric, *scores.compared]):
                found = bootstrap.difference(scores, other.scores[segment], compared)
                if found is not None:
                    name, (mean, low, high) = f"{tuned.name} − {other.name}", found
                    row = {"name": name, "metric": _label(compared, segment), "mean": mean, "low": low, "high": high}
                    rows.append(row)
    return rows


def _segment_rows(contenders: Sequence[Contender], shown: Contender, segment: str, metric: str) -> list[dict[str, Any]]:
    """The metric on parts of the cases: the shown contender with its interval, the others' means beside it."""
    rows = []
    for name, inside in shown.scores[segment].segments.items():
        own = _on(shown.scores[segment], metric, inside)
        interval = _Bootstrap().interval(own, metric, n=2000)
        if interval is None:
            continue
        values = {c.name: _on(c.scores[segment], metric, inside).metrics.get(metric) for c in contenders}
        rows.append(
            {
                "name": _label(name, segment),
                "cases": len(inside),
                "metric": metric,
                "low": interval[0],
                "high": interval[1],
                "shown": shown.name,
                "values": {who: value for who, value in values.items() if value is not None},
            }
        )
    return rows


def _on(scores: Scores, metric: str, inside: np.ndarray) -> Scores:
    """One metric of scores on the cases whose numbers are `inside`; no metric where none of them has a value."""
    owners = {name: of_each[inside] for name, of_each in scores.owners.items() if name == metric}
    if metric in scores.cases:
        values = scores.cases[metric][inside]
        mean = {} if np.isnan(values).all() else {metric: float(np.nanmean(values))}
        return Scores(mean, {metric: values}, owners=owners)
    if metric in scores.corpus:
        part = scores.corpus[metric].on(inside)
        value = part.value(np.arange(part.cases))
        return Scores({} if np.isnan(value) else {metric: value}, corpus={metric: part}, owners=owners)
    return Scores({})


def greater_is_better(task: Task, metric: str) -> bool:
    """The task says so of its own metric; of any other, its name does."""
    return task.greater_is_better if metric == task.metric else not lower_is_better(metric)
