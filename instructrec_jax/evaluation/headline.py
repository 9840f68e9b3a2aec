"""The last lines of an evaluation: the metric that counts, beside the other rows, and what it was measured on."""

from collections.abc import Mapping, Sequence

from instructrec_jax.evaluation.evaluator import MeasuredOn, ScoredRow
from instructrec_jax.evaluation.layout import text_width
from instructrec_jax.evaluation.tables import digits, finite, wrapped

INDENT = 13
MOST_SEGMENTS = 4


def headline(
    rows: Sequence[ScoredRow],
    *,
    tuned: str,
    metric: str,
    measured_on: MeasuredOn,
    greater: bool,
    more: str,
    intervals: Mapping[str, tuple[float | None, float | None]] | None = None,
) -> str:
    """Two or more lines.

    Args:
      tuned: name of the row that is reported; the others are `before tuning`, other models and baselines.
      greater: whether a higher value of the metric is better.
      more: where the values of further segments are.
      intervals: 95% intervals of the tuned row, by the names of metrics in the table.
    """
    row = next(each for each in rows if each.name == tuned)
    said = []
    for segment in row.scores:
        low, high = (intervals or {}).get(f"{metric}, {segment}" if segment else metric) or (None, None)
        interval = "" if low is None else f" [{digits(low)}, {digits(high)}]"
        said.append(_of_segment(rows, row, metric, segment, greater, interval))
    if len(said) > MOST_SEGMENTS:
        said = [*said[:MOST_SEGMENTS], f"{len(said) - MOST_SEGMENTS} more in {more}"]
    cases = sum(len(scores.predictions) for scores in row.scores.values())
    on = f"{measured_on} ({cases:,} cases)"
    if "chose" in measured_on:
        on += "; for cases that did not, set data.test"
    named = [("Result", said[0]), *(("", each) for each in said[1:]), ("Measured on", on)]
    return "\n".join(wrapped(text, name.ljust(INDENT), " " * INDENT, text_width()) for name, text in named)


def _of_segment(
    rows: Sequence[ScoredRow], row: ScoredRow, metric: str, segment: str, greater: bool, interval: str
) -> str:
    """The metric of one segment, beside the value before tuning and the best of the other rows."""
    found = {
        each.name: value
        for each in rows
        if segment in each.scores and (value := finite(each.scores[segment].metrics.get(metric))) is not None
    }
    before = found.pop("before tuning", None)
    own = found.pop(row.name, None)
    beside = [] if before is None else [f"before tuning {digits(before)}"]
    for each in rows:
        if each.served and each.name in found:
            beside.append(f"{each.name}, which recommend answers with: {digits(found.pop(each.name))}")
    if found:
        name = (max if greater else min)(found, key=found.__getitem__)
        beside.append(f"best of the others: {name} {digits(found[name])}")
    where = f" on {segment}" if segment else ""
    return f"{metric} {digits(own)}{interval}{where}" + (f" ({'; '.join(beside)})" if beside else "")
