"""An audit on a terminal, as files, and as a page without scripts or requests (templates/audit.html.jinja)."""

from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from instructrec_jax.evaluation.layout import aligned, text_width
from instructrec_jax.evaluation.tables import clean, wrapped
from instructrec_jax.files import write_json, write_jsonl, write_text
from instructrec_jax.labeling.audit import Audit
from instructrec_jax.labeling.findings import MEANING, Finding

SHOWN, LISTED = 5, 500  # findings of a kind on the terminal, and on the page


def write_audit(folder: Path, audit: Audit, title: str) -> None:
    """Writes clean.jsonl, findings.jsonl, audit.json and report.html."""
    write_jsonl(folder / "clean.jsonl", (example.to_record() for example in audit.examples))
    write_jsonl(folder / "findings.jsonl", (finding.to_record() for finding in audit.findings))
    write_json(folder / "audit.json", summary(audit))
    write_text(folder / "report.html", page(audit, title))


def summary(audit: Audit) -> dict[str, object]:
    """The numbers of an audit, as JSON."""
    found: dict[str, object] = {
        "examples": dict(audit.sizes),
        "clean": len(audit.examples),
        "findings": {row[0]: {"found": row[2], "dropped": row[3]} for row in counts(audit)},
    }
    if audit.labels is None:
        return found | {"labels": audit.unaudited}
    labels = asdict(audit.labels)
    if (planted := audit.labels.planted) is not None:
        labels["planted"] |= {"recall": planted.recall, "precision": planted.precision}
    return found | {"labels": labels}


def counts(audit: Audit) -> list[tuple[str, str, int, int]]:
    """(kind, its meaning, examples with it, examples dropped for it), by kind."""
    rows: list[tuple[str, str, int, int]] = []
    for kind, meaning in MEANING.items():
        own = audit.of(kind)
        found = {(f.split, f.number) for f in own}
        rows.append((kind, meaning, len(found), len({f.number for f in own if f.dropped})))
    return rows


def verdict(audit: Audit) -> list[str]:
    """Sentences on the labels."""
    if (labels := audit.labels) is None:
        return [f"Labels: {audit.unaudited}."]
    said = [
        f"Labels: a classifier on {labels.features} agrees with {labels.accuracy:.1%} of them out of fold; "
        f"an estimated {labels.noise:.1%} are wrong."
    ]
    if (planted := labels.planted) is not None:
        said.append(
            f"Planted: of {planted.flipped:,} flipped labels (seed {planted.seed}), {planted.found:,} are among "
            f"{planted.flagged:,} flagged ones: recall {planted.recall:.3f}, precision at least "
            f"{planted.precision:.3f}."
        )
    return said


def shown(audit: Audit) -> str:
    """Counts, and the first findings of each kind, as text."""
    sizes = ", ".join(f"{split} {size:,}" for split, size in audit.sizes.items())
    table = [("", "found", "dropped"), *((kind, f"{n:,}", f"{dropped:,}") for kind, _, n, dropped in counts(audit))]
    lines = [f"examples: {sizes}", *aligned(table), *verdict(audit)]
    for kind, meaning in MEANING.items():
        if own := audit.of(kind):
            lines += ["", f"{kind}: {meaning}", *(f"  {sentence(finding)}" for finding in own[:SHOWN])]
    stay = f"{len(audit.examples):,} of {audit.sizes['train']:,} training examples stay."
    return "\n".join(wrapped(clean(line), "", "    ", text_width()) for line in [*lines, "", stay])


def sentence(finding: Finding) -> str:
    """What is wrong with an example, in a line."""
    text = f"{finding.text[:80]!r} ({finding.label})" if finding.label else repr(finding.text[:80])
    if finding.kind == "label":
        return f"{text}: rather {finding.suggested}, {finding.suggested_probability:.2f} to {finding.probability:.2f}"
    other = f"{finding.other} ({finding.other_label})" if finding.other_label else f"{finding.other}"
    return f"{finding.split} {finding.id or finding.where} {text}: {finding.similarity:.2f} like {other}"


def page(audit: Audit, title: str) -> str:
    """The report as HTML."""
    groups: list[tuple[str, str, int, Sequence[Finding]]] = []
    for kind, meaning in MEANING.items():
        own = audit.of(kind)
        groups.append((kind, meaning, len(own), own[:LISTED]))
    template = _environment().get_template("audit.html.jinja")
    sizes = ", ".join(f"{split} {size:,}" for split, size in audit.sizes.items())
    return template.render(
        title=title,
        sizes=sizes,
        stay=len(audit.examples),
        of=audit.sizes["train"],
        counts=counts(audit),
        verdict=verdict(audit),
        confused=audit.labels.confused if audit.labels else [],
        groups=groups,
    )


@cache
def _environment() -> Environment:
    loaders = [PackageLoader("instructrec_jax.labeling"), PackageLoader("instructrec_jax.evaluation")]
    return Environment(
        loader=ChoiceLoader(loaders),
        autoescape=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        finalize=lambda value: value if isinstance(value, Markup) else clean(value, keep="\n\t"),
    )
