"""Explain predictions by the words of a text: `python -m instructrec_jax.explain RUN TEXT`.

    explain RUN "good film"                       the words for and against the prediction
    explain RUN "good film" --target good --against bad   why good and not bad
    explain RUN --input texts.jsonl --out why.jsonl       a record per text and method; .html: a page of heat maps
    explain RUN --faithful                        whether to trust it, on the run's own validation data

Integrated gradients add up to the prediction: the completeness error says how nearly, and the steps double until it is
at most 1%. A word is all its occurrences in a text.
"""

import sys
from pathlib import Path

from instructrec_jax.answering.arguments import explain_parser, new_file, parse_with_settings
from instructrec_jax.answering.prediction_files import pictures_of
from instructrec_jax.answering.records import read_records
from instructrec_jax.data.media.picture_references import PictureFolder
from instructrec_jax.explanation.explain import Explainer, methods_of
from instructrec_jax.explanation.faithfulness import faithfulness
from instructrec_jax.explanation.page import page_of
from instructrec_jax.explanation.shown import shown, shown_faithfulness
from instructrec_jax.files import jsonl_writer, write_text
from instructrec_jax.runs.config import main_guard
from instructrec_jax.runs.predictions import Record
from instructrec_jax.runs.run import Run, require_finished
from instructrec_jax.tasks.objective import Choice


def main(args: list[str]) -> None:
    options, rest = parse_with_settings(explain_parser(__doc__), args)
    if (options.text is not None) + (options.input is not None) + options.faithful != 1:
        raise ValueError("give one of TEXT, --input FILE and --faithful.")
    out = new_file(options.out)
    require_finished(options.path, options.step)
    run = Run.open(options.path, rest, step=options.step)
    choice = Choice(options.target, options.against, options.word)
    methods = methods_of(run) if options.faithful else tuple(dict.fromkeys(options.method))
    explainer = Explainer(run, methods, options.baseline, options.max_steps)
    if options.faithful:
        found = faithfulness(explainer, choice, options.limit)
        print(shown_faithfulness(found))
        if out is not None:
            with jsonl_writer(out) as write:
                for row in found.rows:
                    write(row.to_record())
        return
    records, folders = ([options.text], None) if options.text is not None else _records(options.input, explainer)
    explanations = explainer.explain(records, choice, folders)
    if out is None:
        print("\n\n".join(map(shown, explanations)))
        return
    if out.suffix == ".html":
        write_text(out, page_of(explanations, explainer.reader))
    else:
        with jsonl_writer(out) as write:
            for explanation in explanations:
                write(explanation.to_record())
    print(f"{len(explanations):,} explanations of {len(records):,} texts. written: {out}", file=sys.stderr)


def _records(source: Path, explainer: Explainer) -> tuple[list[Record], list[PictureFolder]]:
    """The records of a file, and where their pictures lie. Raises BadExample for an unreadable one."""
    pictures = pictures_of(source, explainer.asker.images)
    found: list[Record] = []
    folders: list[PictureFolder] = []
    for where, record in read_records(str(source)):
        if isinstance(record, Exception):
            raise record
        found.append(record)
        folders.append(pictures.of(where))
    if not found:
        raise ValueError(f"{source} has no records.")
    return found, folders


if __name__ == "__main__":
    main_guard(main)
