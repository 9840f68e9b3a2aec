"""The model card of a run, in the form of HuggingFace's, from the files in its directory alone.

Every number comes from a file of the run; what no file states is "not stated" or "not measured". Texts of users stand
in the card as text: `plain` escapes what Markdown and HTML would read otherwise.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from instructrec_jax.evaluation.behavior import Behavior
from instructrec_jax.evaluation.doubts import Uncertainty
from instructrec_jax.evaluation.report import GROUPS, KeptGroups
from instructrec_jax.evaluation.tables import (
    GROUP_COLUMNS,
    Evaluation,
    Row,
    Skipped,
    Summary,
    TrainedOn,
    clean,
    digits,
    finite,
    group_cells,
    group_tables,
    heading,
    interval_of,
    lower_is_better,
    value_of,
    verdict,
    with_intervals,
)
from instructrec_jax.files import read_json, read_jsonl, write_text
from instructrec_jax.runs.config import Config
from instructrec_jax.runs.run import require_run, run_settings
from instructrec_jax.tasks.text.text_config import ONE_LABEL
from instructrec_jax.training.tracking import read_metrics

T = TypeVar("T")
CARD = "model_card.md"
OWN_ROWS = ("after tuning", "tuned", "ensemble", "compressed")
NOT_STATED, NOT_MEASURED = "not stated", "not measured"
MOST = 5  # measured failures of a kind
# Task -> the hub's name of what the model does.
PIPELINES = {
    **dict.fromkeys((*ONE_LABEL, "multilabel", "regression"), "text-classification"),
    **dict.fromkeys(("language_model", "dialogue", "preference"), "text-generation"),
    **dict.fromkeys(("retrieval", "similarity"), "sentence-similarity"),
    "token_classification": "token-classification",
    "span": "question-answering",
    "masked_lm": "fill-mask",
    "translation": "translation",
    "summarization": "summarization",
    "transcription": "automatic-speech-recognition",
    "reranker": "text-ranking",
    "text_to_image": "text-to-image",
}
_MARKS = re.compile(r"([\\`*\[\]|~$])|(?<![^\W_])(_)|(_)(?![^\W_])")
_STARTS = re.compile(r"^(\s*)([-+#=]|\d+[.)])")


def plain(text: object) -> str:
    """A text on one line, as Markdown that shows it as it is."""
    return _STARTS.sub(lambda found: f"{found[1]}{found[2][:-1]}\\{found[2][-1]}", cell(text))


def cell(text: object) -> str:
    """The same for the cell of a table, where no block starts."""
    line = clean(text).strip().replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKS.sub(lambda found: "\\" + found[0], line)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of texts; numbers, in all columns but the first, lie to the right."""
    lines = [" | ".join(map(cell, head)), " | ".join(["---", *["---:"] * (len(head) - 1)])]
    lines += [" | ".join(map(cell, row)) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


@dataclass(frozen=True)
class Facts:
    """What the files of a run directory say; empty where a file is not there."""

    config: Config
    summary: Summary
    evaluation: Evaluation
    groups: KeptGroups
    behavior: Behavior | None
    uncertainty: Uncertainty | None
    metrics: Sequence[Mapping[str, object]]
    skipped: Sequence[Skipped]

    @classmethod
    def read(cls, run: Path) -> "Facts":
        """Raises ValueError for a folder that is no run directory, and naming a malformed file."""
        require_run(run)
        places = [run / "evaluation.json", run / "evaluation" / "evaluation.json"]
        nothing: KeptGroups = {"split": "", "sources": [], "groups": []}
        no_summary: Summary = {}
        evaluated: list[Evaluation] = [read_json(path, Evaluation) for path in places if path.exists()]
        return cls(
            run_settings(run),
            _read(run / "summary.json", Summary, no_summary),
            evaluated[0] if evaluated else {},
            _read(run / GROUPS, KeptGroups, nothing),
            read_json(run / "robustness.json", Behavior) if (run / "robustness.json").exists() else None,
            read_json(run / "uncertainty.json", Uncertainty) if (run / "uncertainty.json").exists() else None,
            read_metrics(run / "metrics.jsonl") if (run / "metrics.jsonl").exists() else [],
            read_jsonl(run / "skipped.jsonl", Skipped) if (run / "skipped.jsonl").exists() else [],
        )

    @property
    def row(self) -> Row | None:
        """The run's own row of the table."""
        rows = self.evaluation.get("rows") or []
        return next((row for name in OWN_ROWS for row in rows if row["name"] == name), None)

    @property
    def seconds(self) -> float:
        """Wall-clock time of all processes that trained, one after another; 0: no line was logged.

        `seconds` counts from the start of a process, so each ends with its largest value. A line begins another process
        where less time passed since the line before than its own tokens took.
        """
        total = last = tokens = 0.0
        for row in self.metrics:
            now, all_tokens, rate = (finite(row.get(name)) for name in ("seconds", "tokens", "tokens_per_second"))
            if row["kind"] != "train" or now is None:
                continue
            window = 0.0 if all_tokens is None or not rate else (all_tokens - tokens) / rate
            total, last = total + (last if now < last or now - last < window / 2 else 0.0), now
            tokens = all_tokens or tokens
        return total + last


def _read(path: Path, kind: type[T], otherwise: T) -> T:
    return read_json(path, kind) if path.exists() else otherwise


def write_model_card(run: str | Path, watts: float | None = None) -> Path:
    """Writes model_card.md into a run directory; returns its path. Arguments and errors as `model_card`."""
    return write_text(Path(run) / CARD, model_card(run, watts))


def model_card(run: str | Path, watts: float | None = None) -> str:
    """The card of a run, as Markdown behind YAML.

    Args:
      watts: power of a device while training; None: the energy is not measured.

    Raises ValueError as `Facts.read`, and for a power that is not above 0.
    """
    if watts is not None and not 0 < watts < float("inf"):
        raise ValueError(f"--watts is the power of a device, above 0, but is {watts}.")
    facts = Facts.read(Path(run))
    title = clean(facts.summary.get("title") or Path(run).resolve().name)
    sections = {
        "Model": _model(facts),
        "Data": _data(facts.summary.get("sources") or []),
        "Evaluation": _results(facts),
        "Groups": _groups(facts.groups),
        "Robustness": _robustness(facts.behavior),
        "Calibration and uncertainty": _calibration(facts),
        "Training time and energy": _cost(facts, watts),
        "Limits": _limits(facts),
    }
    written = f"Written by instructrec_jax {version('instructrec_jax')} from the files of the run."
    body = [f"# {plain(title)}", written, *(part for name, text in sections.items() for part in (f"## {name}", text))]
    return str(ModelCard(f"---\n{_data_of(facts, title).to_yaml()}\n---\n\n" + "\n\n".join(body) + "\n"))


def readme(name: str, note: str, uses: Sequence[str], card: Path) -> str:
    """README.md of an exported folder: the name, a note, what opens it, and the run's card where it has one."""
    opening = "\n\n".join([f"# {name}", note, *uses]) + "\n"
    if not card.is_file():
        return opening
    kept = ModelCard(card.read_text(encoding="utf-8"))
    title, _, rest = kept.text.strip().partition("\n\n")
    kept.text = f"\n{opening}\n{rest if title.startswith('# ') else kept.text.strip()}\n"
    return str(kept)


# ---- the YAML ------------------------------------------------------------------------------------------


def _data_of(facts: Facts, title: str) -> ModelCardData:
    config, kind = facts.config, facts.config.task.name
    licenses, path = facts.summary.get("backbone_license") or [], config.backbone.path
    sources = facts.summary.get("sources") or []
    languages = list(dict.fromkeys(name for source in sources for name in source["language"]))
    hub = [source.path for source in config.data.train if source.kind == "datasets" and _is_hub_id(source.path)]
    results = _eval_results(facts, PIPELINES.get(kind, kind.replace("_", "-")))
    return ModelCardData(
        license=licenses[0] if len(licenses) == 1 else licenses or None,  # type: ignore[arg-type]
        base_model=path if _is_hub_id(path) else None,
        language=languages or None,
        datasets=list(dict.fromkeys(hub)) or None,
        metrics=list(dict.fromkeys(result.metric_type for result in results)) or None,
        pipeline_tag=PIPELINES.get(kind),
        tags=["instructrec_jax"],
        eval_results=results or None,
        model_name=title if results else None,
    )


def _is_hub_id(path: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", path) is not None


def _eval_results(facts: Facts, task: str) -> list[EvalResult]:
    split, row = clean(facts.evaluation.get("split") or ""), facts.row
    if row is None:
        return []
    name = split.partition(",")[0]
    tested = [each.name or each.path for each in getattr(facts.config.data, name, [])] or [name or NOT_STATED]
    data = clean(", ".join(tested))
    return [
        EvalResult(
            task_type=task,
            dataset_type=data,
            dataset_name=data,
            dataset_split=split or None,
            metric_type=clean(metric),
            metric_value=value,
        )
        for metric in facts.evaluation.get("metrics") or []
        if (value := value_of(row, metric)) is not None
    ]


# ---- the text ------------------------------------------------------------------------------------------


def _listed(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _model(facts: Facts) -> str:
    config, summary = facts.config, facts.summary
    said = summary.get("facts") or {}
    licenses = ", ".join(summary.get("backbone_license") or []) or NOT_STATED
    lines = {
        "Task": config.task.name,
        "Backbone": said.get("backbone") or config.backbone.path,
        "License of the backbone": licenses,
        **{name.capitalize(): said[name] for name in ("parameters", "examples", "steps", "devices") if name in said},
        "Seed": config.seed,
    }
    made = [plain(summary["subtitle"])] if summary.get("subtitle") else []
    return "\n\n".join([*made, _listed(f"{name}: {cell(value)}" for name, value in lines.items())])


def _data(sources: Sequence[TrainedOn]) -> str:
    if not sources:
        return "The run directory does not state its sources."
    rows = []
    for source in sources:
        count = "not counted" if source["examples"] is None else f"{source['examples']:,}"
        stated = [", ".join(source[name]) or NOT_STATED for name in ("license", "language")]
        rows.append([source["name"], source["split"], count, *stated])
    return table(["source", "split", "examples", "license", "language"], rows)


def _results(facts: Facts) -> str:
    evaluation = facts.evaluation
    rows, metrics = evaluation.get("rows") or [], evaluation.get("metrics") or []
    if not rows:
        return "Not evaluated: the run directory has no evaluation.json with results."
    about = [f"{heading(evaluation.get('split') or NOT_STATED)}.", evaluation.get("protocol") or ""]
    known = with_intervals(rows)
    head = ["", *(said for name in metrics for said in (name, *(["95% interval"] if name in known else [])))]
    cells = [[row["name"]] for row in rows]
    for row, line in zip(rows, cells, strict=True):
        for name in metrics:
            line += [digits(value_of(row, name)), *([interval_of(row, name)] if name in known else [])]
    notes = [f"{row['name']}: {row['note']}" for row in rows if row.get("note")]
    return "\n\n".join([plain(" ".join(about)), table(head, cells), *map(plain, notes)])


def _groups(kept: KeptGroups) -> str:
    if not kept["groups"]:
        return f"{NOT_MEASURED.capitalize()}: `evaluate RUN --by FIELD` measures them."
    of = plain(f"{heading(kept['split'])} ({', '.join(kept['sources'])})")
    parts = [f"{of}. Gaps are to all other cases, the largest first."]
    for title, rows in group_tables(kept["groups"]):
        parts += [plain(title), table(["", *GROUP_COLUMNS], ([row["value"], *group_cells(row)] for row in rows))]
    return "\n\n".join(parts)


def _robustness(found: Behavior | None) -> str:
    if found is None:
        return f"{NOT_MEASURED.capitalize()}: `evaluate RUN --robust default` measures it."
    about = (
        f"The suite {found['suite']} ({found['language']}) on {found['examples']:,} examples of data.{found['split']}."
    )
    rows = [
        [
            test["name"],
            test["kind"],
            _share(test["rate"]),
            f"{_share(test['low'])} to {_share(test['high'])}",
            f"{test['cases']:,}",
        ]
        for test in found["tests"]
    ]
    parts = [plain(about), table(["test", "kind", "failures", "95% interval", "cases"], rows)]
    if (attack := found.get("adversarial")) is not None:
        said = f"accuracy {_share(attack['accuracy_before'])} before and {_share(attack['accuracy_after'])} after"
        parts.append(f"Adversarial search within {attack['budget']:,} texts an example: {said}.")
    return "\n\n".join(parts)


def _share(value: float | None) -> str:
    return "–" if finite(value) is None else f"{value:.1%}"


def _calibration(facts: Facts) -> str:
    row = facts.row
    values = {} if row is None else row.get("values") or {}
    names = [name for name in values if re.split(r", | \(", name)[0] == "ece"]
    parts = []
    if row is not None and names:
        parts = [_listed(f"Expected calibration error ({cell(name)}): {digits(value_of(row, name))}" for name in names)]
    for each in facts.uncertainty["tables"] if facts.uncertainty else ():
        if each["rows"]:
            parts += [plain(f"{each['title']}. {each['text']}"), table(each["rows"][0], each["rows"][1:])]
    return "\n\n".join(parts) or f"{NOT_MEASURED.capitalize()}."


def _cost(facts: Facts, watts: float | None) -> str:
    seconds, devices = facts.seconds, facts.summary.get("device_count")
    if not seconds:
        return "No step was logged: time and energy are not measured."
    hours, on = seconds / 3600, f" on {devices:,} device{'s' * (devices != 1)}" if devices else ""
    lines = [f"Time: {seconds:,.0f} s ({hours:,.2f} h){on}, evaluations during training included"]
    if watts is None:
        lines.append(f"Energy: {NOT_MEASURED}")
    elif devices is None:
        lines.append("Energy: not estimated, because the run directory does not state its devices")
    else:
        energy = watts * devices * hours / 1000
        lines.append(f"Energy: {energy:,.3g} kWh, an estimate: {watts:g} W × {devices:,} × {hours:,.3g} h")
    return _listed(lines)


def _limits(facts: Facts) -> str:
    """Facts that bound what the model was trained for and measured on."""
    config, data = facts.config, facts.config.data
    languages = dict.fromkeys(name for source in facts.summary.get("sources") or [] for name in source["language"])
    lines = [f"Languages of the data: {cell(', '.join(languages) or NOT_STATED)}"]
    cut = {"error": "refused", "drop": "left out", "left": "cut on the left", "right": "cut on the right"}
    lines.append(f"Texts have at most {data.max_length:,} tokens; longer ones are {cut[data.truncate]}")
    if note := (facts.summary.get("facts") or {}).get("note"):
        lines.append(f"Counted before training: {cell(note)}")
    if facts.skipped:
        lines.append(f"Invalid examples left out: {len(facts.skipped):,}")
    lines.append(f"One run with seed {config.seed}: how results vary with the seed is {NOT_MEASURED}")
    if "chose the checkpoint" in (facts.evaluation.get("split") or ""):
        lines.append("The cases of the evaluation also chose the checkpoint, so its numbers are optimistic")
    return _listed([*lines, *_failures(facts)])


def _failures(facts: Facts) -> list[str]:
    """Measured failures: baselines that are as good, groups that are worse, behavioral tests, frequent mistakes."""
    lines = []
    for each in facts.evaluation.get("differences") or []:
        if not verdict(each).startswith("significantly better"):
            lines.append(f"{plain(each['name'])} in {cell(each['metric'])}: {verdict(each)}")
    worse = []
    for part in facts.groups["groups"]:
        low, high, gap = (finite(value) for value in (part["gap_low"], part["gap_high"], part["gap"]))
        if low is not None and high is not None and (low > 0 if lower_is_better(part["metric"]) else high < 0):
            worse.append((abs(gap or 0.0), f"{part['metric']} of {part['field']} {part['value']}", part))
    for _, name, part in sorted(worse, key=lambda each: -each[0])[:MOST]:
        lines.append(f"Worse than on all other cases: {cell(name)}: gap {cell(' '.join(group_cells(part)[3:]))}")
    failed = [test for test in (facts.behavior or {"tests": []})["tests"] if test["failures"]]
    for test in sorted(failed, key=lambda test: -(test["rate"] or 0.0))[:MOST]:
        lines.append(f"Behavioral test failed: {cell(test['name'])}: {_share(test['rate'])} of {test['cases']:,} cases")
    for mistake in (facts.evaluation.get("mistakes") or [])[:MOST]:
        said = f"{mistake['prediction']} instead of {mistake['reference']}: {mistake['count']:,} cases"
        lines.append(f"Frequent mistake: {cell(said)}")
    return lines
