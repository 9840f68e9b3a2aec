"""Answer new texts or records with a tuned run: `python -m instructrec_jax.predict RUN --input FILE`.

    predict RUN --input new.csv --out labels.csv        every row with its prediction, beside its own columns
    predict RUN --input new.jsonl --out top.parquet     .jsonl, .csv, .tsv or .parquet
    predict RUN --text "the film was dull"              one text, on the terminal
    predict HF_FOLDER --vectors --input FILE --out v.npy   embeddings, as sentence-transformers computes them
    cat new.jsonl | predict RUN --input - | ...         JSON lines from stdin to stdout

For every task: labels and probabilities, numbers, tags, answers with their places, written texts, or the best items.
The columns are those of the run's data; answers among them are ignored. The same command resumes after an interruption.
"""

import sys
from argparse import Namespace
from pathlib import Path

from instructrec_jax.answering.arguments import parse_with_settings, predict_parser
from instructrec_jax.answering.prediction_files import line, predict_file, predict_stream
from instructrec_jax.answering.vector_files import write_vectors
from instructrec_jax.runs.config import main_guard
from instructrec_jax.runs.run import Run, is_run, require_run
from instructrec_jax.runs.vectors import settings_of


def main(args: list[str]) -> None:
    options, rest = parse_with_settings(predict_parser(__doc__), args)
    if (options.text is None) == (options.input is None):
        raise ValueError("give --text TEXT or --input FILE (- for stdin).")
    if options.out is not None and options.input in (None, Path("-")):
        raise ValueError("--out needs --input FILE; for a text or stdin, redirect stdout.")
    if options.vectors:
        encode_file(options, rest)
        return
    require_run(options.path)
    run = Run.open(options.path, rest, step=options.step)
    if options.text is not None:
        for record in run.predict(options.text, k=options.k).to_records():
            sys.stdout.buffer.write(line(record))
        return
    asker = run.asker(options.k, many=True)
    skip = options.on_bad_row == "skip"
    if options.out is None:
        counts = predict_stream(asker, options.input, sys.stdout.buffer, skip=skip)
    else:
        weights = run.weights_identity()
        asked = {"run": str(options.path.resolve()), "weights": weights, "k": options.k, "settings": rest}
        counts = predict_file(asker, options.input, options.out, asked=asked, skip=skip)
    where = "" if options.out is None else f" written: {options.out}"
    print(f"{counts.answered:,} rows answered, {counts.rejected:,} rejected.{where}", file=sys.stderr)


def encode_file(options: Namespace, settings: list[str]) -> None:
    """`--vectors`: of a run, or of a HuggingFace folder."""
    if options.input in (None, Path("-")) or options.out is None:
        raise ValueError("--vectors needs --input FILE and --out FILE.npy or FILE.parquet.")
    of_run = is_run(options.path)
    run = Run.open(options.path, settings if of_run else settings_of(str(options.path)), step=options.step)
    count = write_vectors(run.encode, run.mapper, options.input, options.out)
    print(f"{count:,} vectors written: {options.out}", file=sys.stderr)


if __name__ == "__main__":
    main_guard(main)
