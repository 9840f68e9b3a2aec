"""Evaluate a tuned run or an untuned network: `python -m instructrec_jax.evaluate RUN_OR_HF_FOLDER`.

    evaluate RUN                      the best checkpoint on its own data.test
    evaluate FOLDER --config_path X   an untuned network on the task and data of X
    evaluate RUN --beside RUN2        also other runs, on the same cases
    evaluate RUN --hybrid RUN2 coKNN  also hybrids, tuned on data.validation
    evaluate RUN --rerank RUN2        also two stages: RUN2 reranks its best items
    evaluate RUN RUN2 --average HOW   an ensemble in --out, which opens like a run
    evaluate RUN --wordings FILE      also with each prompt variant (line) of FILE
    evaluate RUN --explanations 30    also explanations, in the report of the run
    evaluate RUN --by FIELD           also by the values of a column: the gaps
    evaluate RUN --robust default     also behavioral tests; a YAML file: your own
    evaluate RUN --calibrate          after fitting its probabilities, for every verb
    evaluate RUN --shots 1,5,20       seven ways to train its backbone on few labels
    evaluate RUN --lm_eval TASK       tasks of EleutherAI's lm-eval instead

`--data.test new.csv` is read with the columns of the run's data.train.
"""

import sys
from pathlib import Path

from instructrec_jax.answering.checked_options import evaluate_options
from instructrec_jax.runs.config import main_guard, read_first

if __name__ == "__main__":  # before the imports below, which take a second or two
    read_first(lambda args: evaluate_options(__doc__, args))

from instructrec_jax.answering.comparison import beside_of, evaluate
from instructrec_jax.answering.ensembles import open_ensemble
from instructrec_jax.answering.language_model import LanguageModel
from instructrec_jax.answering.uncertainty_report import calibrate, report_uncertainty
from instructrec_jax.evaluation.report import write_report
from instructrec_jax.explanation.overview import explanations
from instructrec_jax.extras import require
from instructrec_jax.files import write_json
from instructrec_jax.labeling.shots import measured, plan_of
from instructrec_jax.labeling.shots_table import written
from instructrec_jax.robustness.checking import check_suite, checked
from instructrec_jax.runs.bucket import send
from instructrec_jax.runs.run import Run, is_run
from instructrec_jax.train import train


def main(args: list[str]) -> None:
    options, rest = evaluate_options(__doc__, args)
    path, several = options.paths[0], len(options.paths) > 1 or options.average is not None
    if options.shots is not None:
        plan, out = plan_of(options, rest), options.out or Path("shots")
        print(written(measured(plan, options.shots, options.seeds, out, train), out))
        return
    out = options.out or (path / "evaluation" if is_run(path) and not several else Path("evaluation"))
    if options.lm_eval:
        require("lm_eval", "--lm_eval")  # an extra, imported only here
        from instructrec_jax.answering.lm_eval import run_harness

        if several:
            raise ValueError("--lm_eval is for one run: name the folder of an ensemble.")
        model = LanguageModel(path, rest, step=options.step)
        run_harness(model, out, options.lm_eval, folder=options.lm_eval_tasks, limit=options.limit)
        send(path)
        return
    beside = beside_of(options, several)  # first, because a file of wordings may be wrong, and so may a suite
    if options.robust:
        check_suite(options.robust, options.robust_limit)
    run = open_ensemble(options, out, rest) if several else Run.open(path, rest, step=options.step)
    kept = calibrate(run, options.calibrate) if options.calibrate and not several else None
    # first, so that what it lacks is said before a long evaluation
    explained = None if options.explanations is None else explanations(run, options.explanations)
    evaluate(run, out, split=options.split, beside=beside, by=options.by)
    folder = report_uncertainty(run, out, options, kept)
    if explained is not None:
        write_json(folder / "explanations.json", explained)
        print(f"written: {write_report(folder)}, with explanations")
    over = checked(run, options.robust, options.split, out, folder, options.robust_limit) if options.robust else []
    send(path)
    if over:
        sys.exit("\n".join(["failures above the limit:", *over]))  # and exit status 1


if __name__ == "__main__":
    main_guard(main, processes=True)
