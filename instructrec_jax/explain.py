"""Explain predictions by the words of a text: `python -m instructrec_jax.explain RUN TEXT`.

    explain RUN "good film"                       the words for and against the prediction
    explain RUN "good film" --target good --against bad   why good and not bad
    explain RUN --image a.jpg --out why.html              the patches of a picture, as a heat map
    explain RUN --input texts.jsonl --out why.jsonl       a record per text and method; .html: a page of heat maps
    explain RUN --faithful                        whether to trust it, on the run's own validation data

Integrated gradients add up to the prediction: the completeness error says how nearly, and the steps double until it is
at most 1%. A word is all its occurrences in a text.
"""

import sys

from instructrec_jax.answering.arguments import explain_parser, new_file, parse_with_settings
from instructrec_jax.data.media.picture_references import PictureFolder
from instructrec_jax.explanation.explain import Explainer, methods_of
from instructrec_jax.explanation.faithfulness import faithfulness
from instructrec_jax.explanation.files import check_ending, one_record, records_of, write
from instructrec_jax.explanation.shown import shown, shown_faithfulness
from instructrec_jax.files import jsonl_writer
from instructrec_jax.runs.config import main_guard
from instructrec_jax.runs.run import Run, require_finished
from instructrec_jax.tasks.objective import Choice


def main(args: list[str]) -> None:
    options, rest = parse_with_settings(explain_parser(__doc__), args)
    one = options.text is not None or options.image is not None
    if one + (options.input is not None) + options.faithful != 1:
        raise ValueError("give one of TEXT (or --image FILE), --input FILE and --faithful.")
    out = new_file(options.out)
    if not options.faithful:
        check_ending(out)
    require_finished(options.path, options.step)
    run = Run.open(options.path, rest, step=options.step)
    choice = Choice(options.target, options.against, options.word)
    methods = methods_of(run) if options.faithful else tuple(dict.fromkeys(options.method))
    explainer = Explainer(run, methods, options.baseline, options.max_steps)
    if options.faithful:
        found = faithfulness(explainer, choice, options.limit)
        print(shown_faithfulness(found))
        if out is not None:
            with jsonl_writer(out) as line:
                for row in found.rows:
                    line(row.to_record())
        return
    folders: list[PictureFolder] | None = None
    if options.input is None:
        records = [one_record(options.text, options.image)]
    else:
        records, folders = records_of(options.input, explainer.asker.images)
    explanations = explainer.explain(records, choice, folders)
    if out is None:
        print("\n\n".join(map(shown, explanations)))
        return
    write(out, explanations, explainer.reader)
    print(f"{len(explanations):,} explanations of {len(records):,} texts. written: {out}", file=sys.stderr)


if __name__ == "__main__":
    main_guard(main)
