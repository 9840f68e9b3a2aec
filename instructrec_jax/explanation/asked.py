"""What `explain` was asked for: scores of words, counterfactuals, training examples, or how faithful scores are."""

import argparse
from dataclasses import dataclass

from instructrec_jax.explanation.counterfactual import BUDGET, Counterfactuals
from instructrec_jax.explanation.explain import Explainer, methods_of
from instructrec_jax.explanation.faithfulness import faithfulness
from instructrec_jax.explanation.files import Asking
from instructrec_jax.explanation.gradients import MOST
from instructrec_jax.explanation.page import page_of
from instructrec_jax.explanation.shown import shown, shown_faithfulness
from instructrec_jax.explanation.shown_answers import shown_behind, shown_counterfactual
from instructrec_jax.explanation.training_examples import BATCH, DIMENSION, TrainingExamples
from instructrec_jax.runs.run import Run
from instructrec_jax.tasks.objective import Choice

# Option -> its default, and the kinds of question that read it; "" are scores of words.
_OF: dict[str, tuple[object, tuple[str, ...]]] = {
    "method": (["integrated"], ("",)),
    "baseline": (None, ("", "faithful")),
    "max_steps": (MOST, ("", "faithful")),
    "limit": (100, ("faithful",)),
    "budget": (BUDGET, ("counterfactual",)),
    "thesaurus": (None, ("counterfactual",)),
    "similarity": ("cosine", ("examples",)),
    "projection": (DIMENSION, ("examples",)),
    "batch": (BATCH, ("examples",)),
}
_FOR = {
    ("",): "for scores of words, and --faithful tests every method",
    ("", "faithful"): "for scores of words",
    ("faithful",): "for --faithful",
    ("counterfactual",): "for --counterfactual",
    ("examples",): "for --examples",
}


@dataclass(frozen=True)
class Found:
    """What was asked for.

    Attributes:
      records: the lines of --out.
      texts: what a terminal shows.
      page: HTML, where --out asks for it; else "".
    """

    records: list[dict[str, object]]
    texts: list[str]
    page: str = ""


def check_asked(options: argparse.Namespace) -> None:
    """Raises ValueError for options that do not go together."""
    one = options.text is not None or options.image is not None
    if one + (options.input is not None) + options.faithful != 1:
        raise ValueError("give one of TEXT (or --image FILE), --input FILE and --faithful.")
    counterfactual, examples = options.counterfactual, options.examples is not None
    if options.faithful + counterfactual + examples > 1:
        raise ValueError("give one of --faithful, --counterfactual and --examples.")
    if options.to is not None and not counterfactual:
        raise ValueError("--to belongs to --counterfactual: add that, or name a --target.")
    if options.target is not None and counterfactual:
        raise ValueError("--counterfactual looks for another answer than the run's: name it by --to, not --target.")
    if (options.against is not None or options.word is not None) and (counterfactual or examples):
        raise ValueError("--against and --word are for scores of words: leave them out here.")
    what = "counterfactual" if counterfactual else "examples" if examples else "faithful" if options.faithful else ""
    for name, (default, belongs) in _OF.items():
        if getattr(options, name) != default and what not in belongs:
            raise ValueError(f"--{name} is {_FOR[belongs]}: leave it out here.")
    endings = (".jsonl",) if options.faithful or counterfactual or examples else (".jsonl", ".html")
    if options.out is not None and options.out.suffix not in endings:
        raise ValueError(f"--out {options.out} should end in {' or '.join(endings)}.")


def explained(run: Run, asking: Asking, options: argparse.Namespace) -> Found:
    """The explanations that are asked for."""
    if (options.counterfactual or options.examples is not None) and run.task.context.pixels is not None:
        raise ValueError("--counterfactual and --examples are for runs that read texts, but this one reads pictures.")
    if options.counterfactual:
        search = Counterfactuals(run, options.to, options.budget, str(options.thesaurus or ""))
        changes = search.explain(asking.records, asking.wheres)
        return Found([each.to_record() for each in changes], list(map(shown_counterfactual, changes)))
    if options.examples is not None:
        behind = TrainingExamples(run, options.similarity, options.projection, options.batch)
        every = behind.explain(asking.records, options.examples, options.target, asking.wheres)
        return Found([each.to_record() for each in every], list(map(shown_behind, every)))
    choice = Choice(options.target, options.against, options.word)
    methods = methods_of(run) if options.faithful else tuple(dict.fromkeys(options.method))
    explainer = Explainer(run, methods, options.baseline, options.max_steps)
    if options.faithful:
        measured = faithfulness(explainer, choice, options.limit)
        return Found([row.to_record() for row in measured.rows], [shown_faithfulness(measured)])
    explanations = explainer.explain(asking.records, choice, asking.folders, asking.wheres)
    page = ""
    if options.out is not None and options.out.suffix == ".html":
        page = page_of(explanations, explainer.reader)
    return Found([each.to_record() for each in explanations], list(map(shown, explanations)), page)
