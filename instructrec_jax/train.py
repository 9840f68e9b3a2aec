"""Tune a pretrained network on instructions: `python -m instructrec_jax.train [--config_path X.yaml] [--a.b value]`.

Without arguments it trains the embedded film recommender. `train` is the whole run, top to bottom. Several processes
(see `distributed/launch.py`) all go through it together; the first of them writes and speaks for all.
"""

import shutil
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from textwrap import shorten
from typing import Any

import jax
import numpy as np

from instructrec_jax.answering.comparison import compare_before_and_after
from instructrec_jax.data.loader import process_share, to_devices
from instructrec_jax.data.skipped import summarize_skipped, write_skipped
from instructrec_jax.distributed.host_memory import release_freed_memory
from instructrec_jax.distributed.launch import check_shared, guard, once, place, say
from instructrec_jax.distributed.mesh import data_shards, make_mesh, replicated
from instructrec_jax.evaluation.evaluator import better, greater_is_better, measured_on
from instructrec_jax.evaluation.report import write_report
from instructrec_jax.files import write_json, write_text
from instructrec_jax.runs.config import Config, load, main_guard, parse, to_dict, to_yaml
from instructrec_jax.runs.data import RunData
from instructrec_jax.runs.model import (
    backbone_folder,
    keep_declarations,
    load_model,
    open_task,
    prepare_data,
    weights_folder,
)
from instructrec_jax.runs.run import Run
from instructrec_jax.runs.setup import TrainingSetup
from instructrec_jax.runs.summary import flops_and_peak, summarize
from instructrec_jax.tasks.base import check_cases
from instructrec_jax.training.checkpoint import Checkpoints, abstract
from instructrec_jax.training.interrupt import Interrupt
from instructrec_jax.training.meter import Meter
from instructrec_jax.training.optimizer import check_optimizer, learning_rate_schedule
from instructrec_jax.training.profiling import Profiler, traced_steps
from instructrec_jax.training.state import empty_window, merge_params, without_frozen
from instructrec_jax.training.tracking import Tracker, progress_bar

# Settings that may differ when a run goes on: they do not change what it computes.
FREE_ON_RESUME = ("run_dir", "overwrite", "mesh", "checkpoint", "tracking", "profile")
AT_LEAST = {
    **{name: 1 for name in ("steps", "accumulation", "data.batch_size", "data.batch_rows", "tracking.log_every")},
    **{name: 1 for name in ("checkpoint.every", "checkpoint.keep_last", "optimizer.max_nonfinite")},
    **{name: 1 for name in ("evaluation.patience", "evaluation.max_examples")},
    **{name: 0 for name in ("seed", "evaluation.every", "checkpoint.keep_best")},
}
# What the verbs leave in a run directory, and so what --overwrite true deletes: nothing else.
LEFT_BY_RUNS = (
    *("config.yaml", "summary.json", "metrics.jsonl", "skipped.jsonl", "report.html", "wandb_id.txt"),
    *("evaluation.json", "predictions.jsonl", "examples.json"),
    *("backbone", "checkpoints", "tensorboard", "wandb", "evaluation", "profile"),
)


