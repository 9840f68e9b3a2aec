"""Metrics by the values of a field of the records: each value's cases beside all others, the largest gap first.

A field is a column that `fields.keep` keeps, or a name of `Example.origin`. Numbers with many values are divided at
their quartiles. Values with few cases are pooled, because their intervals say nothing.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from instructrec_jax.data.example import suggest
from instructrec_jax.data.field_values import KEPT, as_number
from instructrec_jax.evaluation.evaluator import Bootstrap, on_cases
from instructrec_jax.evaluation.tables import Group
from instructrec_jax.metrics.bootstrap import CorpusMetric, percentile_interval, resampled, two_sample_bootstrap
from instructrec_jax.tasks.base import Encoded, Task
from instructrec_jax.tasks.scores import Scores

LEAST = 10  # cases of a value; those with fewer are one group
MOST_NUMBERS = 10  # different values of a field of numbers; with more, it has four groups
RESAMPLES = 2000
NO_VALUE = "no value"
Cases = Mapping[str, Sequence[Encoded]]


@dataclass(frozen=True)
class Groups:
    """The groups of the cases of one field.

    Attributes:
      numbers: group -> numbers of its encoded examples, int64.
      first: whether an encoded example is the first one of its example (as the first of several windows), bool.
      tasks: the task name of each, for those of a subtask.
    """

    numbers: Mapping[str, np.ndarray]
    first: np.ndarray
    tasks: np.ndarray

    def inside(self, group: str, metric: str, count: int, subtasks: Sequence[str]) -> np.ndarray:
        """bool [count]: which cases of a metric are of the group.

        A metric has a case for each encoded example, or for each example; that of a subtask has the subtask's.
        """
        whole = np.zeros(len(self.first), bool)
        whole[self.numbers[group]] = True
        task = next((name for name in subtasks if metric.endswith(f" ({name})")), None)
        own = np.ones(len(whole), bool) if task is None else self.tasks == task
        for rows in (own, own & self.first):
            if rows.sum() == count:
                return whole[rows]
        raise ValueError(f"{metric} has {count:,} cases, but {own.sum():,} examples: it has no groups. Leave out --by.")


def groups_by(
    cases: Cases, fields: Sequence[str], columns: Callable[[], Sequence[str]] = lambda: ()
) -> dict[str, dict[str, Groups]]:
    """The groups of the cases: segment -> field -> groups.

    Args:
      cases: segment -> encoded examples, as in `evaluator.segments`.
      columns: gives the columns of the records, for the error of a field that there is not.

    Raises ValueError for a field that no example has, whose values all have fewer than `LEAST` cases, or that has one
    value only.
    """
    found: dict[str, dict[str, Groups]] = {segment: {} for segment in cases}
    for field in dict.fromkeys(fields):
        why = ""
        for segment, encoded in cases.items():
            values, first, tasks = _read(encoded, field)
            if not any(values):
                why = why or _missing(field, encoded, columns)
                continue
            numbers = _partition(values)
            if isinstance(numbers, str):
                why = f"--by {field}: {numbers}"
                continue
            found[segment][field] = Groups(numbers, first, tasks)
        if not any(field in each for each in found.values()):
            raise ValueError(why)
    return found


def _read(encoded: Sequence[Encoded], field: str) -> tuple[list[str], np.ndarray, np.ndarray]:
    """(the value of each encoded example, "" without one; which are the first of their example; their task names)."""
    values, first, tasks, last = [], [], [], None
    for e in encoded:
        origin = e.example.origin
        values.append(origin.get(KEPT + field) or origin.get(field) or "")
        first.append(e.example is not last)
        tasks.append(e.example.task)
        last = e.example
    return values, np.array(first, bool), np.array(tasks, object)


def _missing(field: str, encoded: Sequence[Encoded], columns: Callable[[], Sequence[str]]) -> str:
    own = [name for name in encoded[0].example.origin if not name.startswith(KEPT)] if len(encoded) else []
    there = list(dict.fromkeys([*columns(), *own]))
    listed = f" They have {', '.join(there[:30])}." if there else ""
    return f"--by {field}: no record of the cases has this field.{suggest(field, there)}{listed}"


def _partition(values: Sequence[str]) -> dict[str, np.ndarray] | str:
    """group -> numbers of its examples; or why there are no groups."""
    if (quarters := _quarters(values)) is not None:
        values = quarters
    found: dict[str, list[int]] = {}
    for number, value in enumerate(values):
        found.setdefault(value, []).append(number)
    if len(found) == 1:
        return f"all {len(values):,} cases have the value {next(iter(found))[:60]!r}, so there is nothing to compare."
    if max(map(len, found.values())) < LEAST:
        return (
            f"none of its {len(found):,} values has {LEAST} cases or more, so there is nothing to compare. Name a "
            "field whose values cases share."
        )
    large = {value: numbers for value, numbers in found.items() if len(numbers) >= LEAST}
    small = [numbers for numbers in found.values() if len(numbers) < LEAST]
    if "" in large:
        large[_free(NO_VALUE, large)] = large.pop("")
    if small:
        several = f"fewer than {LEAST} cases ({len(small):,} value{'s' * (len(small) > 1)})"
        large[_free(several, large)] = sorted(number for numbers in small for number in numbers)
    return {value: np.array(numbers) for value, numbers in large.items()}


def _free(name: str, taken: Collection[str]) -> str:
    """A name of our own that no value of the field has."""
    return _free(f"{name} (others)", taken) if name in taken else name


def _quarters(values: Sequence[str]) -> list[str] | None:
    """The quarter of each number, as text: its smallest and largest number; "" where there is none. None: no numbers,
    or few different ones."""
    there = {value: as_number(value) for value in set(values) - {""}}
    if len(there) <= MOST_NUMBERS or any(isinstance(n, str) or not math.isfinite(n) for n in there.values()):
        return None
    numbers = np.array([float(there.get(value, math.nan)) for value in values])
    edges = np.unique(np.quantile(numbers[~np.isnan(numbers)], [0.25, 0.5, 0.75]))
    place = np.searchsorted(edges, numbers)
    of_place = {}
    for quarter in np.unique(place[~np.isnan(numbers)]).tolist():
        own = numbers[(place == quarter) & ~np.isnan(numbers)]
        of_place[quarter] = f"{_shown(own.min())} to {_shown(own.max())}"
    return ["" if value == "" else of_place[quarter] for value, quarter in zip(values, place.tolist(), strict=True)]


def _shown(number: float) -> str:
    return f"{number:.0f}" if number.is_integer() and abs(number) < 1e15 else f"{number:g}"


# ---- metrics of groups ---------------------------------------------------------------------------------


def group_metrics(
    task: Task, scores: Mapping[str, Scores], groups: Mapping[str, Mapping[str, Groups]], metric: str, shown: str
) -> list[Group]:
    """The metrics of every group: of `metric`, of those compared, and of the table, where these have cases.

    Within a metric, fields come by their largest gap, and so do the groups of a field.

    Args:
      scores: of the row `shown`, by segment.
      groups: see `groups_by`.
    """
    return [
        measured
        for segment, own in scores.items()
        for name in dict.fromkeys([metric, *own.compared, *(own.main or own.metrics)])
        if name in own.cases or name in own.corpus
        for measured in _of_metric(own, name, groups[segment], segment, shown, list(task.subtasks))
    ]


def _of_metric(
    scores: Scores, metric: str, groups: Mapping[str, Groups], segment: str, shown: str, subtasks: Sequence[str]
) -> list[Group]:
    if metric in scores.corpus:  # a mean over all cases may weigh them by their length
        scores = replace(scores, cases={name: each for name, each in scores.cases.items() if name != metric})
        count = scores.corpus[metric].cases
    else:
        count = len(scores.cases[metric])
    tables = []
    for field, own in groups.items():
        rows = []
        for value in own.numbers:
            inside = own.inside(value, metric, count, subtasks)
            if (measured := _measured(scores, metric, inside)) is not None:
                where = {"field": field, "value": value, "among": segment, "metric": metric, "shown": shown}
                rows.append(Group(**{**where, **measured}))  # type: ignore[typeddict-item]
        tables.append(sorted(rows, key=_size, reverse=True))
    tables.sort(key=lambda rows: max(map(_size, rows), default=-1.0), reverse=True)
    return [row for rows in tables for row in rows]


def _size(group: Group) -> float:
    return -1.0 if group["gap"] is None else abs(group["gap"])


def _measured(scores: Scores, metric: str, inside: np.ndarray) -> dict[str, float | int | None] | None:
    """The numbers of a `Group`; None where no case of the group has a value."""
    if metric in scores.cases:
        valued = ~np.isnan(scores.cases[metric])  # NaN: a case without candidates
        if not valued.all():
            every = np.flatnonzero(valued)
            scores, inside = on_cases(scores, metric, every), inside[every]
    if not inside.any():
        return None
    own = on_cases(scores, metric, np.flatnonzero(inside))
    rest = Scores({}) if inside.all() else on_cases(scores, metric, np.flatnonzero(~inside))
    if metric not in own.metrics:
        return None
    mean, interval = own.metrics[metric], Bootstrap().interval(own, metric, n=RESAMPLES)
    gap = mean - rest.metrics[metric] if metric in rest.metrics else None
    ends = None if gap is None else _gap_interval(scores, own, rest, metric, inside)
    low, high = interval or (None, None)
    gap_low, gap_high = ends or (None, None)
    numbers = {"mean": mean, "low": low, "high": high, "gap": gap, "gap_low": gap_low, "gap_high": gap_high}
    return {"cases": int(inside.sum()), **numbers}


def _gap_interval(
    scores: Scores, own: Scores, rest: Scores, metric: str, inside: np.ndarray
) -> tuple[float, float] | None:
    """The 95% interval of the gap; None where one side has a single owner.

    Both sides are resampled independently, by owner. Where an owner has cases on both sides, these go together: owners
    are drawn from all cases.
    """
    owners = scores.owners.get(metric)
    sides = (own.owners.get(metric), rest.owners.get(metric))
    if any(side is not None and (side == side[0]).all() for side in sides):
        return None
    if owners is not None and np.intersect1d(owners[inside], owners[~inside]).size:
        return percentile_interval(resampled(_gap(scores, metric, inside), owners))
    if metric in own.corpus:
        first, second = resampled(own.corpus[metric], sides[0]), resampled(rest.corpus[metric], sides[1], seed=1)
        count = min(len(first), len(second))
        return percentile_interval(first[:count] - second[:count])
    return two_sample_bootstrap(own.cases[metric], rest.cases[metric], owners=sides, n=RESAMPLES)[1:]


def _gap(scores: Scores, metric: str, inside: np.ndarray) -> CorpusMetric:
    """The gap as a metric of all cases; NaN where a side has none."""
    values = scores.cases.get(metric)

    def of(some: np.ndarray) -> float:
        if not len(some):
            return math.nan
        return scores.corpus[metric].value(some) if values is None else float(values[some].mean())

    return CorpusMetric(lambda drawn: of(drawn[inside[drawn]]) - of(drawn[~inside[drawn]]), len(inside))
