"""calibration.json of a run directory: how its logits are scaled, and for which weights."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypedDict

from instructrec_jax.files import read_json
from instructrec_jax.metrics.calibration import Way
from instructrec_jax.tasks.recalibration import Quality, Recalibration

FILE = "calibration.json"


class KeptCalibration(TypedDict):
    """The content of calibration.json.

    Attributes:
      scale, bias: one number, or one for each of `labels`.
      checkpoint, weights: the step that it was fitted for (None: an ensemble), and the digest of its weights.
      data: fingerprint of the validation examples; cases: their number.
      before, after: their log loss and calibration error.
    """

    way: Way
    labels: list[str]
    scale: list[float]
    bias: list[float]
    checkpoint: int | None
    weights: str
    data: str
    cases: int
    before: Quality
    after: Quality


def read_calibration(
    run_dir: Path, labels: Sequence[str], checkpoint: Callable[[], int | None], weights: Callable[[], str]
) -> Recalibration | None:
    """The calibration of a run's checkpoint; None without the file.

    Args:
      labels: of the task.
      checkpoint, weights: the step in use, and the digest of its weights.

    Raises ValueError for a damaged file, and for one that was fitted for another step, other weights or other labels.
    """
    file = run_dir / FILE
    if not file.is_file():
        return None
    kept = read_json(file, KeptCalibration)
    remedy = f"fit it again (evaluate {run_dir} --calibrate {kept['way']}), or set --evaluation.calibration false."
    if kept["checkpoint"] != (step := checkpoint()):
        raise ValueError(
            f"{file} was fitted for the checkpoint of step {kept['checkpoint']}, not of step {step}: {remedy}"
        )
    if kept["weights"] != weights():
        raise ValueError(f"{file} was fitted for other weights of this step: {remedy}")
    if kept["labels"] != [*labels]:
        raise ValueError(
            f"{file} was fitted for the labels {str(kept['labels'])[:80]}, not for {str(labels)[:80]}: {remedy}"
        )
    try:
        found = Recalibration(kept["way"], tuple(kept["scale"]), tuple(kept["bias"]))
    except ValueError as error:
        raise ValueError(f"{file}: {error} Remove it, or {remedy}") from None
    if len(found.scale) not in (1, len(labels)):
        raise ValueError(f"{file} has {len(found.scale)} scales for {len(labels)} labels: {remedy}")
    return found