def train(config: Config) -> Path:
    """Runs, or goes on with, the training that `config` describes; returns the run directory."""
    check_settings(config)
    prepare_data(config)
    sources = RunData(config)
    config = sources.config
    run_dir = check_run_dir(config)

    # ------------------------------------------------------------------ task and data
    folder = backbone_folder(config.backbone.path)
    task = open_task(config, folder)
    mesh = make_mesh(config.mesh)
    data = sources.training(task, config.accumulation * data_shards(mesh), process_share(mesh))
    validation = sources.cases(task, "validation")
    test = sources.cases(task, "test") or validation
    for cases in (validation, test):
        check_cases(task, cases)
    groups = sources.case_groups(test)  # a key that the cases lack should not come to light at the end

    # ------------------------------------------------------------------ model and state
    setup = TrainingSetup.load(config, task, folder, mesh)
    state, shardings, predict_with = setup.state, setup.shardings, setup.predict_with

    # ------------------------------------------------------------------ run directory, and resume
    # Only now, so that a run that cannot begin or go on leaves no trace and deletes nothing.
    start_run_dir(config, run_dir)
    metric = config.evaluation.metric or task.metric
    greater = greater_is_better(task, metric)
    checkpoints = Checkpoints(run_dir, config.checkpoint, greater)
    step = 0
    progress: dict[str, Any] = {"tokens": 0, "stream": None, "best_value": None, "best_step": None, "stale": 0}
    progress["data"] = data.fingerprint
    if checkpoints.steps():
        step = checkpoints.steps()[-1]
        progress = checkpoints.progress(step)
        check_same_data(progress["data"], data.fingerprint, run_dir)
        if state.frozen:
            weights_folder(config, run_dir)
        saved = checkpoints.restore(step, abstract(without_frozen(state), without_frozen(shardings)))
        state = replace(saved, frozen=state.frozen)
        say(f"resuming from the checkpoint at step {step}")
    keep_declarations(folder, run_dir / "backbone", task, needs_weights=bool(state.frozen))
    summary = summarize(setup, data)
    once(lambda: write_json(run_dir / "summary.json", {"title": run_dir.name, "facts": summary}))
    say("\n".join(f"{name:>14}  {value}" for name, value in summary.items()))

    # ------------------------------------------------------------------ train
    tracker = Tracker(run_dir, config.tracking, step, to_dict(config))
    bar = progress_bar(config.steps, step)
    # Known beforehand: asked for in the loop, each would wait for the steps that are under way.
    rates = np.asarray(jax.vmap(learning_rate_schedule(setup.optimizer_config, config.steps))(np.arange(config.steps)))
    meter = Meter(tracker, bar, rates.item, config.optimizer.max_nonfinite, *flops_and_peak(setup, data))
    profiler = Profiler(run_dir, config.profile)
    shapes: set[tuple[int, ...]] = set()
    value = None

    passing = (ValueError, FloatingPointError)
    with Interrupt() as interrupt, closing(checkpoints), bar, tracker, profiler, guard(passing):
        batches = data.batches(step, config.steps, progress["stream"])
        while step < config.steps and not interrupt.after(step) and not out_of_patience(config, progress):
            if task.refresh_every and step % task.refresh_every == 0:
                buffers = task.refresh(predict_with(merge_params(state.params, state.frozen)))
                state = replace(state, buffers=place(buffers, shardings.buffers))
            with meter.timed("input"):
                batch = next(batches)
            if new_shape := batch.shape not in shapes:
                shapes.add(batch.shape)
                room = " + ".join(f"{length:,}" for length in batch.shape[1:])
                bar.print(f"compiling the step for {batch.shape[0]} rows of {room} tokens")
            profiler.begin(step + 1)
            state, sums = setup.step(state, to_devices(batch.arrays, mesh, batch.totals))
            step += 1
            profiler.end(step, sums)
            if new_shape:
                jax.block_until_ready(sums)
                release_freed_memory()  # what compiling took
            progress |= {"tokens": progress["tokens"] + batch.tokens, "stream": batch.position}
            meter.count(batch.tokens)
            meter.flush()
            meter.watch(step, sums)
            bar.update(step)
            if step % config.tracking.log_every == 0 or step == config.steps:
                meter.close_window(step, sums, progress["tokens"])
                state = replace(state, window=place(empty_window(), replicated(mesh)))
            value = None
            if validation and config.evaluation.every and step % config.evaluation.every == 0:
                meter.flush()
                began = time.perf_counter()
                scores = task.score(predict_with(merge_params(state.params, state.frozen)), validation)
                value = chosen_metric(scores.metrics, metric)
                shown = scores.main or scores.metrics
                tracker.log("evaluation", step, {name: scores.metrics[name] for name in (*shown, metric)})
                note_progress(progress, step, value, greater)
                bar.print(f"step {step}: {metric} {value:.4f}" + (" (best so far)" * (progress["best_step"] == step)))
                release_freed_memory()
                meter.pause(time.perf_counter() - began)
            if step % config.checkpoint.every == 0 or progress["best_step"] == step:
                meter.flush()  # every line up to a checkpoint is on disk before the checkpoint is
                with meter.timed("checkpoint"):
                    checkpoints.save(step, without_frozen(state), dict(progress), to_dict(config), value)
        meter.flush()
        checkpoints.save(step, without_frozen(state), dict(progress), to_dict(config), value)
        if not interrupt.requested:
            meter.finish(step, state.skipped)
    once(lambda: write_skipped(run_dir, sources.skipped))
    if sources.skipped:
        say(summarize_skipped(sources.skipped))
    if interrupt.requested:
        say(
            f"{interrupt.requested}: saved step {step} of {config.steps} in {run_dir}. "
            "Start again with the same command to go on."
        )
        return run_dir

    # ------------------------------------------------------------------ before, after, and baselines
    del state, setup
    if test:
        run = Run(run_dir, sources, run_dir / "backbone", task, mesh, trained=True)
        before = predict_with(load_model(config, task, folder, mesh).params)
        chosen_on_them = progress["best_step"] is not None
        cases_of = measured_on("validation" if test is validation else "test", chose_checkpoint=chosen_on_them)
        compare_before_and_after(run, before, data.encoded, groups, cases_of)
    once(lambda: print(f"\nreport: {write_report(run_dir)}"))
    return run_dir


