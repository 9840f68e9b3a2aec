"""Explain answers by words, changes or training examples: `python -m instructrec_jax.explain RUN TEXT`.

    explain RUN "good film"                    words for and against the answer
    explain RUN TEXT --target A --against B    why A and not B
    explain RUN --image a.jpg --out why.html   patches of a picture, as a heat map
    explain RUN TEXT --counterfactual --to B   smallest change with the answer B
    explain RUN TEXT --examples 5              training examples behind the answer
    explain RUN --input FILE --out why.jsonl   a record per text and method
    explain RUN --faithful                     whether words can be trusted

Integrated gradients add up to the prediction: the completeness error says how nearly, and the steps double until it is
at most 1%. A word is all its occurrences in a text.
"""

import sys

from instructrec_jax.answering.arguments import explain_parser, new_file, parse_with_settings
from instructrec_jax.runs.config import main_guard, read_first

if __name__ == "__main__":  # before the imports below, which take a second or two
    read_first(lambda args: parse_with_settings(explain_parser(__doc__), args))

from instructrec_jax.explanation.asked import check_asked, explained
from instructrec_jax.explanation.files import records_of
from instructrec_jax.files import write_jsonl, write_text
from instructrec_jax.runs.run import Run, require_finished


def main(args: list[str]) -> None:
    options, rest = parse_with_settings(explain_parser(__doc__), args)
    check_asked(options)
    out = new_file(options.out)
    require_finished(options.path, options.step)
    run = Run.open(options.path, rest, step=options.step)
    asking = records_of(options, run)
    found = explained(run, asking, options)
    if out is None or options.faithful:
        print("\n\n".join(found.texts))
    if out is None:
        return
    if found.page:
        write_text(out, found.page)
    else:
        write_jsonl(out, found.records)
    if not options.faithful:
        print(f"{len(found.records):,} explanations of {len(asking.records):,} texts. written: {out}", file=sys.stderr)


if __name__ == "__main__":
    main_guard(main)
