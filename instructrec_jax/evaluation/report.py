"""The report of a run: report.html, one file that needs no network and no JavaScript.

Everything shown comes from files in the run directory; a file that is not there is named where its section
would be. Every text is escaped, and the page forbids itself scripts and any request.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from instructrec_jax.evaluation.charts import LINES_PER_PLOT, chart, line_plot
from instructrec_jax.evaluation.tables import (
    best_of,
    clean,
    digits,
    finite,
    interval_of,
    lower_is_better,
    signed,
    value_of,
    verdict,
    with_intervals,
)
from instructrec_jax.files import read_json, read_jsonl, write_text
from instructrec_jax.training.tracking import TIMING_FIELDS

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def write_report(run_dir: str | Path) -> Path:
    """Write report.html into a run directory from what lies there; returns its path.

    Read, each if present: summary.json {"title", "facts": {label: value}}; evaluation.json (see
    `tables.format_table`) with "report", a longer text; metrics.jsonl (see `Tracker`); examples.json (see
    `tables.format_examples`); skipped.jsonl, rows with a "reason"; config.yaml. A file that is there but broken is a
    ValueError that names it.
    """
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise ValueError(f"{run_dir} is not a run directory: there is no such folder.")
    summary = _json(run_dir / "summary.json") or {}
    evaluation = _json(run_dir / "evaluation.json") or {}
    examples = _json(run_dir / "examples.json") or []
    rows = read_jsonl(run_dir / "metrics.jsonl") if (run_dir / "metrics.jsonl").exists() else []
    skipped = read_jsonl(run_dir / "skipped.jsonl") if (run_dir / "skipped.jsonl").exists() else []
    config = run_dir / "config.yaml"

    title = str(summary.get("title") or run_dir.resolve().name)
    sections = [
        ("Results", _results(evaluation)),
        ("What was run", _facts(summary.get("facts") or {}) + _skipped(skipped)),
        ("Training", _plots(rows)),
        ("Examples", _examples(examples)),
        ("Settings", _settings(config.read_text(encoding="utf-8") if config.exists() else "")),
    ]
    body = "\n".join(f"<section>\n<h2>{name}</h2>\n{content}\n</section>" for name, content in sections)
    lead = _headline(evaluation)
    page = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{_html(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<main>
<header>
<h1>{_html(title)}</h1>
{f'<p class="lead">{lead}</p>' if lead else ""}
</header>
{body}
<footer>Written by instructrec_jax from the files in the run directory
<code>{_html(run_dir.resolve().name)}</code>.</footer>
</main>
</body>
</html>
"""
    return write_text(run_dir / "report.html", page)


def _json(path: Path) -> Any:
    return read_json(path) if path.exists() else None


def _html(value: Any) -> str:
    return escape(clean(value, keep="\n\t"))


# ---- sections ------------------------------------------------------------------------------------------


def _headline(evaluation: Mapping[str, Any]) -> str:
    """The outcome in one sentence: who is best on the first metric, and who comes next."""
    metrics, rows = evaluation.get("metrics") or [], evaluation.get("rows") or []
    if not metrics:
        return ""
    metric = metrics[0]
    scored = [(value, row["name"]) for row in rows if (value := value_of(row, metric)) is not None]
    scored.sort(key=lambda pair: pair[0], reverse=not lower_is_better(metric))
    if len(scored) < 2 or scored[0][0] == scored[1][0]:
        return ""
    (first, name), (second, next_name) = scored[:2]
    ratio = first / second if second > 0 and not lower_is_better(metric) else 0
    times = f", {ratio:.1f} times the next" if ratio >= 1.05 else ", ahead of the next"
    return (
        f"Best {_html(metric)}: <strong>{_html(name)}</strong> with <strong>{digits(first)}</strong>{times} "
        f"({_html(next_name)}, {digits(second)})."
    )


def _results(evaluation: Mapping[str, Any]) -> str:
    metrics, rows = evaluation.get("metrics") or [], evaluation.get("rows") or []
    if not metrics or not rows:
        return _missing("No evaluation yet: this folder has no evaluation.json with results in it.")
    parts = [
        f"<p>{_html(protocol)}</p>" if (protocol := evaluation.get("protocol")) else "",
        _comparison(rows, metrics, with_intervals(rows)),
        _differences(evaluation.get("differences") or []),
        _segments(evaluation.get("segments") or []),
    ]
    everything = evaluation.get("all_metrics") or []
    if len(everything) > len(metrics):
        parts.append(f"<details><summary>All metrics</summary>{_comparison(rows, everything, set())}</details>")
    charts = "".join(chart(name, data) for name, data in (evaluation.get("charts") or {}).items())
    if charts:
        parts.append(f'<div class="plots">{charts}</div>')
    if report := evaluation.get("report"):
        parts.append(f"<details><summary>Full evaluation report</summary><pre>{_html(report)}</pre></details>")
    return "\n".join(part for part in parts if part)


