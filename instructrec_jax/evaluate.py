"""Evaluate a tuned run or an untuned network: `python -m instructrec_jax.evaluate RUN_OR_HF_FOLDER`.

    evaluate RUN                          the run's best checkpoint on its own data.test (or --split validation)
    evaluate HF_FOLDER --config_path X    an untuned HuggingFace folder on the task and data of X
    evaluate RUN --beside RUN2 RUN3       also other runs, on the same cases
    evaluate RUN --hybrid RUN2 coKNN      also hybrids with other rankers; weights are tuned on data.validation
    evaluate RUN --rerank RUN2            also two stages: RUN2 reranks the --retrieve best items of RUN
    evaluate RUN --wordings FILE          also the same cases with each prompt variant (line) of FILE
    evaluate RUN --lm_eval TASK           tasks of EleutherAI's lm-eval instead

Settings can be overridden as in train: `--data.test new.csv` is read with the columns of the run's data.train.
"""

from pathlib import Path

from instructrec_jax.answering.arguments import evaluate_parser, parse_with_settings
from instructrec_jax.answering.comparison import Beside, evaluate
from instructrec_jax.answering.language_model import LanguageModel
from instructrec_jax.evaluation.prompt_variants import read_wordings
from instructrec_jax.extras import require
from instructrec_jax.runs.bucket import send
from instructrec_jax.runs.config import main_guard
from instructrec_jax.runs.run import Run, is_run


def main(args: list[str]) -> None:
    options, rest = parse_with_settings(evaluate_parser(__doc__), args)
    out = options.out or (options.path / "evaluation" if is_run(options.path) else Path("evaluation"))
    if options.lm_eval:
        require("lm_eval", "--lm_eval")  # an extra, imported only here
        from instructrec_jax.answering.lm_eval import run_harness

        model = LanguageModel(options.path, rest, step=options.step)
        run_harness(model, out, options.lm_eval, folder=options.lm_eval_tasks, limit=options.limit)
        send(options.path)
        return
    beside = Beside(
        runs=options.beside,
        hybrids=options.hybrid,
        rerankers=options.rerank,
        retrieve=options.retrieve,
        prompts=read_wordings(options.wordings) if options.wordings else (),
        baselines=not options.no_baselines,
    )
    evaluate(Run.open(options.path, rest, step=options.step), out, split=options.split, beside=beside)


if __name__ == "__main__":
    main_guard(main, processes=True)
