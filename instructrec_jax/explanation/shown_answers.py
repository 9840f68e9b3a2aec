"""Counterfactuals, and the training examples behind answers, on a terminal."""

from collections.abc import Sequence

from instructrec_jax.evaluation.layout import text_width
from instructrec_jax.evaluation.tables import wrapped
from instructrec_jax.explanation.changes import Change
from instructrec_jax.explanation.counterfactual import Counterfactual, Said
from instructrec_jax.explanation.training_examples import Behind, TrainingExample

LONGEST = 300  # characters of a shown text


def shown_counterfactual(found: Counterfactual) -> str:
    """What changes, and the answers before and after."""
    lines = [*_asked(found.text, found.history), _said("before", found.before, found.measure)]
    cost = f"{found.calls} of {found.budget} answers"
    if found.after is None:
        lines.append(f"no counterfactual: {found.reason} ({cost})")
    else:
        changes = ", ".join(map(_changed, found.changes))
        lines += [f"changed: {changes}", *_asked(str(found.changed_text), found.changed_history or ())]
        lines.append(_said("after", found.after, found.measure))
        kept = "minimal: undoing any one of the changes loses this answer"
        lines.append(f"{kept if found.minimal else 'maybe not minimal: the budget was used up'} ({cost})")
    return "\n".join(wrapped(line, "", "  ", text_width()) for line in lines)


def shown_behind(found: Behind) -> str:
    """The training examples with the highest and the lowest scores."""
    steps = ", ".join(f"{step:,}" for step in found.checkpoints)
    lines = [
        *_asked(found.text, found.history),
        f"training examples behind {found.target!r}: {found.similarity} of gradients, step {steps}, "
        f"{found.training_examples:,} examples",
        *map(_example, found.examples),
    ]
    if found.against:
        lines += ["against it:", *map(_example, found.against)]
    return "\n".join(wrapped(line, "", "  ", text_width()) for line in lines)


def _asked(text: str, history: Sequence[str]) -> list[str]:
    return [f"text: {text}", *([f"history: {', '.join(history)}"] if history else [])]


def _said(when: str, said: Said, measure: str) -> str:
    numbers = ", ".join(f"{name} {number:.3f}" for name, number in said.numbers.items())
    return f"{when}: {said.prediction}" + (f" ({measure}: {numbers})" if numbers else "")


def _changed(change: Change) -> str:
    return f"without {change.what!r}" if change.by is None else f"{change.by!r} for {change.what!r}"


def _example(example: TrainingExample) -> str:
    text = " ".join([*(["; ".join(example.history) + ":"] if example.history else []), *example.text.split()])
    cut = text if len(text) <= LONGEST else text[:LONGEST] + "..."
    where = example.where or example.id or str(example.number)
    return f"  {example.score:+.3g} {example.target!r}: {cut} [{where}]".replace("-", "−", example.score < 0)
