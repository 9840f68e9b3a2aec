"""The tables of an evaluation as terminal text, and the formatting that terminal and report share."""

import math
import re
import textwrap
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import groupby, zip_longest
from typing import NotRequired, TypedDict

from instructrec_jax.evaluation.layout import aligned, fits, fitted, text_width
from instructrec_jax.tasks.answers import Shown, ShownPicture

LOWER_IS_BETTER = {"loss", "mse", "rmse", "mae", "perplexity", "error", "brier", "ece", "wer", "cer", "gini"}
SEGMENTS_AS_TEXT = DIFFERENCES_AS_TEXT = GROUPS_AS_TEXT = 8  # longer lists are in the report
GROUP_COLUMNS = ("cases", "value", "95% interval", "gap", "95% interval")
NARROW = 76  # columns below which verdicts are one word
TIE = "no difference"
PAIRED_HEADING = "Paired differences (95% bootstrap)"
SUBGROUP_HEADING = "Breakdown by subgroup"


class Row(TypedDict):
    """A row of the table: a model or a baseline, with 95% intervals of its values."""

    name: str
    values: NotRequired[dict[str, float | None] | None]
    intervals: NotRequired[dict[str, tuple[float | None, float | None]] | None]
    protocol: NotRequired[str | None]
    note: NotRequired[str | None]


class Difference(TypedDict):
    """A paired difference with its 95% interval."""

    name: str
    metric: str
    mean: float | None
    low: float | None
    high: float | None


class Segment(TypedDict):
    """A subgroup of the cases `among` which it is ("": all): every row's value, and the 95% interval of `shown`.

    Subgroups along an axis have their place on it, and are listed in its order.
    """

    name: str
    among: NotRequired[str]
    axis: NotRequired[str]
    place: NotRequired[str]
    cases: int
    metric: str
    values: dict[str, float | None]
    shown: str
    low: float | None
    high: float | None


class Group(TypedDict):
    """The cases with one value of a field (see `groups`): the metric of the row `shown`, and the gap to all others.

    Attributes:
      among: the segment of the cases; "": all.
      cases: with a value of the metric.
      mean, low, high: on these cases, with the 95% interval.
      gap, gap_low, gap_high: the same minus that on the other cases, with its 95% interval.
    """

    field: str
    value: str
    among: str
    cases: int
    metric: str
    shown: str
    mean: float | None
    low: float | None
    high: float | None
    gap: float | None
    gap_low: float | None
    gap_high: float | None


class Mistake(TypedDict):
    """A wrong answer that several cases got, and the pictures of some of these; see `mistakes.mistakes_of`."""

    reference: str
    prediction: str
    count: int
    instruction: NotRequired[str]
    pictures: list[ShownPicture]


class Evaluation(TypedDict):
    """evaluation.json, see `format_table`; "report" is a longer text, for "charts" see `charts.chart`."""

    split: NotRequired[str | None]
    protocol: NotRequired[str | None]
    metrics: NotRequired[list[str] | None]
    all_metrics: NotRequired[list[str] | None]
    rows: NotRequired[list[Row] | None]
    differences: NotRequired[list[Difference] | None]
    segments: NotRequired[list[Segment] | None]
    groups: NotRequired[list[Group] | None]
    report: NotRequired[str | None]
    charts: NotRequired[dict[str, dict[str, object]] | None]
    mistakes: NotRequired[list[Mistake] | None]


class ShownOutput(TypedDict):
    """An answer to an example."""

    text: object
    score: NotRequired[float | None]
    measure: NotRequired[str | None]
    why: NotRequired[str | None]


class ShownExample(TypedDict):
    """An entry of examples.json, as `format_examples` shows it."""

    instruction: object
    wanted: NotRequired[object]
    answers: NotRequired[list[ShownOutput] | None]
    group: NotRequired[str | None]
    asked: NotRequired[list[str] | None]
    wanted_why: NotRequired[str | None]
    pictures: NotRequired[list[ShownPicture] | None]
    nearest: NotRequired[list[ShownPicture] | None]
    wanted_picture: NotRequired[str | None]


class Skipped(TypedDict):
    """The field of a line of skipped.jsonl that the report shows."""

    reason: NotRequired[str]


class TrainedOn(TypedDict):
    """A source of the data. `examples`: None: of a stream, or not counted; `license`, `language`: []: not stated."""

    split: str
    name: str
    path: str
    examples: int | None
    license: list[str]
    language: list[str]


class Provenance(TypedDict):
    """Where a run comes from, see `runs.provenance`."""

    sources: NotRequired[list[TrainedOn]]
    backbone_license: NotRequired[list[str]]
    device_count: NotRequired[int]


