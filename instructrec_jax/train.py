"""Tune a pretrained network on instructions: `python -m instructrec_jax.train [--config_path X.yaml] [--a.b value]`.

Without arguments it trains the embedded film recommender. `train` is the whole run, top to bottom. Several processes
(see `distributed/launch.py`) all go through it together; the first of them writes and speaks for all.
"""

import shutil
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from textwrap import shorten
from typing import Any

import jax
import numpy as np

from instructrec_jax.data.loader import lengths_of, process_share, to_devices
from instructrec_jax.data.skipped import SkippedRow, summarize_skipped, write_skipped
from instructrec_jax.distributed.chips import peak_flops
from instructrec_jax.distributed.host_memory import release_freed_memory
from instructrec_jax.distributed.launch import check_shared, guard, once, place, say
from instructrec_jax.distributed.mesh import DeviceMesh, data_shards, make_mesh, replicated
from instructrec_jax.evaluation.evaluator import (
    Contender,
    baseline_contenders,
    better,
    contend,
    greater_is_better,
)
from instructrec_jax.evaluation.predictor import predictor
from instructrec_jax.evaluation.report import write_report
from instructrec_jax.evaluation.results import show_results
from instructrec_jax.files import write_json, write_text
from instructrec_jax.runs import assembly as assemble
from instructrec_jax.runs import data as assemble_data
from instructrec_jax.runs.assembly import Assembly
from instructrec_jax.runs.config import Config, load, main_guard, parse, to_dict, to_yaml
from instructrec_jax.tasks.base import Encoded, Predict, Task
from instructrec_jax.tasks.generation.language_model import LanguageModelTask
from instructrec_jax.tasks.text.masked_lm import MaskedLMTask
from instructrec_jax.training.checkpoint import Checkpoints, abstract
from instructrec_jax.training.flops import Texts, attention_flops, has_output_table, product_flops
from instructrec_jax.training.interrupt import Interrupt
from instructrec_jax.training.meter import Meter
from instructrec_jax.training.optimizer import learning_rate_schedule, make_optimizer
from instructrec_jax.training.parameters import learning_rate_factors
from instructrec_jax.training.profiling import Profiler, traced_steps
from instructrec_jax.training.state import (
    TrainState,
    Tree,
    create_state,
    empty_window,
    merge_params,
    state_shardings,
    without_frozen,
)
from instructrec_jax.training.step import make_train_step
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
    config = assemble_data.learnt(config)
    run_dir = check_run_dir(config)

    # ------------------------------------------------------------------ task and data
    folder = assemble.backbone_folder(config.backbone.path)
    task = assemble.open_task(config, folder)
    mesh = make_mesh(config.mesh)
    row_multiple = config.accumulation * data_shards(mesh)
    data = assemble_data.training_data(config, task, row_multiple, process_share(mesh))
    skipped: list[SkippedRow] = []
    validation = assemble_data.evaluation_data(config, task, "validation", skipped)
    validation = validation[: config.evaluation.max_examples]
    test = assemble_data.evaluation_data(config, task, "test", skipped) or validation
    assemble_data.case_groups(config, test)  # a key that the cases lack should not come to light at the end

    # ------------------------------------------------------------------ model and state
    model = assemble.load_model(config, task, folder, mesh)
    predict_with = predictor(task, model.graphdef, mesh, assemble_data.buckets(config))
    decay = config.optimizer.layer_decay
    factors = learning_rate_factors(model.network, decay) if decay < 1 else None
    optimizer = make_optimizer(config.optimizer, config.steps, factors)
    state = create_state(
        model.params,
        optimizer,
        config.seed,
        is_frozen=model.is_frozen,
        buffers=task.refresh(predict_with(model.params)) if task.refresh_every else {},
    )
    shardings = state_shardings(state, model.shardings, mesh)
    state = place(state, shardings)
    train_step = make_train_step(
        task, model.graphdef, optimizer, mesh=mesh, shardings=shardings, accumulation=config.accumulation
    )

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
            assemble.weights_folder(config, run_dir)
        saved = checkpoints.restore(step, abstract(without_frozen(state), without_frozen(shardings)))
        state = replace(saved, frozen=state.frozen)
        say(f"going on from the checkpoint of step {step}")
    assemble.keep_declarations(folder, run_dir / "backbone", task, needs_weights=bool(state.frozen))
    summary = summarise(config, task, model, state, mesh, data)
    once(lambda: write_json(run_dir / "summary.json", {"title": run_dir.name, "facts": summary}))
    say("\n".join(f"{name:>14}  {value}" for name, value in summary.items()))

    # ------------------------------------------------------------------ train
    tracker = Tracker(run_dir, config.tracking, step, to_dict(config))
    bar = progress_bar(config.steps, step)
    # Known beforehand: asked for in the loop, each would wait for the steps that are under way.
    rates = np.asarray(jax.vmap(learning_rate_schedule(config.optimizer, config.steps))(np.arange(config.steps)))
    flops, peak = speed_at_best(model, state, task, data, mesh)
    meter = Meter(tracker, bar, rates.item, config.optimizer.max_nonfinite, flops, peak)
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
            state, sums = train_step(state, to_devices(batch.arrays, mesh, batch.totals))
            step += 1
            profiler.end(step, sums)
            if new_shape:
                jax.block_until_ready(sums)
                release_freed_memory()  # what compiling took
            progress |= {"tokens": progress["tokens"] + batch.tokens, "stream": batch.position}
            meter.count(batch.tokens)
            meter.flush()
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
    skipped = [*data.skipped, *skipped]
    once(lambda: write_skipped(run_dir, skipped))
    if skipped:
        say(summarize_skipped(skipped))
    if interrupt.requested:
        say(
            f"{interrupt.requested}: saved step {step} of {config.steps} in {run_dir}. "
            "Start again with the same command to go on."
        )
        return run_dir

    # ------------------------------------------------------------------ before, after, and simple baselines
    del state
    if test:
        compare(config, task, run_dir, test, data.encoded, predict_with, folder, mesh)
    once(lambda: print(f"\nreport: {write_report(run_dir)}"))
    return run_dir


