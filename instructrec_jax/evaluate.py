"""Evaluate a tuned run, or an untuned network: `python -m instructrec_jax.evaluate RUN_OR_HF_FOLDER`.

    evaluate RUN                          the run's best checkpoint on its own data.test (or --split validation)
    evaluate HF_FOLDER --config_path X    a HuggingFace folder as it is, on the task and data of X
    evaluate RUN --beside RUN2 RUN3       other runs, on the same cases
    evaluate RUN --hybrid RUN2 coKNN      weighted sums with other rankers; the weights are tuned on data.validation
    evaluate RUN --wordings FILE          the same cases asked with each line of FILE: mean, spread and worst
    evaluate RUN --lm_eval TASK           tasks of EleutherAI's lm-eval instead (see harness.py)
    evaluate RUN --rerank RUN2            two stages: RUN2 ranks the --retrieve best of RUN anew, alone and mixed

Any setting can be overridden as in train: `--data.test '[{path: other.jsonl}]'`.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from instructrec_jax.answering.ranker import predict_of_run
from instructrec_jax.distributed.launch import once, say
from instructrec_jax.distributed.mesh import fitting_mesh, make_mesh
from instructrec_jax.evaluation.evaluator import Contender, baseline_contenders, contend, greater_is_better
from instructrec_jax.evaluation.predictor import predictor
from instructrec_jax.evaluation.prompt_variants import format_sensitivity, read_wordings, reworded, sensitivity
from instructrec_jax.evaluation.results import show_results
from instructrec_jax.files import write_json
from instructrec_jax.ranking.fusion import BLOCK, hybrid, mask, retrieve, tune_weight, two_stage
from instructrec_jax.runs import assembly as assemble
from instructrec_jax.runs import data as assemble_data
from instructrec_jax.runs.config import DEFAULT, Config, main_guard, parse
from instructrec_jax.tasks.base import Encoded, Predict, Task
from instructrec_jax.tasks.ranking.ranking_task import RankingTask


def evaluate(
    path: Path,
    config: Config,
    out: Path,
    *,
    split: assemble_data.Split = "test",
    step: int | None = None,
    baselines: bool = True,
    beside: Sequence[Path] = (),
    hybrids: Sequence[str] = (),
    rerankers: Sequence[Path] = (),
    retrieved: int = 100,
    wordings: Sequence[str] = (),
) -> None:
    """Scores a run directory or a HuggingFace folder; writes evaluation.json and predictions.jsonl into `out`.

    Args:
      split: "test" or "validation", which of the configuration's sources.
      step: which checkpoint of a run; None: the best.
      baselines: also score simple methods on the same cases (they need data.train).
      beside: other runs, whose best checkpoints are scored on the same cases, each as its own task reads them.
      hybrids: runs, or names of simple methods, each of which is mixed with this model into one more row.
      rerankers: runs that rank anew the `retrieved` best items of this model, each one more row.
      wordings: instructions to ask the same cases with, each one more row; see `evaluation.prompt_variants`.
    """
    is_run = (path / "config.yaml").is_file()
    config = assemble_data.learnt(config)
    folder = path / "backbone" if is_run else assemble.backbone_folder(str(path))
    task = assemble.open_task(config, folder)
    mesh = make_mesh(config.mesh)
    cases = assemble_data.evaluation_data(config, task, split)
    if not cases:
        other = "validation" if split == "test" else "test"
        raise ValueError(
            f"data.{split} lists no sources, so there is nothing to evaluate on. "
            f"Set --data.{split}, or --split {other}."
        )
    if is_run:
        name, predict = "tuned", predict_of_run(path, config, task, mesh, step)
    else:
        model = assemble.load_model(config, task, folder, mesh)
        name, predict = "untuned", predictor(task, model.graphdef, mesh, assemble_data.buckets(config))(model.params)
    groups = assemble_data.case_groups(config, cases)
    contenders = [contend(name, task, predict, groups)]
    for run in beside:
        contenders.append(contend(run.name, *open_run_on(run, groups)))
    if hybrids or rerankers:
        validation = assemble_data.evaluation_data(config, task, "validation")
        if not validation:
            raise ValueError("weights are tuned on validation cases, but data.validation lists no sources.")
        validation = validation[: config.evaluation.max_examples]
        contenders += [hybrid_contender(other, task, predict, validation, groups) for other in hybrids]
        contenders += [two_stage_contender(run, retrieved, task, predict, validation, groups) for run in rerankers]
    asked = [contend(f"“{wording}”", task, predict, in_words(task, groups, wording)) for wording in wordings]
    contenders += asked
    if baselines and config.data.train:
        train_set = assemble_data.evaluation_data(config, task, "train")
        contenders += baseline_contenders(task, train_set, groups)
    metric = config.evaluation.metric or task.metric
    show_results(out, contenders, [], metric=metric, tuned=name)
    if asked:
        found = sensitivity(asked, metric, greater=greater_is_better(task, metric))
        once(lambda: write_json(out / "wordings.json", found))
        say("\n" + format_sensitivity(found), sys.stdout)
    say(f"\nwritten: {out}", sys.stdout)


Groups = dict[str, list[Encoded]]
ScoreBlock = Callable[[slice], np.ndarray]


def open_run_on(run: Path, groups: Groups) -> tuple[Task, Predict, Groups]:
    """Another run's task and model, and the same cases as its task reads them."""
    config, task, mesh = assemble.open_run(run)
    predict = predict_of_run(run, config, task, mesh)
    same = {name: task.encode([e.example for e in cases]) for name, cases in groups.items()}
    if [len(cases) for cases in same.values()] != [len(cases) for cases in groups.values()]:
        raise ValueError(f"{run} drops some of the cases for their length, so it cannot be compared on them.")
    return task, predict, same


