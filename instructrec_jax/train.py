"""Tune a pretrained network on instructions: `python -m instructrec_jax.train [X.yaml] [--a.b value]`.

Without arguments it trains the embedded film recommender. `train` is the whole run, top to bottom. With several
processes (see `distributed/launch.py`) all of them execute it; only the first writes files and prints.
"""

import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path

from instructrec_jax.runs.config import Config, load, main_guard, parse, read_first, to_dict

if __name__ == "__main__":  # before the imports below, which take a second or two
    read_first(lambda args: parse(Config, args))

import jax
import numpy as np

from instructrec_jax.answering.beginning import begun_from
from instructrec_jax.answering.comparison import compare_before_and_after, fuse
from instructrec_jax.answering.next_command import next_command
from instructrec_jax.data.loader import to_devices
from instructrec_jax.data.mixed_stream import list_skipped, resume_skipped
from instructrec_jax.data.skipped import summarize_skipped, write_skipped
from instructrec_jax.distributed.compilations import Compilations
from instructrec_jax.distributed.heartbeat import heartbeat
from instructrec_jax.distributed.host_memory import release_freed_memory
from instructrec_jax.distributed.launch import guard, is_loss_of_another, once, place, say
from instructrec_jax.distributed.mesh import data_shards, make_mesh, replicated
from instructrec_jax.evaluation.evaluator import greater_is_better, measured_on
from instructrec_jax.evaluation.layout import text_width
from instructrec_jax.evaluation.report import write_report
from instructrec_jax.evaluation.tables import wrapped
from instructrec_jax.files import write_json
from instructrec_jax.runs.checkpoint_metric import (
    check_metric,
    chosen_metric,
    evaluation_failed,
    measure_of,
    patience_of,
)
from instructrec_jax.runs.data import RunData
from instructrec_jax.runs.directory import (
    RunLock,
    check_run_dir,
    check_same_data,
    check_settings,
    finish_run_dir,
    resuming,
    start_run_dir,
)
from instructrec_jax.runs.fitted_head import check_fits
from instructrec_jax.runs.given import Given, GivenRecords, with_given
from instructrec_jax.runs.initial import initial_model
from instructrec_jax.runs.model import (
    backbone_folder,
    keep_declarations,
    open_task,
    prepare_data,
    weights_folder,
)
from instructrec_jax.runs.provenance import provenance
from instructrec_jax.runs.run import Run
from instructrec_jax.runs.setup import TrainingSetup
from instructrec_jax.runs.summary import flops_and_peak, introduction, summarize
from instructrec_jax.runs.teachers import keep_teachers
from instructrec_jax.tasks.base import Encoded, check_cases
from instructrec_jax.training.checkpoint import Checkpoints, abstract
from instructrec_jax.training.interrupt import Interrupt, Interrupted
from instructrec_jax.training.meter import Meter
from instructrec_jax.training.optimizer import learning_rate_schedule
from instructrec_jax.training.profiling import Profiler
from instructrec_jax.training.progress import Progress
from instructrec_jax.training.state import TrainState, empty_window, merge_params, without_frozen
from instructrec_jax.training.tracking import Tracker, progress_bar


def train(config: Config, given: Given | None = None) -> Path:
    """Runs or resumes the training of `config`; returns the run directory.

    Args:
      given: examples in memory that a new run keeps in its directory, see `runs.given`.

    Raises ValueError if the run cannot start or resume; Interrupted (a KeyboardInterrupt) after SIGTERM or Ctrl-C, once
    the last step is saved.
    """
    check_settings(config)
    with RunLock(config.run_dir) as lock:
        return train_locked(begun_from(config), lock, given)