class Summary(Provenance):
    """summary.json."""

    title: NotRequired[str | None]
    subtitle: NotRequired[str | None]  # what was done, with which data, when, by which version
    command: NotRequired[str | None]
    metric: NotRequired[str]  # selects the best checkpoint
    greater_is_better: NotRequired[bool]  # of the metric
    facts: NotRequired[dict[str, object] | None]


def format_table(evaluation: Evaluation, *, width: int | None = None, more: str = "the report") -> str:
    """The table as aligned plain text, the best value of each column marked with *.

    Args:
      evaluation: as in evaluation.json (`Evaluation`):
        "split": the split, for the heading; "protocol": how the metrics were measured; "metrics": names in order;
        "rows": [{"name", "values": {metric: number}, "intervals": {metric: [low, high]}, "note": such as why a
        baseline has no values}], with 95% intervals;
        "differences": [{"name", "metric", "mean", "low", "high"}], paired, with 95% intervals;
        "segments": [{"name", "cases", "metric", "values": {row: number}, "shown": row, "low", "high"}], subgroups of
        the cases with the interval of the row "shown"; "groups": see `Group`; those of the first metric are shown.
      width: characters of a line; None: those of the terminal. A table that is wider has its columns stacked.
      more: where the rest of long lists is.

    A missing value (or null) is shown as –.
    """
    width = width or text_width()
    metrics, rows = list(evaluation.get("metrics") or []), list(evaluation.get("rows") or [])
    best = {metric: best_of(rows, metric) for metric in metrics}
    intervals = with_intervals(rows) & set(metrics)
    lines = aligned(_cells(rows, metrics, best, intervals))
    if not fits(lines, width):  # intervals first: they take more room than the values
        segments = [clean(metric).partition(", ")[2] for metric in metrics]
        sizes = [len(list(same)) for _, same in groupby(segments)] if any(segments) else []
        lines = fitted(_cells(rows, metrics, best, set()), width, sizes)
        lines += [f"95% intervals: {more}"] if intervals else []
    if protocol := clean(evaluation.get("protocol") or ""):
        lines = [*textwrap.wrap(protocol, width), "", *lines]
    if split := clean(evaluation.get("split") or ""):
        lines = [heading(split), *lines]
    if set(best.values()) - {None}:
        lines.append("* best in its column")
    lines += [wrapped(f"{row['name']}: {row['note']}", "", "  ", width) for row in rows if row.get("note")]
    lines += _difference_lines(evaluation.get("differences") or [], width, more)
    lines += _subgroup_lines(evaluation.get("segments") or [], width, more)
    lines += _group_lines(evaluation.get("groups") or [], width, more)
    return "\n".join(line.rstrip() for line in lines)


def _cells(
    rows: Sequence[Row], metrics: Sequence[str], best: Mapping[str, float | None], intervals: Collection[str]
) -> list[list[str]]:
    table: list[list[str]] = [[""]]
    for metric in metrics:
        table[0] += [f"{clean(metric)} ", *(["95% interval"] if metric in intervals else [])]
    for row in rows:
        table.append([clean(row["name"])])
        for metric in metrics:
            value = value_of(row, metric)
            # A blank in place of the mark keeps the decimal points aligned.
            table[-1].append(digits(value) + ("*" if value is not None and value == best[metric] else " "))
            table[-1] += [interval_of(row, metric)] if metric in intervals else []
    return table


def _difference_lines(differences: Sequence[Difference], width: int, more: str) -> list[str]:
    if not differences:
        return []
    agreed, others = _agreed(differences)
    shown = _closest(others, DIFFERENCES_AS_TEXT)
    firsts = {clean(d["name"]).partition(" − ")[0::2] for d in shown}
    tuned = {first for first, other in firsts if other}
    has_one = len(tuned) == 1 and all(other for _, other in firsts)  # what all the others are compared with
    title = f"{PAIRED_HEADING}: {tuned.pop()} minus" if has_one else PAIRED_HEADING
    agreed = [wrapped(line, "", "  ", width) for line in agreed]
    table: list[list[str]] = [
        [
            clean(d["name"]).partition(" − ")[2] if has_one else clean(d["name"]),
            clean(d["metric"]),
            *(["", ""] if verdict(d) == TIE else [signed(d["mean"]), f"[{signed(d['low'])}, {signed(d['high'])}]"]),
            verdict(d),
        ]
        for d in shown
    ]
    lines = aligned(table, left=(0, 1, 4))
    if not fits(lines, width):
        lines = _by_metric(table, width)
    hidden = len(differences) - len(shown)
    rest = [f"{f'all {len(differences)}' if agreed else f'{hidden} more'} in {more}"] if hidden else []
    return ["", wrapped(title, "", "  ", width), *lines, *agreed, *rest]