def _comparison(rows: Sequence[Mapping[str, Any]], metrics: Sequence[str], intervals: set[str]) -> str:
    """The rows as a table, the best of each column marked; with the intervals of some metrics beside them."""
    best = {metric: best_of(rows, metric) for metric in metrics}
    names = [name for metric in metrics for name in (metric, *(["95% interval"] if metric in intervals else []))]
    head = "".join(f'<th scope="col">{_html(name)}</th>' for name in names)
    lines = []
    for row in rows:
        cells = ""
        for metric in metrics:
            value = value_of(row, metric)
            mark = ' class="best"' if value is not None and value == best[metric] else ""
            cells += f"<td{mark}>{digits(value)}</td>"
            cells += f"<td>{interval_of(row, metric)}</td>" if metric in intervals else ""
        lines.append(f'<tr><th scope="row">{_html(row["name"])}</th>{cells}</tr>')
    note = '<p class="note">★ best in its column</p>' if set(best.values()) - {None} else ""
    return (
        f'<div class="scroll"><table><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>\n{note}"
    )


def _segments(segments: Sequence[Mapping[str, Any]]) -> str:
    """Parts of the cases: one row each, one column a contender."""
    if not segments:
        return ""
    metric, shown = segments[0]["metric"], segments[0]["shown"]
    others = list(dict.fromkeys(who for part in segments for who in part["values"] if who != shown))
    head = "".join(f'<th scope="col">{_html(name)}</th>' for name in ("cases", shown, "95% interval", *others))
    lines = []
    for part in segments:
        best = max((value for who in (shown, *others) if (value := value_of(part, who)) is not None), default=None)
        values = {who: value_of(part, who) for who in (shown, *others)}
        cells = [
            f"<td{' class=best' if value is not None and value == best else ''}>{digits(value)}</td>"
            for value in values.values()
        ]
        cells.insert(1, f"<td>{digits(part['low'])} to {digits(part['high'])}</td>")
        lines.append(f'<tr><th scope="row">{_html(part["name"])}</th><td>{part["cases"]:,}</td>{"".join(cells)}</tr>')
    return f"""<h3>{_html(metric)} on parts of the cases</h3>
<div class="scroll"><table class="segments"><thead><tr><th></th>{head}</tr></thead>
<tbody>{"".join(lines)}</tbody></table></div>
<p class="note">★ best of its row. Parts overlap: each case is in several.</p>"""


def _differences(differences: Sequence[Mapping[str, Any]]) -> str:
    if not differences:
        return ""
    lines = []
    for d in differences:
        low, high, mean = (finite(d.get(key)) for key in ("low", "high", "mean"))
        bar, interval = "", "–"
        if low is not None and high is not None and mean is not None:
            interval = f"{signed(low)} to {signed(high)}"
            # Metrics differ in scale, so each has its own axis: zero and all its intervals.
            same = [e for e in differences if e["metric"] == d["metric"]]
            ends = [
                0.0,
                *(x for e in same for key in ("low", "high") if (x := finite(e.get(key))) is not None),
            ]
            percent = 96 / (max(ends) - min(ends) or 1.0)
            zero, start, stop, dot = (2 + (x - min(ends)) * percent for x in (0.0, low, high, mean))
            bar = (
                f'<span class="zero" style="left:{zero:.1f}%"></span>'
                f'<span class="span" style="left:{start:.1f}%;width:{stop - start:.1f}%"></span>'
                f'<span class="dot" style="left:{dot:.1f}%"></span>'
            )
        said = verdict(d)
        lines.append(
            f'<tr><th scope="row">{_html(d["name"])}</th><td class="word">{_html(d["metric"])}</td>'
            f"<td>{signed(d.get('mean'))}</td><td>{interval}</td>"
            f'<td class="interval"><div aria-hidden="true">{bar}</div></td>'
            f'<td class="word {said.split()[-1]}">{said}</td></tr>'
        )
    names = ("metric", "difference", "95% interval", "", "")
    head = "".join(f'<th scope="col"{" class=word" * (name == "metric")}>{name}</th>' for name in names)
    return f"""<h3>How sure are the differences?</h3>
<div class="scroll"><table class="differences"><thead><tr><th></th>{head}</tr></thead>
<tbody>{"".join(lines)}</tbody></table></div>
<p class="note">Paired on the same test cases. An interval that includes zero may be chance.</p>"""


