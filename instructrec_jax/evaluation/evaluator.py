"""The evaluation table: the model before and after tuning beside baselines, on the same cases."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from instructrec_jax.evaluation.tables import Difference, Evaluation, Segment, lower_is_better
from instructrec_jax.metrics.bootstrap import bootstrap_interval, paired_bootstrap, percentile_interval, resampled
from instructrec_jax.tasks.base import Encoded, Task
from instructrec_jax.tasks.encoded_store import chosen
from instructrec_jax.tasks.prediction import Predict
from instructrec_jax.tasks.scores import Scores

MeasuredOn = Literal["train", "validation", "validation, which also chose the checkpoint", "test", "the given records"]


@dataclass
class ScoredRow:
    """A row of the table.

    Attributes:
      scores: of a model or baseline, by segment of the cases ("": all cases).
      served: whether it is the run with the hybrid that training chose, which `recommend` and the service answer with.
    """

    name: str
    scores: dict[str, Scores]
    served: bool = False


def segments(encoded: Sequence[Encoded], key: str | None) -> dict[str, Sequence[Encoded]]:
    """Groups the cases by `origin[key]`; without a key all cases are in group "".

    Raises ValueError for a case without `origin[key]`.
    """
    if key is None:
        return {"": encoded}
    groups: dict[str, list[int]] = {}
    for number, e in enumerate(encoded):
        if key not in e.example.origin:
            raise ValueError(
                f"evaluation.segment_by is {key!r}, but test example {e.example.id!r} has no origin[{key!r}]. Set that "
                "field for every test example, or leave evaluation.segment_by out."
            )
        groups.setdefault(e.example.origin[key], []).append(number)
    return {name: chosen(encoded, np.array(numbers)) for name, numbers in groups.items()}


def score_row(name: str, task: Task, predict: Predict, groups: Mapping[str, Sequence[Encoded]]) -> ScoredRow:
    """Scores a model on every segment; texts that all segments share, such as those of items, run once."""
    once = predict.remember()
    return ScoredRow(name, {segment: task.score(once, cases) for segment, cases in groups.items()})


def measured_on(split: Literal["train", "validation", "test"], *, chose_checkpoint: bool) -> MeasuredOn:
    """The name of the split in the table's heading.

    Args:
      chose_checkpoint: whether the checkpoint was selected on the validation cases.
    """
    return "validation, which also chose the checkpoint" if split == "validation" and chose_checkpoint else split


def baseline_rows(task: Task, train: Sequence[Encoded], groups: Mapping[str, Sequence[Encoded]]) -> list[ScoredRow]:
    """A row for each baseline; a baseline that cannot be fitted has a note instead of values."""
    by_name: dict[str, ScoredRow] = {}
    if not len(train):  # training data is a stream: no examples to fit baselines on
        return []
    for segment, cases in groups.items():
        for name, scores in task.baselines(train, cases).items():
            by_name.setdefault(name, ScoredRow(name, {})).scores[segment] = scores
    return list(by_name.values())


def table(rows: Sequence[ScoredRow], *, tuned: str, protocol: str, metric: str, measured_on: MeasuredOn) -> Evaluation:
    """The table as JSON-able data, for the terminal and the report (see `tables.Evaluation`).

    Args:
      tuned: name of the row that every other row is compared with, by paired bootstrap over cases, on `metric`.
      measured_on: the split, as the heading names it.
    """
    by_name = {row.name: row for row in rows}
    shown = by_name.get(tuned, rows[0])
    bootstrap = Bootstrap()
    reports = [f"{segment}\n{scores.report}".strip() for segment, scores in shown.scores.items() if scores.report]
    return {
        "split": measured_on,
        "protocol": protocol,
        "metrics": [_label(m, s) for s, scores in shown.scores.items() for m in scores.main or scores.metrics],
        "all_metrics": list(_values(shown)),
        "rows": [
            {
                "name": row.name,
                "values": _values(row),
                "intervals": {
                    _label(metric, s): interval
                    for s, scores in row.scores.items()
                    if (interval := bootstrap.interval(scores, metric)) is not None
                },
                "protocol": "; ".join(dict.fromkeys(scores.protocol for scores in row.scores.values())),
                "note": "; ".join(dict.fromkeys(scores.note for scores in row.scores.values() if scores.note)),
            }
            for row in rows
        ],
        "differences": _differences(rows, by_name[tuned], metric, bootstrap) if tuned in by_name else [],
        "segments": [part for segment in shown.scores for part in _subgroups(rows, shown, segment, metric)],
        "report": "\n\n".join(reports),
        "charts": {_label(n, s): dict(data) for s, scores in shown.scores.items() for n, data in scores.charts.items()},
    }


def _label(name: str, segment: str) -> str:
    return f"{name}, {segment}" if segment else name


def _values(row: ScoredRow) -> dict[str, float | None]:
    return {_label(m, s): v for s, scores in row.scores.items() for m, v in scores.metrics.items()}


class Bootstrap:
    """95% bootstrap intervals of metrics and of paired differences; each corpus metric is resampled once."""

    def __init__(self) -> None:
        self.resamples: dict[tuple[int, str], np.ndarray] = {}

    def interval(self, scores: Scores, metric: str, n: int = 10_000) -> tuple[float, float] | None:
        """(low, high); None for a metric without per-case values or whose cases all have one owner."""
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
        """(mean, low, high) of mine − theirs, paired over the cases; None where no interval can be computed."""
        owners = mine.owners.get(metric)
        if owners is not None and (owners == owners[0]).all():
            return None
        if metric in mine.cases and metric in theirs.cases:
            a, b = mine.cases[metric], theirs.cases[metric]
            both = ~np.isnan(a) & ~np.isnan(b)  # NaN: a case without candidates
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


def _differences(rows: Sequence[ScoredRow], tuned: ScoredRow, metric: str, bootstrap: Bootstrap) -> list[Difference]:
    """Paired differences of the tuned model and every other row, on `metric` and on `Scores.compared`."""
    differences: list[Difference] = []
    for other in (row for row in rows if row.name != tuned.name):
        for segment, scores in tuned.scores.items():
            for compared in dict.fromkeys([metric, *scores.compared]):
                found = bootstrap.difference(scores, other.scores[segment], compared)
                if found is not None:
                    name, (mean, low, high) = f"{tuned.name} − {other.name}", found
                    label = _label(compared, segment)
                    differences.append({"name": name, "metric": label, "mean": mean, "low": low, "high": high})
    return differences


def _subgroups(rows: Sequence[ScoredRow], shown: ScoredRow, segment: str, metric: str) -> list[Segment]:
    """The metric on each subgroup of the cases: every row's mean, and the interval of the row `shown`."""
    subgroups: list[Segment] = []
    for name, inside in shown.scores[segment].segments.items():
        own = on_cases(shown.scores[segment], metric, inside)
        interval = Bootstrap().interval(own, metric, n=2000)
        if interval is None:
            continue
        axis, place = shown.scores[segment].places.get(name, ("", ""))
        values = {row.name: on_cases(row.scores[segment], metric, inside).metrics.get(metric) for row in rows}
        subgroups.append(
            {
                "name": _label(name, segment),
                "among": segment,
                "axis": axis,
                "place": place,
                "cases": len(inside),
                "metric": metric,
                "low": interval[0],
                "high": interval[1],
                "shown": shown.name,
                "values": {who: value for who, value in values.items() if value is not None},
            }
        )
    return subgroups


def on_cases(scores: Scores, metric: str, inside: np.ndarray) -> Scores:
    """One metric on the cases with the numbers `inside`, int64 [cases]; no metric where none of these has a value."""
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
    """Whether a higher value of `metric` is better: the task defines it for its own metric, else the name tells."""
    return task.greater_is_better if metric == task.metric else not lower_is_better(metric)