def _agreed(differences: Sequence[Difference]) -> tuple[list[str], list[Difference]]:
    """(a sentence for each metric with four or more significant differences that all agree, the other differences)."""
    by_metric: dict[str, list[Difference]] = {}
    for each in differences:
        by_metric.setdefault(each["metric"], []).append(each)
    sentences, others = [], []
    for metric, same in by_metric.items():
        verdicts = {verdict(each) for each in same}
        outcome = verdicts.pop()
        if len(same) < 4 or verdicts or not outcome.startswith("significantly"):
            others += same
            continue
        least = min(same, key=lambda each: abs(each["mean"] or 0.0))
        tuned, _, name = least["name"].partition(" − ")
        number = f"{signed(least['mean'])} [{signed(least['low'])}, {signed(least['high'])}]"
        sentences.append(f"{metric}: {tuned} is {outcome} than all {len(same)} others; closest: {name} ({number})")
    return sentences, [each for each in differences if any(each is other for other in others)]


def _by_metric(table: Sequence[Sequence[str]], width: int) -> list[str]:
    """Rows of (name, metric, mean, interval, verdict) below their metrics, with wrapped names."""
    if width < NARROW:
        table = [[*row[:4], re.sub(r"significantly | \(95%\)", "", row[4])] for row in table]
    size = max(14, width - 2 - max(len(line) for line in aligned([row[2:] for row in table], left=(2,))))
    lines = []
    for metric in dict.fromkeys(row[1] for row in table):
        rows = [["", "", "", ""]]  # instead of a header
        for name, _, *numbers in (row for row in table if row[1] == metric):
            first, *others = textwrap.wrap(name, size, initial_indent="  ", subsequent_indent="    ")
            rows.append(["\n".join([first.ljust(size), *others]), *numbers])
        lines += [wrapped(metric, "", "  ", width), *aligned(rows, left=(0, 3))[1:]]
    return lines


def _closest(differences: Sequence[Difference], most: int) -> list[Difference]:
    """At most `most` differences, in their order: first the least favorable one of each metric, then the next ..."""

    def advantage(difference: Difference) -> float:
        mean = finite(difference["mean"]) or 0.0
        return -mean if lower_is_better(difference["metric"]) else mean

    by_metric: dict[str, list[Difference]] = {}
    for each in sorted(differences, key=advantage):
        by_metric.setdefault(each["metric"], []).append(each)
    ranked = [each for places in zip_longest(*by_metric.values()) for each in places if each is not None]
    chosen = {id(each) for each in ranked[:most]}
    return [each for each in differences if id(each) in chosen]


def _subgroup_lines(segments: Sequence[Segment], width: int, more: str) -> list[str]:
    if not segments:
        return []
    title = f"{SUBGROUP_HEADING}: {segments[0]['metric']} of {segments[0]['shown']}"
    if len(segments) > SEGMENTS_AS_TEXT:
        return ["", wrapped(f"{title}: {len(segments)} subgroups in {more}", "", "  ", width)]
    head = ["", "cases", "value", "95% interval"]
    table = [
        [
            clean(part["name"]),
            f"{part['cases']:,}",
            digits(value_of(part, part["shown"])),
            f"[{digits(part['low'])}, {digits(part['high'])}]",
        ]
        for part in segments
    ]
    lines = fitted([head, *table], width, [3])
    return ["", wrapped(title, "", "  ", width), *lines]


def _group_lines(groups: Sequence[Group], width: int, more: str) -> list[str]:
    """A table for each field, of the first metric; all metrics are in the file `more`."""
    lines: list[str] = []
    for title, rows in group_tables(groups):
        if rows[0]["metric"] != groups[0]["metric"]:
            continue
        table = [["", *GROUP_COLUMNS], *([clean(part["value"]), *group_cells(part)] for part in rows[:GROUPS_AS_TEXT])]
        lines += ["", wrapped(title, "", "  ", width), *fitted(table, width, [3, 2])]
        if hidden := len(rows) - GROUPS_AS_TEXT:
            lines += [f"{hidden} more in {more}"] if hidden > 0 else []
    return lines


def group_tables(groups: Sequence[Group]) -> list[tuple[str, list[Group]]]:
    """(title, rows) of each table of groups: those of one metric, field and segment."""
    tables: dict[str, list[Group]] = {}
    for part in groups:
        among = f", {part['among']}" if part["among"] else ""
        title = f"By {part['field']}: {part['metric']}{among} of {part['shown']}, and the gap to all other cases"
        tables.setdefault(title, []).append(part)
    return list(tables.items())


