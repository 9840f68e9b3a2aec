"""What `explain` was asked for: scores of words, counterfactuals, training examples, or how faithful scores are."""

import argparse
from collections.abc import Sequence

from instructrec_jax.explanation.counterfactual import Counterfactuals
from instructrec_jax.explanation.explain import Explainer, methods_of
from instructrec_jax.explanation.faithfulness import faithfulness
from instructrec_jax.explanation.shown import shown, shown_faithfulness
from instructrec_jax.explanation.shown_answers import shown_behind, shown_counterfactual
from instructrec_jax.explanation.training_examples import TrainingExamples
from instructrec_jax.runs.predictions import Record
from instructrec_jax.runs.run import Run
from instructrec_jax.tasks.objective import Choice

Shown = tuple[dict[str, object], str]  # a record of --out, and what a terminal shows


def check_asked(options: argparse.Namespace) -> None:
    """Raises ValueError for options that do not go together."""
    counterfactual, examples = options.counterfactual, options.examples is not None
    if options.faithful + counterfactual + examples > 1:
        raise ValueError("give one of --faithful, --counterfactual and --examples.")
    if options.to is not None and not counterfactual:
        raise ValueError("--to belongs to --counterfactual: add that, or name a --target.")
    if options.target is not None and counterfactual:
        raise ValueError("--counterfactual looks for another answer than the run's: name it by --to, not --target.")
    if (options.against is not None or options.word is not None) and (counterfactual or examples):
        raise ValueError("--against and --word are for scores of words: leave them out here.")


def explained(run: Run, records: Sequence[Record], options: argparse.Namespace) -> list[Shown]:
    """The explanations that are asked for."""
    if options.counterfactual:
        search = Counterfactuals(run, options.to, options.budget, str(options.thesaurus or ""))
        return [(each.to_record(), shown_counterfactual(each)) for each in search.explain(records)]
    if options.examples is not None:
        behind = TrainingExamples(run, options.similarity, options.projection, options.batch)
        every = behind.explain(records, options.examples, options.target)
        return [(each.to_record(), shown_behind(each)) for each in every]
    choice = Choice(options.target, options.against, options.word)
    methods = methods_of(run) if options.faithful else tuple(dict.fromkeys(options.method))
    explainer = Explainer(run, methods, options.baseline, options.max_steps)
    if not options.faithful:
        return [(each.to_record(), shown(each)) for each in explainer.explain(records, choice)]
    measured = faithfulness(explainer, choice, options.limit)
    texts = [shown_faithfulness(measured), *[""] * (len(measured.rows) - 1)]
    return [(row.to_record(), text) for row, text in zip(measured.rows, texts, strict=True)]
