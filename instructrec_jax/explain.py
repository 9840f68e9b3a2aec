"""Explain answers by words, changes or training examples: `python -m instructrec_jax.explain RUN TEXT`.

    explain RUN "good film"                    words for and against the answer
    explain RUN TEXT --target A --against B    why A and not B
    explain RUN TEXT --counterfactual --to B   smallest change with the answer B
    explain RUN TEXT --examples 5              training examples behind the answer
    explain RUN --input FILE --out why.jsonl   a record per text and method
    explain RUN --faithful                     whether words can be trusted

Integrated gradients add up to the prediction: the completeness error says how nearly, and the steps double until it is
at most 1%. A word is all its occurrences in a text.
"""

import argparse
import sys

from instructrec_jax.answering.arguments import explain_parser, new_file, parse_with_settings
from instructrec_jax.answering.records import read_records
from instructrec_jax.explanation.asked import check_asked, explained
from instructrec_jax.files import jsonl_writer
from instructrec_jax.runs.config import main_guard
from instructrec_jax.runs.predictions import Record
from instructrec_jax.runs.run import Run, require_finished


def main(args: list[str]) -> None:
    options, rest = parse_with_settings(explain_parser(__doc__), args)
    if (options.text is not None) + (options.input is not None) + options.faithful != 1:
        raise ValueError("give one of TEXT, --input FILE and --faithful.")
    check_asked(options)
    out = new_file(options.out)
    require_finished(options.path, options.step)
    records: list[Record] = [] if options.faithful else [options.text] if options.input is None else _records(options)
    found = explained(Run.open(options.path, rest, step=options.step), records, options)
    if out is None or options.faithful:
        print("\n\n".join(text for _, text in found if text))
    if out is None:
        return
    with jsonl_writer(out) as write:
        for record, _ in found:
            write(record)
    if not options.faithful:
        print(f"{len(found):,} explanations of {len(records):,} texts. written: {out}", file=sys.stderr)


def _records(options: argparse.Namespace) -> list[Record]:
    """The records of a file. Raises BadExample for an unreadable one."""
    found: list[Record] = []
    for _, record in read_records(str(options.input)):
        if isinstance(record, Exception):
            raise record
        found.append(record)
    if not found:
        raise ValueError(f"{options.input} has no records.")
    return found


if __name__ == "__main__":
    main_guard(main)