def check_settings(config: Config) -> None:
    """Refuses numbers out of their range, so that none of them shows only in the middle of a run."""
    settings = flatten(to_dict(config))
    for name, least in AT_LEAST.items():
        if settings[name] is not None and settings[name] < least:
            raise ValueError(f"{name} must be at least {least}, but is {settings[name]}.")
    if config.evaluation.patience and not (config.evaluation.every and config.data.validation):
        raise ValueError("evaluation.patience needs evaluations: set data.validation, and evaluation.every above 0.")
    check_optimizer(config.optimizer)
    traced_steps(config.profile, config.steps)


def check_run_dir(config: Config) -> Path:
    """The run directory; an error where it is something else, or holds checkpoints of other settings."""
    run_dir = Path(config.run_dir)
    settings = run_dir / "config.yaml"
    if run_dir.exists() and not run_dir.is_dir():
        raise ValueError(f"run_dir {run_dir} is a file. Choose another run_dir.")
    if run_dir.exists() and any(run_dir.iterdir()) and not settings.is_file():
        raise ValueError(f"{run_dir} exists but is no run directory (no config.yaml). Choose another run_dir.")
    if settings.is_file() and not (config.overwrite and "\nrun_dir:" in settings.read_text(encoding="utf-8")):
        try:
            before, now = flatten(to_dict(load(settings))), flatten(to_dict(config))
        except ValueError as error:
            raise ValueError(
                f"{run_dir} holds a config.yaml that is not of a run of this version ({error}). Choose another run_dir"
                + (", or start anew with --overwrite true." if "\nrun_dir:" in settings.read_text() else ".")
            ) from error
        other_task = before["task.type"] != now["task.type"]  # whose settings have other names
        changed = [
            f"{key}: {shorten(str(before.get(key)), 100)} then, {shorten(str(now.get(key)), 100)} now"
            for key in sorted(before | now)
            if before.get(key) != now.get(key)
            and key.split(".")[0] not in FREE_ON_RESUME
            and not (other_task and key.startswith("task.") and key != "task.type")
        ]
        trained = any(path.name.isdigit() for path in run_dir.glob("checkpoints/*"))
        if changed and trained:
            raise ValueError(
                f"{run_dir} holds a run with other settings:\n  " + "\n  ".join(changed) + "\n"
                "Choose another run_dir, or start anew with --overwrite true."
            )
    return run_dir


def start_run_dir(config: Config, run_dir: Path) -> None:
    """Makes the run directory, without what an earlier run left if it is to be overwritten."""
    settings = to_yaml(replace(config, overwrite=False))

    def start() -> None:
        if config.overwrite:
            for path in (run_dir / name for name in LEFT_BY_RUNS):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
        write_text(run_dir / "config.yaml", settings)

    once(start)
    check_shared(run_dir / "config.yaml", settings)


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix[:-1]: tree}
    return {name: value for key, below in tree.items() for name, value in flatten(below, f"{prefix}{key}.").items()}


def check_same_data(before: str, now: str, run_dir: Path) -> None:
    if before != now:
        raise ValueError(
            f"the training data changed since the run in {run_dir} began, so it cannot go on. Restore the data, choose "
            "another run_dir, or start anew with --overwrite true."
        )


def chosen_metric(metrics: dict[str, float], name: str) -> float:
    if name not in metrics:
        raise ValueError(f"evaluation.metric is {name!r}, but the evaluation gives {', '.join(metrics)}.")
    return metrics[name]


def note_progress(progress: dict[str, Any], step: int, value: float, greater: bool) -> None:
    """Keeps the best metric, its step, and the number of evaluations since it."""
    if better(value, progress["best_value"], greater=greater):
        progress |= {"best_value": value, "best_step": step, "stale": 0}
    else:
        progress["stale"] += 1


def out_of_patience(config: Config, progress: dict[str, Any]) -> bool:
    return config.evaluation.patience is not None and progress["stale"] >= config.evaluation.patience


def main(args: list[str]) -> None:
    train(parse(Config, args))


if __name__ == "__main__":
    main_guard(main, processes=True)
