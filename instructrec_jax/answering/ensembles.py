"""Making an ensemble of opened runs, and what its folder keeps; `runs.ensemble` opens it."""

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from instructrec_jax.distributed.heartbeat import heartbeat
from instructrec_jax.distributed.launch import once
from instructrec_jax.files import write_json, write_text
from instructrec_jax.runs.config import to_yaml
from instructrec_jax.runs.ensemble import FILE, Kept, calibration_digest, check_members, read_ensemble
from instructrec_jax.runs.model import keep_declarations
from instructrec_jax.runs.run import Run, open_member
from instructrec_jax.tasks.averaging import Average, Judged, Mixture, fit
from instructrec_jax.tasks.prediction import Predict


def ensemble_of(members: Sequence[Run], average: Average = "probability") -> Run:
    """Opened runs as one, with equal weights.

    Raises ValueError for runs that cannot be averaged.
    """
    check_members(members, average)
    return replace(members[0], members=tuple(members), mixture=Mixture.equal(average, len(members)))


@dataclass(frozen=True)
class How:
    """How to make an ensemble.

    Attributes:
      weights: "equal", or "tuned" on data.validation.
      calibrate: whether temperatures are tuned on data.validation; else they are 1.
    """

    average: Average
    weights: Literal["equal", "tuned"] = "equal"
    calibrate: bool = False


def open_ensemble(options: Namespace, out: Path, settings: list[str]) -> Run:
    """`evaluate --average`: the ensemble of the runs, written to `out` and opened.

    Raises ValueError without an average, for a path that is no finished run, and as `make_ensemble`.
    """
    if options.average is None:
        raise ValueError("several runs need --average probability (an ensemble), or --beside (a row for each).")
    if options.calibrate == "per_class":
        raise ValueError(
            "an ensemble is made with temperatures: give --calibrate temperature, then `evaluate "
            f"{out} --calibrate per_class`."
        )
    how = How(options.average, options.weights, options.calibrate is not None)
    make_ensemble([open_member(each, settings, options.step) for each in options.paths], out, how)
    return Run.open(out, settings)


def make_ensemble(members: Sequence[Run], out: Path, how: How) -> None:
    """Writes the folder of an ensemble; weights and temperatures are tuned on data.validation of the first member.

    Raises ValueError for members that cannot be averaged, and for an `out` that is something else.
    """
    if len(members) < 2:
        raise ValueError("--average needs at least two runs.")
    if (out / "config.yaml").is_file() and read_ensemble(out) is None:
        raise ValueError(f"{out} is a run directory: choose another --out for the ensemble.")
    run = ensemble_of(members, how.average)
    mixture, cases = run.mixture, 0
    assert mixture is not None
    if how.calibrate and run.task.outputs_are == "words":
        raise ValueError("language models of an ensemble have no temperatures: leave out --calibrate.")
    if how.weights == "tuned" or how.calibrate:
        judged = _judged(run)
        mixture = fit(judged, how.average, tuned=how.weights == "tuned", calibrate=how.calibrate)
        cases = len(judged.right)
    kept: Kept = {
        "average": how.average,
        "temperature": mixture.temperature,
        "members": [
            {
                "run": str(member.path.resolve()),
                "checkpoint": member.checkpoint,
                "weight": w,
                "temperature": t,
                "calibration": calibration_digest(member),
            }
            for member, w, t in zip(members, mixture.weights, mixture.temperatures, strict=True)
        ],
        "validation_cases": cases,
    }
    config = replace(run.config, run_dir=str(out), overwrite=False, init_from=None)

    def write() -> None:
        keep_declarations(run.folder, out / "backbone", run.task, needs_weights=False)
        write_json(out / FILE, kept)
        write_text(out / "config.yaml", to_yaml(config))

    once(write)


def _judged(run: Run) -> Judged:
    """What the members say of data.validation: outputs [members, cases, classes]."""
    mixture, task = run.mixture, run.task
    assert mixture is not None
    if mixture.average == "rank":
        raise ValueError("a rank average has no probabilities to tune: leave out --weights tuned and --calibrate.")
    if task.outputs_are == "words" and mixture.average == "logit":
        raise ValueError("weights of language models are tuned for --average probability only.")
    cases = run.data.cases(task, "validation")
    if not cases:
        raise ValueError("weights and temperatures are tuned on data.validation, which lists no sources.")
    found = []
    for number, member in enumerate(run.members):
        with heartbeat(f"what {member.path} says of {len(cases):,} validation cases"):
            found.append(task.judged(alone_of(run, number), cases))
    return Judged(np.stack([each.outputs for each in found]), found[0].right)


def alone_of(run: Run, number: int) -> Predict:
    """One member of an ensemble, as the ensemble's task sees it: without its weight and temperature."""
    if run.task.outputs_are == "words":
        return run.members[number].predictor
    predict = run.predictor
    return replace(predict, members=predict.members[number : number + 1], average=lambda said: said[0])


def shown(kept: Kept) -> str:
    """The members with their weights and temperatures, as lines."""
    rows = [f"{m['weight']:.3f} × {m['run']} (T {m['temperature']:.3f})" for m in kept["members"]]
    by = f"tuned on {kept['validation_cases']:,} of data.validation" if kept["validation_cases"] else "equal weights"
    head = f"average      {kept['average']} of {len(rows)} runs, {by}; T {kept['temperature']:.3f} of the average"
    return "\n".join([head, *(f"             {row}" for row in rows)])
