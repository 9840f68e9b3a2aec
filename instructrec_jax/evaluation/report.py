"""The report of a run: report.html, one file that needs no network and no JavaScript.

All content comes from files in the run directory; the section of a missing file names that file. The page is
templates/report.html.jinja, which escapes every value and forbids scripts and requests. This module prepares the
template's variables.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TypedDict, TypeVar

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from instructrec_jax.data.media.thumbnails import START
from instructrec_jax.evaluation import tables
from instructrec_jax.evaluation.behavior import Behavior
from instructrec_jax.evaluation.charts import LINES_PER_PLOT, chart, line_plot, subgroup_plot
from instructrec_jax.evaluation.doubts import Uncertainty
from instructrec_jax.evaluation.explained import Explanations
from instructrec_jax.evaluation.tables import (
    PAIRED_HEADING,
    SUBGROUP_HEADING,
    Difference,
    Evaluation,
    Group,
    Row,
    Segment,
    ShownExample,
    Skipped,
    Summary,
    best_of,
    clean,
    finite,
    heading,
    lower_is_better,
    value_of,
    verdict,
)
from instructrec_jax.evaluation.terms import terms_in
from instructrec_jax.files import read_json, read_jsonl, write_text
from instructrec_jax.training.tracking import TIMING_FIELDS, read_metrics

T = TypeVar("T")

GROUPS = "groups.json"


class KeptGroups(TypedDict):
    """groups.json: what `evaluate --by` measured last, on which sources; see `tables.Group`."""

    split: str
    sources: list[str]
    groups: list[Group]


MetricRows = Sequence[Mapping[str, object]]  # of metrics.jsonl


def write_report(run_dir: str | Path) -> Path:
    """Writes report.html into a run directory from its other files; returns the path.

    Reads, where present: summary.json (see `tables.Summary`); evaluation.json (see
    `tables.format_table`) with "report", a longer text; metrics.jsonl (see `Tracker`); examples.json (see
    `tables.format_examples`); skipped.jsonl, rows with a "reason"; config.yaml.

    Raises ValueError, naming the file, where one is malformed.
    """
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise ValueError(f"{run_dir} is not a run directory: there is no such folder.")
    summary: Summary = _json(run_dir / "summary.json", Summary) or {}
    evaluation: Evaluation = _json(run_dir / "evaluation.json", Evaluation) or {}
    rows, names, split = evaluation.get("rows") or [], evaluation.get("metrics") or [], evaluation.get("split")
    metrics = run_dir / "metrics.jsonl"
    logged = read_metrics(metrics) if metrics.exists() else []
    config = run_dir / "config.yaml"
    folder = run_dir.resolve().name
    drawn = "".join(chart(name, data) for name, data in (evaluation.get("charts") or {}).items())
    page = (
        environment()
        .get_template("report.html.jinja")
        .render(
            title=str(summary.get("title") or folder),
            subtitle=summary.get("subtitle") or "",
            command=summary.get("command") or "",
            folder=folder,
            leads=_leads(rows, names),
            paired_heading=PAIRED_HEADING,
            subgroup_heading=SUBGROUP_HEADING,
            picture_start=START,
            results_heading=heading(split) if split else "Results",
            evaluation={**evaluation, "rows": rows, "metrics": names},
            columns=_columns(rows, names if rows else []),
            all_columns=_columns(rows, evaluation.get("all_metrics") or []),
            terms=terms_in([row["name"] for row in rows] + names + (evaluation.get("all_metrics") or [])),
            compared=_compared(evaluation.get("differences") or []),
            differences=_differences(evaluation.get("differences") or []),
            **_subgroups(evaluation.get("segments") or []),
            charts=Markup(drawn),
            facts={**(summary.get("facts") or {}), **_programs(logged)},
            skipped=_skipped(_jsonl(run_dir / "skipped.jsonl", Skipped)),
            by_group=_by_group(_json(run_dir / GROUPS, KeptGroups)),
            doubts=_json(run_dir / "uncertainty.json", Uncertainty),
            explained=_json(run_dir / "explanations.json", Explanations),
            behavior=_json(run_dir / "robustness.json", Behavior),
            examples=_json(run_dir / "examples.json", list[ShownExample]) or [],
            settings=config.read_text(encoding="utf-8", errors="replace") if config.exists() else "",
            **_training(logged, _before_tuning(evaluation)),
        )
    )
    return write_text(run_dir / "report.html", page)


@cache  # compiling the template takes most of a small report's time
def environment() -> Environment:
    """Of the room's templates: every value is escaped, and control characters are removed."""
    environment = Environment(
        loader=PackageLoader("instructrec_jax.evaluation"),
        autoescape=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        finalize=lambda value: value if isinstance(value, Markup) else clean(value, keep="\n\t"),
    )
    names = ("digits", "signed", "finite", "value_of", "interval_of")
    environment.filters |= {name: getattr(tables, name) for name in names} | {"best_value": _best_value}
    return environment