def group_cells(part: Group) -> list[str]:
    """The cells under `GROUP_COLUMNS`."""

    def interval(low: object, high: object, form: Callable[[object], str]) -> str:
        return "–" if finite(low) is None else f"[{form(low)}, {form(high)}]"

    mean, gap = interval(part["low"], part["high"], digits), interval(part["gap_low"], part["gap_high"], signed)
    return [f"{part['cases']:,}", digits(part["mean"]), mean, signed(part["gap"]), gap]


def heading(split: str) -> str:
    """The heading of the table, for terminal and report."""
    return f"Results on {split}"


def format_examples(examples: Iterable[Shown], *, width: int | None = None) -> str:
    """Instructions and their answers as plain text, best answer first, the target marked with *.

    Args:
      width: characters of a line; None: those of the terminal.
    """
    width = width or text_width()
    blocks = []
    for example in examples:
        lines = [f"{clean(example['group'])}:"] if example.get("group") else []
        lines.append(wrapped(f"“{example['instruction']}”", "", " ", width))
        target = "    target: "
        wanted = example["wanted"]
        if asked := example.get("asked"):
            lines.append(wrapped(", ".join(asked), " asked for: ", " " * 12, width))
        for number, answer in enumerate(example["answers"], 1):
            mark = "*" if answer["text"] == wanted else " "
            text, score = with_why(answer["text"], answer.get("why")), digits(answer.get("score"))
            if measure := answer.get("measure"):
                target = "  target: "
                lines.append(wrapped(f"{text}  ({measure} {score})", f"{mark} answer: ", " " * 12, width))
            else:
                lines.append(wrapped(text, f"{mark}{number:>2}. {score:>8}  ", " " * 15, width))
        if wanted is not None:
            lines.append(wrapped(with_why(wanted, example.get("wanted_why")), target, " " * 12, width))
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def with_why(text: object, why: object) -> str:
    """An answer with the facts that match the instruction."""
    return f"{text}  ({why})" if why else str(text)


# ---- formatting ---------------------------------------------------------------------------------------


def clean(value: object, keep: str = "") -> str:
    """Text without control characters and lone surrogates, which could steer a terminal or break a page."""
    return "".join(c if c.isprintable() or c in keep else " " if c.isspace() else "�" for c in str(value))


def finite(value: object) -> float | None:
    """The value as float; None for a missing, null, infinite or NaN value."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def value_of(row: Row | Segment, metric: str) -> float | None:
    return finite((row.get("values") or {}).get(metric))


def digits(value: object) -> str:
    number = finite(value)
    if number is None:
        return "–"
    return f"{number:,.4f}" if abs(number) < 100 else f"{number:,.1f}"


def signed(value: object) -> str:
    text = digits(value)
    return text if text.startswith(("-", "–")) else f"+{text}"


def with_intervals(rows: Sequence[Row]) -> set[str]:
    """The metrics for which some row has an interval."""
    return {metric for row in rows for metric in row.get("intervals") or {}}


def interval_of(row: Row, metric: str) -> str:
    low, high = (row.get("intervals") or {}).get(metric) or (None, None)
    return "–" if low is None else f"{digits(low)} to {digits(high)}"


def lower_is_better(metric: str) -> bool:
    """Whether a lower value of the metric is better; its name may have a prefix ('test/mse') or name a subtask or
    segment ('loss (qa)', 'loss, qa')."""
    name = re.split(r", | \(", metric.lower())[0]
    return re.split("[-_/]", name.partition("@")[0])[-1] in LOWER_IS_BETTER


def best_of(rows: Sequence[Row], metric: str) -> float | None:
    """The best value of a column; None without two different values."""
    values = {value for row in rows if (value := value_of(row, metric)) is not None}
    if len(values) < 2:
        return None
    return min(values) if lower_is_better(metric) else max(values)


def verdict(difference: Difference) -> str:
    """The outcome of a paired comparison by its 95% interval: significant where the interval excludes 0."""
    low, high = finite(difference.get("low")), finite(difference.get("high"))
    if low is None or high is None:
        return "no interval"
    if low == high == 0:
        return TIE
    if low <= 0 <= high:
        return "not significant"
    better = (high < 0) == lower_is_better(difference["metric"])
    return "significantly better (95%)" if better else "significantly worse (95%)"


def wrapped(text: str, first: str, rest: str, width: int) -> str:
    """Text in lines of `width` characters, after `first` on the first line and `rest` on the others."""
    return textwrap.fill(clean(text), width, initial_indent=first, subsequent_indent=rest)
