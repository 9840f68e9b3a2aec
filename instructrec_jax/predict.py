"""Answer new texts or records with a tuned run: `python -m instructrec_jax.predict RUN --input FILE`.

    predict RUN --input new.csv --out labels.csv        every row with its prediction (.csv, .tsv, .jsonl, .parquet)
    predict RUN --text "the film was dull"              one text, on the terminal
    predict HF_FOLDER --vectors --input FILE --out v.npy   embeddings of texts or pictures
    cat new.jsonl | predict RUN --input - | ...         JSON lines from stdin to stdout

For every task: labels and probabilities, numbers, tags, answers with their places, written texts, or the best items.
The columns are those of the run's data; answers among them are ignored. The same command resumes after an interruption.
Several processes (PROCESS_ID, NUM_PROCESSES; SLURM; Open MPI) share the rows and write a part of OUT each.
"""

import os
import sys
from argparse import Namespace
from pathlib import Path

from instructrec_jax.answering.checked_options import predict_options
from instructrec_jax.runs.config import main_guard, read_first

if __name__ == "__main__":  # before the imports below, which take a second or two
    read_first(lambda args: predict_options(__doc__, args))

from instructrec_jax.answering.output_formats import line
from instructrec_jax.answering.partial_files import Share
from instructrec_jax.answering.prediction_files import FORMATS, Counts, check_out, predict_file, predict_stream
from instructrec_jax.answering.vector_files import VECTOR_FORMATS, write_vectors
from instructrec_jax.distributed import launch
from instructrec_jax.runs.run import Run, is_run, require_finished
from instructrec_jax.runs.vectors import settings_of


def main(args: list[str]) -> None:
    options, rest = predict_options(__doc__, args)
    share = Share(*launch.independent_share(os.environ))
    if share.count > 1 and options.out is None:
        raise ValueError(f"{share.count} processes share rows only with --input and --out.")
    if options.out is not None:  # before the model is read
        check_out(options.input, options.out, VECTOR_FORMATS if options.vectors else FORMATS)
    if options.vectors:
        counts = encode_file(options, rest, share)
    else:
        require_finished(options.path, options.step)
        run = Run.open(options.path, rest, step=options.step)
        sets = {"coverage": options.coverage, "sets": options.sets}
        if options.text is not None:
            sys.stdout.buffer.writelines(map(line, run.predict(options.text, k=options.k, **sets).to_records()))
            return
        asker, skip = run.asker(options.k, many=True, **sets), options.on_bad_row == "skip"
        if options.out is None:
            counts = predict_stream(asker, options.input, sys.stdout.buffer, skip=skip)
        else:
            asked = identity(options, run, rest) | {"k": options.k, "doubts": run.doubts_identity(), **sets}
            counts = predict_file(asker, options.input, options.out, asked=asked, skip=skip, share=share)
    where = "" if options.out is None else f" written: {share.file(options.out)}"
    kind = "vectors" if options.vectors else "rows answered"
    print(f"{counts.answered:,} {kind}, {counts.rejected:,} rejected.{where}", file=sys.stderr)


def encode_file(options: Namespace, settings: list[str], share: Share) -> Counts:
    """`--vectors`: of a run, or of a HuggingFace folder."""
    if options.input in (None, Path("-")) or options.out is None:
        raise ValueError("--vectors needs --input FILE and --out FILE.npy or FILE.parquet.")
    if of_run := is_run(options.path):
        require_finished(options.path, options.step)
    run = Run.open(options.path, settings if of_run else settings_of(str(options.path)), step=options.step)
    _ = run.embedder  # raises before rows are read
    asked, skip = identity(options, run, settings), options.on_bad_row == "skip"
    images = run.config.data.train[0].images if run.config.data.train else ""
    where = run.embedder, run.mapper, options.input, options.out
    return write_vectors(*where, asked=asked, skip=skip, share=share, images=images)


def identity(options: Namespace, run: Run, settings: list[str]) -> dict[str, object]:
    """JSON that identifies what predicts, so that only the same resumes."""
    return {"run": str(options.path.resolve()), "weights": run.weights_identity(), "settings": settings}


if __name__ == "__main__":
    main_guard(main, independent=True)