def _facts(facts: Mapping[str, Any]) -> str:
    if not facts:
        return _missing("No start-up summary: there is no summary.json in this folder.")
    pairs = "".join(f"<div><dt>{_html(label)}</dt><dd>{_html(value)}</dd></div>" for label, value in facts.items())
    return f"<dl>{pairs}</dl>"


def _skipped(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return ""
    counts = Counter(str(row.get("reason", "no reason given")) for row in rows).most_common()
    items = "".join(f"<li>{count:,} × {_html(reason)}</li>" for reason, count in counts[:20])
    rest = f"<li>and {len(counts) - 20:,} further reasons</li>" if len(counts) > 20 else ""
    return f"""
<div class="warning"><p><strong>{len(rows):,} broken example{"s" * (len(rows) > 1)} left out</strong>
(listed in <code>skipped.jsonl</code>):</p><ul>{items}{rest}</ul></div>"""


def _examples(examples: Sequence[Mapping[str, Any]]) -> str:
    if not examples:
        return _missing("No examples: there is no examples.json in this folder.")
    cards = []
    for example in examples:
        wanted = example.get("wanted")
        answers = example.get("answers") or []
        items = []
        for answer in answers:
            hit = wanted is not None and answer["text"] == wanted
            score = "" if finite(answer.get("score")) is None else f"<span>{digits(answer['score'])}</span>"
            items.append(f"<li{' class=hit' if hit else ''}><div><b>{_html(answer['text'])}</b>{score}</div></li>")
        found = any(answer["text"] == wanted for answer in answers)
        note = "" if wanted is None else f'<p class="note">{"★ " if found else ""}wanted: {_html(wanted)}</p>'
        listed = f"<ol>{''.join(items)}</ol>" if items else _missing("No answer.")
        cards.append(f"<article><blockquote>{_html(example['instruction'])}</blockquote>{listed}{note}</article>")
    return f'<div class="cards">{"".join(cards)}</div>'


def _settings(config: str) -> str:
    if not config:
        return _missing("No settings: there is no config.yaml in this folder.")
    return f"<details><summary>config.yaml, all settings as used</summary><pre>{_html(config)}</pre></details>"


def _missing(sentence: str) -> str:
    return f'<p class="missing">{sentence}</p>'


# ---- curves --------------------------------------------------------------------------------------------


def _plots(rows: Sequence[Mapping[str, Any]]) -> str:
    train = [row for row in rows if row.get("kind") == "train"]
    evaluations = [row for row in rows if row.get("kind") == "evaluation"]
    if not train and not evaluations:
        return _missing("No curves: there is no metrics.jsonl in this folder, or no step was logged.")
    other = {"kind", "step", *TIMING_FIELDS}
    names = list(dict.fromkeys(name for row in evaluations for name in row if name not in other))
    # Shares of one lie on one scale and go together; everything else has a plot of its own.
    shares = [n for n in names if all(0 <= v <= 1 for _, v in _curve(evaluations, n)) and not lower_is_better(n)]
    groups = [shares[i : i + LINES_PER_PLOT] for i in range(0, len(shares), LINES_PER_PLOT)]
    groups += [[name] for name in names if name not in shares and name != "loss"]

    loss = {"training": _curve(train, "loss"), "evaluation": _curve(evaluations, "loss")}
    plots = [line_plot("Loss", loss, smooth="training")]
    for group in groups:
        title = group[0] if len(group) == 1 else "Evaluation metrics"
        plots.append(line_plot(title, {name: _curve(evaluations, name) for name in group}))
    plots.append(line_plot("Learning rate", {"learning rate": _curve(train, "learning_rate")}))
    plots.append(line_plot("Real tokens per second", {"tokens/s": _curve(train, "tokens_per_second")}, from_zero=True))
    waits = {part: _curve(train, f"{part}_share") for part in ("input", "checkpoint", "logging")}
    plots.append(line_plot("Share of the time not spent on steps", waits, from_zero=True))
    content = f'<div class="plots">{"".join(plots)}</div>'
    if lost := sum(row.get("loss", 0) is None for row in train):
        sentence = f"The loss was not a finite number in {lost:,} of {len(train):,} logged steps."
        content += f'<p class="warning">{sentence}</p>'
    return content


def _curve(rows: Sequence[Mapping[str, Any]], name: str) -> list[tuple[int, float]]:
    return [(row["step"], value) for row in rows if (value := finite(row.get(name))) is not None]


STYLE = """
:root {
  color-scheme: light;
  --ink: #1d2430; --soft: #5c6675; --line: #e3e6ea; --accent: #1f5fbf; --tint: #eef4fd;
  --mono: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
}
* { box-sizing: border-box; }
body {
  margin: 0; background: #f5f6f8; color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
main { max-width: 1060px; margin: 0 auto; padding: 40px 24px; overflow-wrap: anywhere; }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 8px; letter-spacing: -0.01em; }
h2 { font-size: 20px; margin: 0 0 12px; }
h3 { font-size: 16px; margin: 28px 0 8px; }
p { margin: 0 0 12px; max-width: 75ch; }
.lead { font-size: 18px; color: var(--soft); }
.lead strong { color: var(--ink); }
section {
  background: #fff; border: 1px solid var(--line); border-radius: 10px; padding: 24px; margin: 20px 0;
}
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th, td { padding: 8px 12px; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
thead th { font-size: 14px; font-weight: 600; color: var(--soft); border-bottom: 2px solid var(--line); }
tbody th { text-align: left; font-weight: 500; white-space: normal; min-width: 9em; padding-left: 0; }
.differences tbody th { min-width: 15em; }
.segments tbody th { min-width: 18em; }
.segments th, .segments td { padding-top: 4px; padding-bottom: 4px; }
.word { text-align: left; }
.best { font-weight: 700; color: var(--accent); background: var(--tint); }
.best::before { content: "★ "; }
.interval { width: 18%; min-width: 100px; }
.interval div { position: relative; height: 14px; }
.interval span { position: absolute; }
.zero { top: -8px; bottom: -8px; width: 1px; background: #98a1ae; }
.span { top: 6px; height: 3px; min-width: 2px; background: var(--accent); border-radius: 2px; }
.dot { top: 3px; width: 9px; height: 9px; margin-left: -4px; border-radius: 50%; background: var(--accent); }
.better { color: #1d7a4b; }
.worse { color: #b3401a; }
.chance { color: var(--soft); }
.note { font-size: 14px; color: var(--soft); margin: 8px 0 0; }
.missing { color: var(--soft); font-style: italic; margin: 0; }
.warning {
  background: #fff7e6; border: 1px solid #f1dca7; border-radius: 8px;
  padding: 12px 16px; margin: 16px 0 0; max-width: none;
}
.warning p { margin: 0; }
.warning ul { margin: 4px 0 0; padding-left: 20px; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(220px, 1fr)); gap: 14px 24px; margin: 0; }
dt { font-size: 13px; color: var(--soft); }
dd { margin: 0; font-weight: 500; }
.plots, .cards {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); gap: 20px;
}
.plots img { width: 100%; max-width: 640px; height: auto; display: block; }
article { border: 1px solid var(--line); border-radius: 8px; padding: 16px; }
blockquote {
  margin: 0 0 10px; padding-left: 12px; border-left: 3px solid var(--accent); white-space: pre-line;
}
ol { margin: 0; padding-left: 24px; }
li { padding: 2px 0; }
li::marker { color: var(--soft); }
li div { display: flex; gap: 12px; justify-content: space-between; white-space: pre-line; }
li b { font-weight: 400; }
li span { color: var(--soft); font-size: 14px; font-variant-numeric: tabular-nums; white-space: nowrap; }
.hit b { font-weight: 700; color: var(--accent); }
.hit b::after { content: " ★"; }
details { margin-top: 20px; }
h2 + details { margin-top: 0; }
summary { cursor: pointer; color: var(--accent); }
pre {
  overflow-x: auto; background: #f8f9fa; border: 1px solid var(--line); border-radius: 8px; padding: 14px;
  font: 13px/1.5 var(--mono); overflow-wrap: normal;
}
code { font: 0.92em var(--mono); }
footer { color: var(--soft); font-size: 13px; }
@media (max-width: 640px) {
  main { padding: 20px 12px; }
  h1 { font-size: 24px; }
  .lead { font-size: 16px; }
  section { padding: 16px; border-radius: 8px; }
  table { font-size: 14px; }
  th, td { padding: 7px 6px; }
  thead th { font-size: 13px; }
  tbody th { min-width: 6em; hyphens: none; }
  .best::before { content: "★"; }
  dl { grid-template-columns: repeat(auto-fill, minmax(130px, 1fr)); gap: 12px 16px; }
  /* Six columns do not fit: each difference becomes a block of two lines. */
  .differences thead, .differences .interval { display: none; }
  .differences tbody { display: block; }
  .differences tr { display: flex; flex-wrap: wrap; border-bottom: 1px solid var(--line); padding: 8px 0; }
  .differences th, .differences td { border: 0; padding: 1px 10px 1px 0; }
  .differences tbody th { flex-basis: 100%; }
}
@media print { body { background: #fff; } section { border: 0; padding: 0; break-inside: avoid; } }
"""
