"""A search for settings: trials one after the other, proposed by Optuna, each a training of its own.

The state of a search is OUT/trials: proposals are a function of (seed, number, earlier trials), so a search that was
ended goes on with the trial that it was in, and proposes what it would have proposed.
"""

import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from instructrec_jax.evaluation.tables import digits
from instructrec_jax.extras import require
from instructrec_jax.files import as_json, read_json, write_json
from instructrec_jax.runs.config import Config, to_dict
from instructrec_jax.tasks.search_space import Options, SearchSpace
from instructrec_jax.tuning.space import own_values, with_settings
from instructrec_jax.tuning.trials import Trial, file_of, goal_of, keep, read_trial, run_of, trained

if TYPE_CHECKING:
    import optuna

AT_RANDOM = 6  # trials before the first one that is proposed by the earlier ones
COMPARED = 4  # finished trials before the first one that is stopped early


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
      trials: all, in order.
      best: the best of the finished ones; its run directory is kept.
      given: the trial with the settings as they were given, unless these are outside of the space.
    """

    trials: Sequence[Trial]
    best: Trial
    given: Trial | None
    metric: str
    greater: bool

    def value(self, trial: Trial) -> float:
        return trial.best(greater=self.greater)[1]


def search(config: Config, space: SearchSpace, out: Path, *, trials: int, seed: int = 0) -> Found:
    """Trains `trials` settings, and returns them.

    The first trial has the settings as given, if they are inside the space. A trial is stopped at an evaluation where
    its best value so far is worse than the median of the finished ones at that step (Golovin et al., 2017, "Google
    Vizier", section 3.2.2). The test data are not opened.

    Args:
      out: folder of the search; trials that are there are not repeated.

    Raises ValueError for settings without validation, for an `out` of other settings, where the settings as given
    cannot be trained, and where no trial can; KeyboardInterrupt after Ctrl-C or SIGTERM, once the trial is saved.
    """
    require("optuna", "tune")
    check(config, trials)
    own = own_values(config, space)
    about = {"settings": to_dict(config), "space": {name: repr(entry) for name, entry in space.items()}, "seed": seed}
    if (plan := out / "search.json").exists() and read_json(plan) != as_json(about, "search.json"):
        raise ValueError(f"{out} has trials of other settings ({plan}): choose another --out.")
    write_json(plan, about)
    done: list[Trial] = []
    with _sigterm_as_ctrl_c():
        for number in range(trials):
            trial = read_trial(out, number)
            if trial is None or trial.state == "running":
                trial = _try(config, space, own, out, done, number if trial is None else trial, seed)
            done.append(trial)
            _keep_best_run(out, done)
    return _found(done, out, own)


def check(config: Config, trials: int) -> None:
    """Raises ValueError for settings whose trials could not be compared."""
    if trials < 1:
        raise ValueError(f"--trials should be at least 1, but is {trials}.")
    if not config.data.validation:
        raise ValueError("tune compares trials on data.validation, which lists no sources.")
    if not 0 < config.evaluation.every <= config.steps:
        raise ValueError(
            f"tune compares trials by their evaluations, but evaluation.every is {config.evaluation.every} and steps "
            f"is {config.steps}: set evaluation.every to a tenth of the steps, say."
        )


def _try(
    config: Config,
    space: SearchSpace,
    own: dict[str, object] | None,
    out: Path,
    done: Sequence[Trial],
    begun: Trial | int,
    seed: int,
) -> Trial:
    """Trains a new trial (its number), or one that was begun."""
    number = begun if isinstance(begun, int) else begun.number
    greater = next((goal[1] for trial in done if (goal := goal_of(run_of(out, trial.number)))), True)
    study = _study(space, done, seed + number, greater)
    wanted = own if number == 0 else None if isinstance(begun, int) else begun.changes
    if wanted is not None:
        study.enqueue_trial(_to_optuna(space, wanted))
    asked = study.ask(_distributions(space))
    trial = Trial(number, _from_optuna(space, asked.params)) if isinstance(begun, int) else begun
    keep(out, trial)
    print(f"trial {number}: {said(trial.changes)}", file=sys.stderr, flush=True)

    def stops(step: int, value: float) -> bool:
        asked.report(value, step)
        return asked.should_prune()

    try:
        trained(_of_trial(config, trial, run_of(out, number)), trial, out / "logs" / f"{number}.txt", stops)
    finally:
        keep(out, trial)
    _, greater = goal_of(run_of(out, number)) or ("", greater)  # known from the first trial on
    print(f"trial {number}: {outcome(trial, greater)}", file=sys.stderr, flush=True)
    if trial.state == "failed" and number == 0 and own is not None:
        file_of(out, number).unlink()
        raise ValueError(
            f"the settings as given cannot be trained: {trial.note} (all of it is in {out / 'logs' / '0.txt'})."
        )
    return trial


def _of_trial(config: Config, trial: Trial, run_dir: Path) -> Config:
    """The settings of a trial: no test data, and no comparison after the training."""
    fixed = {
        "run_dir": str(run_dir),
        "overwrite": False,
        "data.test": [],
        "evaluation.compare": False,
        "evaluation.fuse": False,
        "tracking.tensorboard": False,
        "tracking.wandb_project": None,
    }
    return with_settings(config, trial.changes | fixed)


def _study(space: SearchSpace, done: Sequence[Trial], seed: int, greater: bool) -> "optuna.Study":
    """The earlier trials, for the tree-structured Parzen estimator (Bergstra et al., 2011) and the median rule."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        direction="maximize" if greater else "minimize",
        sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=AT_RANDOM),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=COMPARED),
    )
    states = {
        "finished": optuna.trial.TrialState.COMPLETE,
        "stopped": optuna.trial.TrialState.PRUNED,
        "failed": optuna.trial.TrialState.FAIL,
    }
    for trial in done:
        study.add_trial(
            optuna.trial.create_trial(
                state=states[trial.state],
                value=trial.best(greater=greater)[1] if trial.state == "finished" else None,
                params=_to_optuna(space, trial.changes),
                distributions=_distributions(space),
                intermediate_values=dict(trial.evaluations),
            )
        )
    return study


