"""The tuned threshold of a run: by requests in scope and out of scope, with its ROC.

A request is accepted as in scope if its score (`metrics.out_of_domain`) is at or above the threshold. As usual in the
field, "in scope" is the positive class: the true-positive rate is the share of in-scope requests that are accepted, the
false-positive rate the share of out-of-scope requests that are accepted.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NotRequired, TypedDict

import numpy as np

from instructrec_jax.files import read_json, replacing, write_json
from instructrec_jax.metrics.out_of_domain import Roc, ScoreName, roc

COLORS: dict[str, str] = {
    "max_probability": "#2b6cb0",
    "negative_energy": "#c05621",
    "mahalanobis": "#2f855a",
    "knn": "#6b46c1",
}


class Point(TypedDict):
    """A threshold and its rates."""

    threshold: float
    fpr: float
    tpr: float


class Threshold(Point):
    """The content of threshold.json; identity: see `TunedThreshold`."""

    score: ScoreName
    identity: str
    wanted_false_positive_rate: float
    auroc: float
    fpr_at_95_tpr: float
    in_scope: int
    out_of_scope: int


class TunedThreshold(TypedDict):
    """What `assist` reads of threshold.json.

    Attributes:
      identity: of the weights and the calibration that it was tuned for; missing in files of version 0.1.
    """

    score: ScoreName
    threshold: float
    identity: NotRequired[str]


def read_threshold(file: Path, identity: Callable[[], str]) -> TunedThreshold | None:
    """The tuned threshold of a run; None without the file.

    Raises ValueError for a damaged file, and for one that was tuned for another checkpoint or calibration.
    """
    if not file.is_file():
        return None
    kept = read_json(file, TunedThreshold)
    if kept.get("identity", now := identity()) != now:
        raise ValueError(
            f"{file} was tuned for another checkpoint or calibration of the run: tune again (--tune_threshold), or "
            "give --threshold."
        )
    return kept


def choose(curve: Roc, rate: float) -> Point:
    """The lowest threshold with a false-positive rate of at most `rate`.

    It is the midpoint of two observed scores, so that rounding moves no score across it.

    Raises ValueError if only a threshold that accepts nothing qualifies.
    """
    if not 0 <= rate < 1:
        raise ValueError(f"--false_positive_rate must be at least 0 and below 1, but is {rate}.")
    fpr, tpr, thresholds = map(np.asarray, (curve["fpr"], curve["tpr"], curve["thresholds"]))
    best = int(np.flatnonzero(fpr <= rate)[-1])
    if tpr[best] == 0:
        raise ValueError(
            f"no threshold accepts in-scope requests at a false-positive rate of {rate:.1%}: allow a higher "
            "--false_positive_rate, or try another --score."
        )
    below = thresholds[best + 1] if best + 1 < len(thresholds) else thresholds[best]
    threshold = (thresholds[best] + below) / 2
    return {"threshold": float(threshold), "fpr": float(fpr[best]), "tpr": float(tpr[best])}


def draw_roc(file: Path, curves: Mapping[str, Roc], chosen: Threshold) -> None:
    """Writes a PNG of the curves with the chosen point."""
    from matplotlib.figure import Figure  # imported here because it takes half a second

    figure = Figure(figsize=(5, 4.4), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="#bbb", linewidth=1, linestyle=":")
    for name, curve in curves.items():
        label = f"{name.replace('_', ' ')}: AUROC {curve['auroc']:.3f}, FPR@95TPR {curve['fpr_at_95_tpr']:.3f}"
        axes.step(curve["fpr"], curve["tpr"], where="post", color=COLORS[name], linewidth=1.6, label=label)
    axes.plot(chosen["fpr"], chosen["tpr"], "o", color=COLORS[chosen["score"]], markersize=7, clip_on=False)
    note = (
        f"threshold {chosen['threshold']:.3f}\naccepts {chosen['tpr']:.1%} in scope, {chosen['fpr']:.1%} out of scope"
    )
    left = chosen["fpr"] < 0.5
    axes.annotate(
        note,
        (chosen["fpr"], chosen["tpr"]),
        xytext=(14 if left else -14, -34),
        textcoords="offset points",
        ha="left" if left else "right",
        fontsize=9,
        color="#333",
    )
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("out of scope, but accepted (false-positive rate)", color="#555")
    axes.set_ylabel("in scope and accepted (true-positive rate)", color="#555")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9, loc="lower right")
    with replacing(file) as stream:
        figure.savefig(stream, format="png", dpi=150)


def write_threshold(
    folder: Path,
    scores: Mapping[ScoreName, tuple[np.ndarray, np.ndarray]],
    score: ScoreName,
    rate: float,
    identity: str,
) -> Threshold:
    """Chooses a threshold; writes threshold.json, roc.json and roc.png; returns the content of threshold.json.

    Args:
      scores: those of the requests in scope and out of scope, float [requests] each, by the name of the score.
      score: the one that is compared with the threshold.
      identity: see `TunedThreshold`.
    """
    curves: dict[str, Roc] = {name: roc(*both) for name, both in scores.items()}
    inside, outside = scores[score]
    chosen: Threshold = {
        "score": score,
        **choose(curves[score], rate),
        "identity": identity,
        "wanted_false_positive_rate": rate,
        "auroc": curves[score]["auroc"],
        "fpr_at_95_tpr": curves[score]["fpr_at_95_tpr"],
        "in_scope": len(inside),
        "out_of_scope": len(outside),
    }
    write_json(folder / "threshold.json", chosen)
    write_json(folder / "roc.json", curves)
    draw_roc(folder / "roc.png", curves, chosen)
    return chosen