def _json(path: Path, kind: type[T]) -> T | None:
    return read_json(path, kind) if path.exists() else None


def _jsonl(path: Path, kind: type[T]) -> list[T]:
    return read_jsonl(path, kind) if path.exists() else []


# ---- results -------------------------------------------------------------------------------------------


def _leads(rows: Sequence[Row], metrics: Sequence[str]) -> list[dict[str, object]]:
    """The headline of the first metric, of each group of cases: its best and second-best row, where they differ."""
    first = metrics[0].partition(", ")[0] if metrics else ""
    leads = []
    for metric in (name for name in metrics if name.partition(", ")[0] == first):
        scored = [(value, row["name"]) for row in rows if (value := value_of(row, metric)) is not None]
        scored.sort(key=lambda pair: pair[0], reverse=not lower_is_better(metric))
        if len(scored) < 2 or scored[0][0] == scored[1][0]:
            continue
        (best, name), (second, next_name) = scored[:2]
        ratio = best / second if second > 0 and not lower_is_better(metric) else 0
        ahead = f"{ratio:.1f} times the next" if ratio >= 1.05 else "ahead of the next"
        leads.append(
            {"metric": metric, "name": name, "value": best, "ahead": ahead, "next": next_name, "next_value": second}
        )
    return leads


def _columns(rows: Sequence[Row], metrics: Sequence[str]) -> list[dict[str, object]]:
    known = tables.with_intervals(rows)
    return [{"metric": m, "best": best_of(rows, m), "has_intervals": m in known} for m in metrics]


def _compared(differences: Sequence[Difference]) -> str:
    """The row that all others are compared with; "" where there is no such row."""
    firsts = {each["name"].partition(" − ")[0] if " − " in each["name"] else "" for each in differences}
    return firsts.pop() if len(firsts) == 1 else ""


def _differences(differences: Sequence[Difference]) -> list[dict[str, object]]:
    """Each difference with its verdict, the verdict's CSS class, and its interval bar in percent of the axis."""
    shown: list[dict[str, object]] = []
    compared = _compared(differences)
    for each in differences:
        low, high, mean = (finite(each.get(key)) for key in ("low", "high", "mean"))
        bar = None
        if low is not None and high is not None and mean is not None:
            # Metrics differ in scale, so each has its own axis, which spans zero and all intervals.
            same = [other for other in differences if other["metric"] == each["metric"]]
            ends = [x for other in same for key in ("low", "high") if (x := finite(other.get(key))) is not None]
            first, last = min(0.0, *ends), max(0.0, *ends)
            percent = 96 / (last - first or 1.0)
            zero, start, stop, dot = (2 + (x - first) * percent for x in (0.0, low, high, mean))
            places = {"zero": zero, "start": start, "width": stop - start, "dot": dot}
            bar = {name: f"{place:.1f}" for name, place in places.items()}
        outcome = verdict(each)
        mark = next((word for word in ("better", "worse") if word in outcome), "neutral")
        name = each["name"].partition(" − ")[2] if compared else each["name"]
        shown.append({**each, "name": name, "verdict": outcome, "mark": mark, "bar": bar})
    return shown


def _subgroups(segments: Sequence[Segment]) -> dict[str, object]:
    """A plot of the subgroups along each axis, with those of all phrasings side by side; tables of all subgroups."""
    plotted = [part for part in segments if part.get("axis")]
    plots, gray = "", False
    for axis in dict.fromkeys(part.get("axis", "") for part in plotted):
        along = [part for part in plotted if part.get("axis") == axis]
        others = _others(along)
        colored = _best_rows(along, others)[: LINES_PER_PLOT - 1]
        gray = gray or len(others) > len(colored)
        known = [x for part in along for x in (finite(part["low"]), finite(part["high"])) if x is not None]
        known += [x for part in along for who in part["values"] if (x := value_of(part, who)) is not None]
        low, high = min([0.0, *known]), max(known, default=1.0)
        ends = low, high + 0.05 * (high - low)
        for among in dict.fromkeys(part.get("among", "") for part in along):
            title = f"{along[0]['metric']}, {among}" if among else along[0]["metric"]
            plots += subgroup_plot(title, [part for part in along if part.get("among", "") == among], colored, ends)
    return {
        "others": _others(segments),
        "subgroups": [part for part in segments if not part.get("axis")],
        "plotted": plotted,
        "subgroup_plots": Markup(plots),
        "has_gray": gray,
    }


def _others(segments: Sequence[Segment]) -> list[str]:
    """The names of the rows beside the one whose intervals the subgroup table shows."""
    return list(dict.fromkeys(who for part in segments for who in part["values"] if who != part["shown"]))


