"""The settings of evaluations."""

from dataclasses import dataclass


@dataclass
class EvaluationConfig:
    """Evaluation while training, and after it."""

    every: int = 100  # steps between evaluations on data.validation; 0: never
    metric: str | None = None  # metric that selects the best checkpoint and stops early; null: the task's own
    patience: int | None = None  # stop after N evaluations without an improvement; null: 5 of a ranker, else never
    max_examples: int | None = None  # evaluate on the first N validation examples; null: all
    compare: bool = True  # after training: evaluate it beside the network before tuning and baselines, for the report
    fuse: bool = True  # rankers: after training, mix in the baseline that helps most on data.validation, if one does
    calibration: bool = True  # answer with the calibration that `evaluate --calibrate` wrote into the run directory
    segment_by: str | None = None  # also report each value of this field of the examples' `origin` separately