def in_words(task: Task, groups: Groups, wording: str) -> Groups:
    """The same cases with another instruction."""
    asked = {name: task.encode(reworded([e.example for e in cases], wording)) for name, cases in groups.items()}
    if [len(cases) for cases in asked.values()] != [len(cases) for cases in groups.values()]:
        raise ValueError(f"with the wording {wording!r} some cases are too long: raise data.max_length.")
    return asked


def hybrid_contender(other: str, task: Task, predict: Predict, validation: list[Encoded], groups: Groups) -> Contender:
    """The model mixed with another ranker: a run directory, or one of the simple methods by its name."""
    if not isinstance(task, RankingTask):
        raise ValueError("--hybrid mixes rankings, but this run does not rank a catalogue.")
    every = {"validation": validation} | {f"test {name}": cases for name, cases in groups.items()}
    scored: dict[str, ScoreBlock] = {}
    if Path(other).is_dir():
        second, others_predict, same = open_run_on(Path(other), every)
        if not isinstance(second, RankingTask) or second.catalogue.ids != task.catalogue.ids:
            raise ValueError(f"{other} does not rank the items of {task.config.catalogue}, so there is no hybrid.")
        scored = {name: second.score_items(others_predict, cases) for name, cases in same.items()}
    else:
        scored = {name: task.simple_scores(other, cases) for name, cases in every.items()}

    def pair(name: str) -> tuple[ScoreBlock, ScoreBlock]:
        first, seen = task.score_items(predict, every[name]), [e.target.seen for e in every[name]]
        return lambda block: mask(first(block), seen[block]), scored[name]

    weight = tune_weight(*pair("validation"), [e.target.items for e in validation])
    scores = {}
    for name, cases in groups.items():
        first, second_scores = pair(f"test {name}")
        scores[name] = task.score_with(
            lambda block, a=first, b=second_scores: hybrid(a(block), b(block), weight),  # type: ignore[misc]
            cases,
        )
    return Contender(f"hybrid with {Path(other).name} (weight {weight:.2f})", scores)