def train_locked(config: Config, lock: RunLock, given: Given | None = None) -> Path:
    """`train`, top to bottom. `start_run_dir` takes the lock."""
    prepare_data(config)
    sources = RunData(config, given)
    sources.source("train")  # before the task, which would ask for the labels that these lack
    config = sources.config
    run_dir = check_run_dir(config)

    # ------------------------------------------------------------------ task and data
    folder = backbone_folder(config.backbone.path)
    task = open_task(config, folder)
    mesh = make_mesh(config.mesh)
    with heartbeat("reading the data"):
        data = sources.training(task, config.accumulation * data_shards(mesh), mesh)
        validation = sources.cases(task, "validation")
        test = sources.cases(task, "test") or validation
    check_fits(task, config.task.name, data.encoded)
    for cases in (validation, test):
        check_cases(task, cases)
    groups = sources.case_groups(test)  # early, because a missing key is an error

    # ------------------------------------------------------------------ model and state
    with heartbeat("loading the network"):
        setup = TrainingSetup.load(config, task, folder, mesh)
    state, shardings, predict_with = setup.state, setup.shardings, setup.predict_with
    check_metric(setup, validation or test)

    # ------------------------------------------------------------------ run directory, and resume
    # Only now, so that a run that cannot start or resume writes and deletes nothing.
    before = start_run_dir(config, run_dir, lock, data.fingerprint, given)
    metric = config.evaluation.metric or task.metric
    greater = greater_is_better(task, metric)
    measure = measure_of(config, metric)
    checkpoints = Checkpoints(run_dir, config.checkpoint, greater, measure, lock.exchange)
    step = 0
    progress = Progress(data.fingerprint, measure=measure)
    source = sources.source("train")
    listed = resume_skipped(source, run_dir, bool(checkpoints.steps()))
    if checkpoints.steps():
        step = checkpoints.steps()[-1]
        progress = checkpoints.progress(step).measured_as(measure)
        check_same_data(progress.data, data.fingerprint, run_dir)
        if state.frozen:
            weights_folder(config, run_dir)
        saved = checkpoints.restore(step, abstract(without_frozen(state), without_frozen(shardings)))
        state = replace(saved, frozen=state.frozen)
        say(resuming(step, before, config))
    elif task.head_is_fitted == "once":
        with heartbeat("fitting the head"):
            state = with_fitted_head(setup, state, data.encoded)
    keep_declarations(folder, run_dir / "backbone", task, needs_weights=bool(state.frozen))
    keep_teachers(config, run_dir)
    summary = summarize(setup, data)
    about = introduction(config, setup.model.source.config.model_type)
    about |= provenance(config, folder, sources.counts, mesh.devices.size)
    goal = {"metric": metric, "greater_is_better": greater}
    once(lambda: write_json(run_dir / "summary.json", {**about, **goal, "facts": summary}))
    say("\n".join(wrapped(value, f"{name:>14}  ", " " * 16, text_width()) for name, value in summary.items()))

    # ------------------------------------------------------------------ train
    tracker = Tracker(run_dir, config.tracking, step, to_dict(config))
    bar = progress_bar(config.steps, step)
    # Computed in advance: inside the loop, each would wait for the running steps.
    rates = np.asarray(jax.vmap(learning_rate_schedule(setup.optimizer_config, config.steps))(np.arange(config.steps)))
    nonfinite, compiled = config.optimizer.max_nonfinite, Compilations()
    meter = Meter(tracker, bar, rates.item, nonfinite, *flops_and_peak(setup, data), compiled)
    profiler = Profiler(run_dir, config.profile)
    value = None

    passing = (ValueError, FloatingPointError)
    with Interrupt() as interrupt, closing(checkpoints), bar, tracker, profiler, compiled, guard(passing):
        batches = data.batches(step, config.steps, progress.stream)
        patience = patience_of(config)
        while step < config.steps and not interrupt.after(step) and not progress.out_of_patience(patience):
            if task.refresh_every and step % task.refresh_every == 0:
                with heartbeat(f"computing {task.refreshes} at step {step}", bar.print):
                    buffers = task.refresh(predict_with(merge_params(state.params, state.frozen)))
                state = replace(state, buffers=place(buffers, shardings.buffers))
            with meter.timed("input"):
                batch = next(batches)
            if new_shape := meter.is_new((batch.shape, batch.views)):
                bar.print(f"compiling the step for {batch.described}")
            profiler.begin(step + 1)
            with heartbeat("compiling the step", bar.print) if new_shape else nullcontext():
                state, sums = setup.step(state, to_devices(batch.batch, mesh))
            step += 1
            profiler.end(step, sums)
            if new_shape:
                jax.block_until_ready(sums)
                release_freed_memory()  # memory of the compilation
            progress = progress.trained(batch.tokens, batch.position)
            meter.count(batch.tokens)
            meter.flush()
            meter.watch(step, sums)
            bar.update(step)
            if step % config.tracking.log_every == 0 or step == config.steps:
                meter.close_window(step, sums, progress.tokens)
                state = replace(state, window=place(empty_window(state.window), replicated(mesh)))
            value = None
            evaluates = bool(validation and config.evaluation.every and step % config.evaluation.every == 0)
            if task.head_is_fitted == "anew" and (evaluates or step % config.checkpoint.every == 0):
                began = time.perf_counter()
                state = with_fitted_head(setup, state, data.encoded)
                meter.pause(time.perf_counter() - began)
            if evaluates:
                meter.flush()
                began = time.perf_counter()
                try:
                    with heartbeat(f"evaluating at step {step}", bar.print):
                        scores = task.score(predict_with(merge_params(state.params, state.frozen)), validation)
                    value = chosen_metric(scores.metrics, metric)
                except Exception as error:
                    if jax.process_count() == 1 or (isinstance(error, passing) and not is_loss_of_another(error)):
                        checkpoints.save(step, without_frozen(state), progress, to_dict(config), None)
                    evaluation_failed(step, error)
                shown = scores.main or scores.metrics
                tracker.log("evaluation", step, {name: scores.metrics[name] for name in (*shown, metric)})
                progress = progress.evaluated(step, value, greater=greater)
                bar.print(f"step {step}: {metric} {value:.4f}" + (" (best so far)" * (progress.best_step == step)))
                release_freed_memory()
                meter.pause(time.perf_counter() - began)
            if step % config.checkpoint.every == 0 or progress.best_step == step:
                meter.flush()  # log lines reach the disk before the checkpoint
                listed = list_skipped(source, run_dir, listed)
                with meter.timed("checkpoint"):
                    checkpoints.save(step, without_frozen(state), progress, to_dict(config), value)
        meter.flush()
        list_skipped(source, run_dir, listed)
        if task.head_is_fitted == "anew":
            state = with_fitted_head(setup, state, data.encoded)
        checkpoints.save(step, without_frozen(state), progress, to_dict(config), value)
        if not interrupt.requested:
            meter.finish(step, state.skipped)
    skipped = list(dict.fromkeys(sources.skipped))
    once(lambda: write_skipped(run_dir, skipped))
    if skipped:
        say(summarize_skipped(skipped))
    if interrupt.requested:
        interrupt.end(step, config.steps)

    # ------------------------------------------------------------------ before, after, and baselines
    fit_head = setup.fit_head
    del state, setup
    lock.share()
    run = Run(run_dir, sources, run_dir / "backbone", task, mesh, trained=True)
    fuse(run, validation)
    said = "Result       none: neither data.test nor data.validation has cases"
    if not config.evaluation.compare:
        said = "Result       none: evaluation.compare is false"
    elif test:
        params = initial_model(config, task, folder, mesh).params
        untuned = predict_with(merge_params(params, fit_head(params, data.encoded)))
        chosen_on_them = progress.best_step is not None
        cases_of = measured_on("validation" if test is validation else "test", chose_checkpoint=chosen_on_them)
        said = compare_before_and_after(run, untuned, data.encoded, groups, cases_of)
    once(lambda: say(f"\nreport: {write_report(run_dir)}", sys.stdout))
    once(lambda: finish_run_dir(run_dir))
    say(f"\n{said}\nNext         {next_command(run, test)}", sys.stdout)
    return run_dir


