"""Make instructions with answers of raw texts: `python -m instructrec_jax.synthesize TEXTS --with rules`.

    synthesize texts.jsonl --with rules --out pairs.jsonl        titles, blanks, facts, order, yes or no ...
    synthesize texts.jsonl --with RUN --out pairs.jsonl          what a language model writes
    synthesize texts.jsonl --with rules --out more.jsonl --form documents --share 0.5 --chain 4
    synthesize texts.jsonl --with rules --out pairs.jsonl --test test.jsonl      nothing that is in a test

TEXTS has the columns text and, where there is one, title, in English or Chinese; a .txt has one text a line. An answer
stands in its text or follows from it, or the pair is dropped and counted. Pairs are examples to tune on; documents are
the raw texts, each with a chain of its pairs, to go on pretraining with (docs/instruction_pretraining.md).
"""

import sys

from instructrec_jax.answering.arguments import new_file, parse_options, synthesize_parser
from instructrec_jax.runs.config import main_guard, read_first

if __name__ == "__main__":  # before the imports below, which take a second or two
    read_first(lambda args: parse_options(synthesize_parser(__doc__), args))

from instructrec_jax.synthesis.model_pairs import ModelSynthesizer
from instructrec_jax.synthesis.overlap import read_overlap
from instructrec_jax.synthesis.synthesizing import Synthesis, by_rules, synthesize_file

RULES = "rules"


def main(args: list[str]) -> None:
    options = parse_options(synthesize_parser(__doc__), args)
    out = new_file(options.out)
    assert out is not None
    if out.suffix != ".jsonl":
        raise ValueError(f"--out {out}: JSON lines are written, so name a file FILE.jsonl.")
    given = {name: getattr(options, name) for name in ("share", "chain") if getattr(options, name) is not None}
    if given and options.form == "pairs":
        raise ValueError(f"--{next(iter(given))} is for --form documents: add it, or leave this option out.")
    if options.ngram is not None and not options.test:
        raise ValueError("--ngram is the length of what texts may not share with --test FILES: name these, too.")
    settings = Synthesis(
        form=options.form,
        passage=options.passage,
        seed=options.seed,
        text=options.text_field,
        title=options.title_field,
        shown=options.show,
        **given,
    )
    overlap = read_overlap(options.test, 13 if options.ngram is None else options.ngram)
    if options.test:
        short = f"; {overlap.short:,} are shorter, so they are not found" if overlap.short else ""
        print(f"--test: {overlap.texts:,} texts, {len(overlap.known):,} {overlap.length}-grams{short}", file=sys.stderr)
    make = by_rules(options.seed) if options.maker == RULES else ModelSynthesizer(options.maker)
    report, shown = synthesize_file(str(options.texts), make, out, settings, overlap)
    for example in shown:
        asked = "\n".join(turn.content for turn in example.messages) or example.instruction
        print(f"[{example.origin['rule']}] {asked}" + (f"\n=> {example.output}" if example.output else "") + "\n")
    print(f"{report}\nwritten: {out}", file=sys.stderr)


if __name__ == "__main__":
    main_guard(main)
