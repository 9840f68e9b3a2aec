"""Explanations and their faithfulness on a terminal."""

from collections.abc import Sequence

from instructrec_jax.answering.terminal import width
from instructrec_jax.evaluation.layout import aligned, text_width
from instructrec_jax.evaluation.tables import wrapped
from instructrec_jax.explanation.explain import Explanation
from instructrec_jax.explanation.faithfulness import Faithfulness

NAMES = {
    "integrated": "integrated gradients",
    "gradient": "gradient × input",
    "occlusion": "occlusion",
    "rollout": "attention rollout",
}
BAR = 20  # columns of the largest score
PATCHES = 10  # of a picture


def heading(e: Explanation) -> str:
    """What is explained, and how."""
    what = repr(e.target) + ("" if e.against is None else f" and not {e.against!r}")
    return f"why {what} ({e.unit} {_signed(e.value)}), by {NAMES[e.method]}{_checked(e)}"


def shown(explanation: Explanation) -> str:
    """The words in the order of their scores' sizes, each with a bar; `+` raises the target, `−` lowers it.

    Of pictures the patches with the largest scores.
    """
    e = explanation
    lines = [wrapped(f"text: {e.text}", "", "  ", text_width())] if e.text else []
    lines += [wrapped(heading(e), "", "  ", text_width())]
    if e.unread:
        said = ", ".join(e.unread[:10]) + (", ..." if len(e.unread) > 10 else "")
        lines.append(wrapped(f"cut off by data.max_length, not read: {said}", "", "  ", text_width()))
    parts = [*zip(e.words, e.scores, strict=True), *_patches(e), *e.history]
    known = [(name, score) for name, score in parts if score is not None]
    largest = max((abs(score) for _, score in known), default=0.0) or 1.0
    rows = [(name, score, abs(score) / largest) for name, score in sorted(known, key=lambda each: -abs(each[1]))]
    widest = max((width(name) for name, _, _ in rows), default=0)
    for name, score, share in rows:
        bar = ("█" if score > 0 else "░") * round(BAR * share)
        lines.append(f"  {name}{' ' * (widest - width(name))}  {_signed(score):>9}  {bar}".rstrip())
    if missing := [name for name, score in parts if score is None]:
        lines.append(wrapped(f"the text cannot be read without: {', '.join(missing)}", "  ", "    ", text_width()))
    return "\n".join(lines)


def _patches(e: Explanation) -> list[tuple[str, float | None]]:
    """(name, score) of the `PATCHES` patches of each picture with the largest scores."""
    found: list[tuple[str, float | None]] = []
    for number, each in enumerate(e.pictures, 1):
        own = [
            (f"picture {number}, row {row}, column {column}", score)
            for row, scores in enumerate(each.patches, 1)
            for column, score in enumerate(scores, 1)
        ]
        found += sorted(own, key=lambda named: -abs(named[1] or 0.0))[:PATCHES]
    return found


def _checked(e: Explanation) -> str:
    if e.completeness_error is None:
        return ""
    base = "the mean word" if e.baseline == "mean" else e.baseline
    said = f" from {base}: {e.steps} steps, completeness error {100 * e.completeness_error:.2g}%"
    return said if e.converged else f"{said}; did NOT converge to 1%: do not rely on it, or raise --max_steps"


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def shown_faithfulness(found: Faithfulness) -> str:
    """The table of methods beside random attributions, and the methods that do not beat them."""
    table: list[Sequence[str]] = [("method", "comprehensiveness", "− random", "sufficiency", "− random")]
    for row in [row for row in found.rows if row.beats_random]:
        table.append((NAMES[row.method], *(each for pair in row.cells() for each in pair)))
    table.append(("random", f"{found.random[0]:.3f}", "", f"{found.random[1]:.3f}", ""))
    what = f"{found.texts:,} texts of data.validation, {found.skipped:,} left out (fewer than two words)"
    lines = [
        wrapped(
            f"{what}; the loss of the explained number ({found.unit}) by removing (comprehensiveness, higher is "
            "better) or keeping (sufficiency, lower is better) the same number of words: "
            f"{', '.join(f'{share:.0%}' for share in found.shares)} of them, averaged. Differences to random have "
            "95% bootstrap intervals.",
            "",
            "",
            text_width(),
        ),
        "",
        *aligned(table),
    ]
    for row in found.rows:
        if not row.beats_random:
            (_, more), (_, less) = row.cells()
            lines.append(
                wrapped(
                    f"left out: {NAMES[row.method]} does not beat random attributions on this run "
                    f"(comprehensiveness {more}, sufficiency {less})",
                    "",
                    "  ",
                    text_width(),
                )
            )
    return "\n".join(lines)
