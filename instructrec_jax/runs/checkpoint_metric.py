"""The evaluations during training: the metric that chooses the best checkpoint."""

import zlib
from typing import NoReturn

from instructrec_jax.runs.config import Config, to_dict


def measure_of(config: Config, metric: str) -> str:
    """Identifies a metric and the cases it is measured on, for `Progress`: values on other cases are not comparable."""
    cases = repr((to_dict(config.data)["validation"], config.evaluation.max_examples))
    return f"{metric} {zlib.crc32(cases.encode()):08x}"


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