def compare(
    config: Config,
    task: Task,
    run_dir: Path,
    test: list[Encoded],
    train_set: list[Encoded],
    predict_with: Callable[[Tree], Predict],
    folder: Path,
    mesh: DeviceMesh,
) -> None:
    """The table that training ends with: the model before and after, and simple methods, on the same cases."""
    groups = assemble_data.case_groups(config, test)
    tuned = assemble.restored_model(config, task, run_dir, mesh)
    after = predict_with(tuned.params)
    contenders: list[Contender] = [
        contend(
            "before tuning",
            task,
            predict_with(assemble.load_model(config, task, folder, mesh).params),
            groups,
        ),
        contend("after tuning", task, after, groups),
        *baseline_contenders(task, train_set, groups),
    ]
    examples = task.showcase(after, groups[list(groups)[-1]])
    show_results(run_dir, contenders, examples, metric=config.evaluation.metric or task.metric)


def check_settings(config: Config) -> None:
    """Refuses numbers out of their range, so that none of them shows only in the middle of a run."""
    settings = flatten(to_dict(config))
    for name, least in AT_LEAST.items():
        if settings[name] is not None and settings[name] < least:
            raise ValueError(f"{name} must be at least {least}, but is {settings[name]}.")
    if config.evaluation.patience and not (config.evaluation.every and config.data.validation):
        raise ValueError("evaluation.patience needs evaluations: set data.validation, and evaluation.every above 0.")
    traced_steps(config.profile)


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


def speed_at_best(
    model: Assembly, state: TrainState, task: Task, data: assemble_data.TrainingData, mesh: DeviceMesh
) -> tuple[Callable[[int], float], float | None]:
    """(FLOP of the model for so many tokens, FLOP/s of all devices at best or None), for the MFU.

    All texts count as if they (and their answers, in an encoder–decoder) were of the average length, which is a little
    too low for attention.
    """
    peak = peak_flops(mesh.devices.flat[0])
    params = merge_params(state.params, state.frozen)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    tied = isinstance(task, LanguageModelTask | MaskedLMTask) and not has_output_table(shapes)
    causal = task.context.kind == "decoder"
    lengths, targets = lengths_of([e.text for e in data.encoded])
    length, target_length = (int(each.mean()) if each is not None and len(each) else 0 for each in (lengths, targets))
    share = length / max(length + target_length, 1)  # of a batch's tokens, that are not of answers

    def flops(tokens: int) -> float:
        of_texts = round(tokens * share)
        texts = Texts(of_texts, length, causal, tokens - of_texts, target_length)
        return product_flops(shapes, model.is_frozen, texts, tied=tied) + attention_flops(model.source.config, texts)

    return flops, None if peak is None else peak * mesh.devices.size


def summarise(
    config: Config, task: Task, model: Assembly, state: TrainState, mesh: DeviceMesh, data: assemble_data.TrainingData
) -> dict[str, str]:
    """What a person wants to know before a run, label -> text."""

    def count(tree: Tree) -> int:
        return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))

    devices = mesh.devices.flatten()
    size = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items() if size > 1) or "of one"
    processes = f" in {jax.process_count()} processes" if jax.process_count() > 1 else ""
    trained, frozen = count(state.params), count(state.frozen)
    facts = {
        "devices": f"{len(devices)} x {devices[0].device_kind}{processes}, mesh {size}",
        "backbone": f"{config.backbone.path} ({model.source.config.model_type}), {model.source.report}",
        "parameters": f"{trained:,} trained, {frozen:,} frozen",
        "examples": data.describe(),
        "steps": f"{config.steps:,} x {data.step_size}",
        "run directory": config.run_dir,
    }
    notes = model.source.notes + [f"{n:,} {what}" for what, n in task.context.counts.items()]
    return facts | ({"note": "; ".join(notes)} if notes else {})


def main(args: list[str]) -> None:
    train(parse(Config, args))


if __name__ == "__main__":
    main_guard(main, processes=True)