def two_stage_contender(
    run: Path, k: int, task: Task, predict: Predict, validation: list[Encoded], groups: Groups
) -> Contender:
    """The model retrieves k items, another run ranks them anew: by a mix of both scores, tuned on validation."""
    if not isinstance(task, RankingTask) or not task.retrieves:
        raise ValueError("--rerank has a run rank anew what this one retrieves, but this one ranks no whole catalogue.")
    every = {"validation": validation} | {f"test {name}": cases for name, cases in groups.items()}
    second, second_predict, same = open_run_on(run, every)
    if not isinstance(second, RankingTask) or second.catalogue.ids != task.catalogue.ids:
        raise ValueError(f"{run} does not rank the items of {task.config.catalogue}: train both on the same folder.")

    def stages(name: str) -> tuple[ScoreBlock, Callable[[slice, np.ndarray], np.ndarray]]:
        first, seen = task.score_items(predict, every[name]), [e.target.seen for e in every[name]]
        return (
            lambda block: mask(first(block), seen[block]),
            lambda block, items: second.score_candidates(second_predict, same[name][block], items),
        )

    first, rerank = stages("validation")
    found = []
    for start in range(0, len(validation), BLOCK):  # never are all cases' scores held
        block = slice(start, start + BLOCK)
        scores = first(block)
        best = retrieve(scores, k)
        found.append((best, np.take_along_axis(scores, best, 1), rerank(block, best)))
    items, own, others = (np.concatenate(each) for each in zip(*found, strict=True))
    wanted = [
        [int(np.append(np.flatnonzero(row == item), -1)[0]) for item in e.target.items]
        for row, e in zip(items, validation, strict=True)
    ]
    weight = tune_weight(lambda block: own[block], lambda block: others[block], wanted)
    results = {}
    for name, cases in groups.items():
        first, rerank = stages(f"test {name}")

        def score_block(block: slice, first: Any = first, rerank: Any = rerank) -> np.ndarray:
            return two_stage(first(block), lambda items: rerank(block, items), k=k, weight=weight)

        results[name] = task.score_with(score_block, cases)
    return Contender(f"{k} best, reranked by {run.name} (weight {weight:.2f})", results)


def run_lm_eval(options: argparse.Namespace, rest: list[str]) -> None:
    """Other people's tests; the package is an extra, and so imported only here."""
    if find_spec("lm_eval") is None:
        raise ValueError('--lm_eval needs the package lm-eval: pip install "instructrec_jax[lm-eval]".')
    from instructrec_jax.answering.lm_eval import run_harness
    from instructrec_jax.generate import read_settings

    settings = read_settings(options.path, rest, {"lm_eval", "lm_eval_tasks", "limit", "step", "out"})
    out = options.out or Path("evaluation")
    places = {"folder": options.lm_eval_tasks, "limit": options.limit, "step": options.step}
    run_harness(options.path, settings, out, options.lm_eval, **places)


def main(args: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m instructrec_jax.evaluate",
        description=__doc__.split("\n")[0],
        epilog="Any setting of train can follow: --config_path FILE, --data.test ..., --mesh.tensor 2.",
        allow_abbrev=False,
    )
    parser.add_argument("path", type=Path, help="run directory, or HuggingFace folder")
    parser.add_argument("--split", choices=("test", "validation"), default="test", help="which sources to score on")
    parser.add_argument("--step", type=int, help="which checkpoint of a run; default: the best")
    parser.add_argument("--out", type=Path, help="where the results go; default: RUN/evaluation or ./evaluation")
    parser.add_argument("--beside", type=Path, nargs="+", default=[], help="other runs to score on the same cases")
    parser.add_argument("--hybrid", nargs="+", default=[], help="runs or simple methods (coKNN ...) to mix with")
    parser.add_argument(
        "--rerank", type=Path, nargs="+", default=[], help="runs that rank anew what this one retrieves"
    )
    parser.add_argument("--retrieve", type=int, default=100, help="how many items for --rerank (default: 100)")
    parser.add_argument("--wordings", type=Path, help="file of instructions, a line each, to ask the same cases with")
    parser.add_argument(
        "--lm_eval", nargs="+", default=[], metavar="TASK", help="tasks of EleutherAI's lm-eval instead"
    )
    parser.add_argument(
        "--lm_eval_tasks", type=Path, metavar="FOLDER", help="where further tasks of lm-eval lie (YAML)"
    )
    parser.add_argument("--limit", type=int, help="examples of each task of lm-eval; default: all")
    parser.add_argument("--no_baselines", action="store_true", help="leave out the simple methods")
    options, rest = parser.parse_known_args(args)
    is_run = (options.path / "config.yaml").is_file()
    if options.lm_eval:
        run_lm_eval(options, rest)
        return
    config = parse(Config, rest, default=options.path / "config.yaml" if is_run else DEFAULT)
    if is_run and not any(arg.startswith("--mesh") for arg in rest):
        config = replace(config, mesh=fitting_mesh(config.mesh))
    out = options.out or (options.path / "evaluation" if is_run else Path("evaluation"))
    evaluate(
        options.path,
        config,
        out,
        split=options.split,
        step=options.step,
        baselines=not options.no_baselines,
        beside=options.beside,
        hybrids=options.hybrid,
        rerankers=options.rerank,
        retrieved=options.retrieve,
        wordings=read_wordings(options.wordings) if options.wordings else (),
    )


if __name__ == "__main__":
    main_guard(main, processes=True)