def _distributions(space: SearchSpace) -> dict[str, "optuna.distributions.BaseDistribution"]:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    found: dict[str, optuna.distributions.BaseDistribution] = {}
    for name, entry in space.items():
        if isinstance(entry, Options):  # by their numbers, because values may be lists
            found[name] = CategoricalDistribution(range(len(entry.values)))
        elif isinstance(entry.low, int) and isinstance(entry.high, int):
            found[name] = IntDistribution(entry.low, entry.high, log=entry.log)
        else:
            found[name] = FloatDistribution(entry.low, entry.high, log=entry.log)
    return found


def _to_optuna(space: SearchSpace, changes: dict[str, object]) -> dict[str, object]:
    return {
        name: entry.values.index(changes[name]) if isinstance(entry, Options) else changes[name]
        for name, entry in space.items()
    }


def _from_optuna(space: SearchSpace, params: dict[str, int]) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, entry in space.items():
        found[name] = entry.values[params[name]] if isinstance(entry, Options) else params[name]
    return found


def _keep_best_run(out: Path, done: Sequence[Trial]) -> None:
    """Deletes the run directories of trials that are not the best, since each may be as large as the network."""
    finished = [trial for trial in done if trial.state == "finished"]
    goal = next((goal for trial in finished if (goal := goal_of(run_of(out, trial.number)))), None)
    if goal is None:
        return
    best = _best(finished, goal[1])
    for trial in done:
        if trial is not best:
            shutil.rmtree(run_of(out, trial.number), ignore_errors=True)


def _best(finished: Sequence[Trial], greater: bool) -> Trial:
    """Of equal ones, the first."""
    return (max if greater else min)(finished, key=lambda trial: trial.best(greater=greater)[1])


def _found(done: Sequence[Trial], out: Path, own: dict[str, object] | None) -> Found:
    finished = [trial for trial in done if trial.state == "finished"]
    if not finished:
        raise ValueError(f"no trial could be trained; the last one failed with: {done[-1].note}")
    metric, greater = next(goal for trial in finished if (goal := goal_of(run_of(out, trial.number))))
    return Found(done, _best(finished, greater), done[0] if own is not None else None, metric, greater)


def said(changes: dict[str, object]) -> str:
    """Settings as one line, numbers with four digits."""
    values = (f"{value:.4g}" if isinstance(value, float) else str(value) for value in changes.values())
    return ", ".join(f"{name} {value}" for name, value in zip(changes, values, strict=True))


def outcome(trial: Trial, greater: bool) -> str:
    if trial.state == "failed":
        return f"failed: {trial.note}"
    step, value = trial.best(greater=greater)
    at = f"stopped at step {trial.evaluations[-1][0]:,}, " if trial.state == "stopped" else ""
    return f"{at}{digits(value)} at step {step:,}, {trial.seconds:,.0f} s"


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
