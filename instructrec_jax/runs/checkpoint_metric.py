"""The evaluations during training: the metric that chooses the best checkpoint."""

import zlib
from collections.abc import Sequence
from typing import NoReturn

from instructrec_jax.runs.config import Config, to_dict
from instructrec_jax.runs.setup import TrainingSetup
from instructrec_jax.tasks.base import Encoded
from instructrec_jax.training.state import merge_params

RANKER_PATIENCE = 5  # a ranker of a catalogue learns its training users by heart soon


def patience_of(config: Config) -> int | None:
    """The number of evaluations without an improvement after which training ends; None: it does not end early."""
    if config.evaluation.patience is None and config.task.ranks_catalogue:
        return RANKER_PATIENCE
    return config.evaluation.patience


def measure_of(config: Config, metric: str) -> str:
    """Identifies a metric and the cases it is measured on, for `Progress`: values on other cases are not comparable."""
    cases = repr((to_dict(config.data)["validation"], config.evaluation.max_examples))
    return f"{metric} {zlib.crc32(cases.encode()):08x}"


def check_metric(setup: TrainingSetup, cases: Sequence[Encoded]) -> None:
    """Scores the untrained model once, so that a wrong evaluation.metric is found before step 1.

    The cases decide which metrics exist, so no list of names would do. Skipped for the task's own metric and without
    cases.
    """
    metric, task = setup.config.evaluation.metric, setup.task
    if metric not in (None, task.metric) and cases:
        predict = setup.predict_with(merge_params(setup.state.params, setup.state.frozen))
        chosen_metric(task.score(predict, cases).metrics, metric)


def chosen_metric(metrics: dict[str, float], name: str) -> float:
    """The value of evaluation.metric. Raises ValueError if the task has no metric of that name."""
    if name not in metrics:
        raise ValueError(f"evaluation.metric is {name!r}, but the task has: {', '.join(metrics)}.")
    return metrics[name]


def evaluation_failed(step: int, error: Exception) -> NoReturn:
    """Raises the error of a failed evaluation again, with the remedy; the step before it is already saved."""
    text = (
        f"the evaluation after step {step} failed. The step is saved: correct the setting or the data, or turn "
        "evaluation off with --evaluation.every 0, then run the same command to resume."
    )
    if isinstance(error, ValueError | OSError):
        raise ValueError(f"{error}\n{text}") from error
    error.add_note(text)
    raise error