def _best_rows(segments: Sequence[Segment], names: Sequence[str]) -> list[str]:
    """The rows by their mean over the subgroups, best first, without those that have no value."""
    values = {who: [value for part in segments if (value := value_of(part, who)) is not None] for who in names}
    means = {who: sum(own) / len(own) for who, own in values.items() if own}
    return sorted(means, key=means.__getitem__, reverse=not lower_is_better(segments[0]["metric"]))


def _best_value(part: Segment) -> float | None:
    return max((value for who in part["values"] if (value := value_of(part, who)) is not None), default=None)


def _by_group(kept: KeptGroups | None) -> dict[str, object] | None:
    """The tables of groups: those of the first metric, and those of the others."""
    if kept is None or not kept["groups"]:
        return None
    made = [
        {
            "title": title,
            "metric": rows[0]["metric"],
            "rows": [[row["value"], *tables.group_cells(row)] for row in rows],
        }
        for title, rows in tables.group_tables(kept["groups"])
    ]
    first = kept["groups"][0]["metric"]
    return {
        "heading": f"{heading(kept['split'])} ({', '.join(kept['sources'])})",
        "columns": tables.GROUP_COLUMNS,
        "first": [each for each in made if each["metric"] == first],
        "others": [each for each in made if each["metric"] != first],
    }


def _skipped(rows: Sequence[Skipped]) -> dict[str, object] | None:
    counts = Counter(str(row.get("reason", "no reason given")) for row in rows)
    return {"total": len(rows), "reasons": counts.most_common()} if rows else None


# ---- curves --------------------------------------------------------------------------------------------


def _before_tuning(evaluation: Evaluation) -> Mapping[str, float | None]:
    """The metrics at step 0, where the table has the cases of the evaluations while training (data.validation)."""
    if not (evaluation.get("split") or "").startswith("validation"):
        return {}
    return next((row["values"] or {} for row in evaluation.get("rows") or [] if row["name"] == "before tuning"), {})


def _programs(rows: MetricRows) -> dict[str, str]:
    """What was compiled while the run trained, since its last start; {} for a run that did not count it."""
    row = next((row for row in reversed(rows) if row.get("kind") == "train" and "compilations" in row), {})
    shapes, compiled = finite(row.get("step_shapes")), finite(row.get("compilations"))
    if shapes is None or compiled is None:
        return {}
    return {"compiled": f"{compiled:,.0f} programs, the step for {shapes:,.0f} shape{'s' * (shapes != 1)} of batches"}


def _training(rows: MetricRows, before: Mapping[str, float | None]) -> dict[str, object]:
    """The plots, the number of logged steps, and how many of them had no finite loss."""
    train = [row for row in rows if row.get("kind") == "train"]
    evaluations = [row for row in rows if row.get("kind") == "evaluation"]
    if evaluations:
        evaluations = [{"step": 0} | {name: before[name] for name in evaluations[0] if name in before}, *evaluations]
    plots = _plots(train, evaluations) if train or evaluations else ""
    lost = sum(row.get("loss", 0) is None for row in train)
    return {"plots": Markup(plots), "logged": len(train) or len(evaluations), "lost": lost}


def _plots(train: MetricRows, evaluations: MetricRows) -> str:
    other = {"kind", "step", *TIMING_FIELDS}
    names = list(dict.fromkeys(name for row in evaluations for name in row if name not in other))
    # Metrics in [0, 1] share plots; every other metric has its own.
    shares = [n for n in names if all(0 <= v <= 1 for _, v in _curve(evaluations, n)) and not lower_is_better(n)]
    groups = [shares[i : i + LINES_PER_PLOT] for i in range(0, len(shares), LINES_PER_PLOT)]
    groups += [[name] for name in names if name not in shares and name != "loss"]

    loss = {"training": _curve(train, "loss"), "evaluation": _curve(evaluations, "loss")}
    plots = [line_plot("Loss", loss, smooth="training")]
    for group in groups:
        title = group[0] if len(group) == 1 else "Evaluation metrics"
        plots.append(line_plot(title, {name: _curve(evaluations, name) for name in group}))
    plots.append(line_plot("Learning rate", {"learning rate": _curve(train, "learning_rate")}))
    plots.append(
        line_plot(
            "Tokens per second (padding excluded)", {"tokens/s": _curve(train, "tokens_per_second")}, from_zero=True
        )
    )
    waits = {part: _curve(train, f"{part}_share") for part in ("input", "checkpoint", "logging")}
    plots.append(line_plot("Share of time outside of training steps", waits, from_zero=True))
    return "".join(plots)


def _curve(rows: MetricRows, name: str) -> list[tuple[int, float]]:
    points = ((row["step"], finite(row.get(name))) for row in rows)
    return [(step, value) for step, value in points if isinstance(step, int) and value is not None]