def with_fitted_head(setup: TrainingSetup, state: TrainState, train: Sequence[Encoded]) -> TrainState:
    """The state with a head that is fitted on its vectors of the training examples, where the task has such a head."""
    fitted = setup.fit_head(merge_params(state.params, state.frozen), train)
    return replace(state, params=merge_params(state.params, fitted))


def train_run(
    settings: Config | Mapping[str, object] | str | Path,
    *,
    train: GivenRecords | None = None,
    validation: GivenRecords | None = None,
    test: GivenRecords | None = None,
) -> Run:
    """Trains, or resumes training; returns the opened run.

        train_run("my.yaml")
        train_run({"task.type": "classification", "data.train": ["reviews.csv"], "backbone.path": "films", "steps": 20})
        train_run({"task.type": "classification", "backbone.path": "films"}, train=[{"text": "dull", "label": "bad"}])

    Args:
      settings: the path of a YAML file, a mapping of settings (see `runs.config.load`), or a whole Config.
      train, validation, test: `Example`s, or records with the columns of data.train's `fields` (or of usual names), in
        place of the settings' sources. They are kept in RUN_DIR/given, so that the run directory is complete.

    Raises as `train`; ValueError for examples that cannot be used, naming them as train[0].
    """
    config = settings if isinstance(settings, Config) else load(settings)
    config, given = with_given(config, {"train": train, "validation": validation, "test": test})
    return _trained(config, given)


def _trained(config: Config, given: Given) -> Run:
    return Run.open(train(config, given))


def main(args: list[str]) -> None:
    try:
        train(parse(Config, args))
    except Interrupted as stopped:
        say(str(stopped))
        sys.exit(stopped.status)


if __name__ == "__main__":
    main_guard(main, processes=True)
