"""What a classification run says beside its labels: whether it abstains, and conformal prediction sets.

`predict`, `assist`, `watch`, the service and `evaluate` decide by the same `Abstention`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from instructrec_jax.data.example import Example
from instructrec_jax.data.prompts import render
from instructrec_jax.distributed.heartbeat import heartbeat
from instructrec_jax.metrics.abstention import check_abstain, keeping
from instructrec_jax.metrics.conformal import ConformalSets, SetKind, check_coverage, uniform_of
from instructrec_jax.metrics.out_of_domain import OF_VECTORS, ScoreName
from instructrec_jax.metrics.uncertainty import probabilities
from instructrec_jax.runs.domain_scores import DomainScores, Opened, classification
from instructrec_jax.tasks.answers import LabelAnswer
from instructrec_jax.tasks.base import Encoded
from instructrec_jax.tasks.prediction import Predict
from instructrec_jax.tasks.text.classification import ClassificationTask


@dataclass(frozen=True)
class Abstention:
    """A run that does not answer texts with a score below a threshold."""

    scores: DomainScores
    score: ScoreName
    threshold: float

    def of(self, encoded: Sequence[Encoded], logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(the scores float64 [texts], whether it abstains, bool [texts]); logits as in `DomainScores.score`."""
        found = self.scores.score(self.score, encoded, logits)
        if not np.isfinite(found).all():
            raise ValueError("the model's outputs are not finite: the run diverged. Train it again.")
        return found, found < self.threshold


def open_abstention(run: Opened) -> Abstention | None:
    """The abstention that the run's settings ask for; None without `abstain.score`.

    What it needs of training and validation examples is computed here, not at the first text.

    Raises ValueError for settings in conflict, another task, and where the threshold cannot be computed.
    """
    config = run.config.abstain
    check_abstain(config)
    if config.score is None:
        return None
    classification(run, "abstain.score")
    return abstention_of(run.domain_scores, config.score, config.threshold, config.keep)


def abstention_of(scores: DomainScores, name: ScoreName, threshold: float | None, keep: float | None) -> Abstention:
    """With a threshold, or with one that answers the share `keep` of data.validation."""
    if name in OF_VECTORS:
        _ = scores.statistics
    if threshold is None:
        assert keep is not None  # see check_abstain
        threshold = keeping(scores.of_validation(name), keep)
    return Abstention(scores, name, threshold)


# ---------------------------------------------------------------- prediction sets


def conformal_sets(run: Opened, coverage: float, kind: SetKind = "lac") -> ConformalSets:
    """The sets whose threshold the run's data.validation gives.

    Raises ValueError for another task, and as `metrics.conformal.threshold_of`.
    """
    task = classification(run, "--coverage")
    check_coverage(coverage)
    cases = run.data.cases(task, "validation")
    if not cases:
        raise ValueError("--coverage needs data.validation, which lists no sources: set it.")
    with heartbeat(f"computing the scores of {len(cases):,} validation cases for prediction sets"):
        shares = probabilities(task.outputs(run.predictor, cases))
    return ConformalSets.fit(kind, coverage, shares, uniforms(cases), task.truth(cases))


def uniforms(encoded: Sequence[Encoded]) -> np.ndarray:
    """float64 [texts], see `metrics.conformal.uniform_of`."""
    return np.array([uniform_of(_shown(e.example)) for e in encoded], np.float64)


def _shown(example: Example) -> str:
    return "\n".join([render(example), *(each.digest for each in example.media)])


# ---------------------------------------------------------------- answers


@dataclass(frozen=True)
class Judge:
    """Adds prediction sets and abstention to the answers of a classification."""

    task: ClassificationTask
    sets: ConformalSets | None
    abstention: Abstention | None

    def answers(self, predict: Predict, encoded: Sequence[Encoded]) -> list[LabelAnswer]:
        """The task's answers, with what is asked for."""
        logits = self.task.outputs(predict, encoded)
        shares = probabilities(logits)
        found = self.task.answers_of(shares)
        if self.sets is not None:
            chosen = self.sets(shares, uniforms(encoded))
            named = [self._named(*each) for each in zip(chosen, shares, strict=True)]
            found = [replace(answer, prediction_set=names) for answer, names in zip(found, named, strict=True)]
        if self.abstention is not None:
            scores, abstained = (each.tolist() for each in self.abstention.of(encoded, logits))
            found = [
                replace(answer, abstained=no, scope_score=score)
                for answer, no, score in zip(found, abstained, scores, strict=True)
            ]
        return found

    def _named(self, chosen: np.ndarray, shares: np.ndarray) -> tuple[str, ...]:
        order = np.argsort(-shares, kind="stable")
        return tuple(self.task.labels[number] for number in order[chosen[order]])


def judge_of(run: Opened, abstention: Abstention | None, coverage: float | None, kind: SetKind = "lac") -> Judge | None:
    """What adds prediction sets (with a coverage) and abstention to a run's answers; None: neither is asked for."""
    sets = None if coverage is None else conformal_sets(run, coverage, kind)
    if sets is None and abstention is None:
        return None
    return Judge(classification(run, "--coverage"), sets, abstention)
