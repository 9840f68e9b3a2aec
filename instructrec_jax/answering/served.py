"""Scores of requests whose words hold conditions: one implementation under `evaluate` and `recommend`."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from instructrec_jax.answering.ranker import FusedRanker, Ranker
from instructrec_jax.answering.titles import Titles
from instructrec_jax.answering.understanding import Reading, Understanding
from instructrec_jax.ranking.fusion import hybrid, moments
from instructrec_jax.tasks.base import Encoded

LIKENESS = 0.5  # weight of the likeness to a picture or to another item, beside the scores of the words


def mixed(own: np.ndarray, likeness: np.ndarray, allowed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scores of words and likeness, both standardized, float64 [1, items], and the weight of one unit of the former.

    An item without a likeness has the mean likeness of the others.

    Args:
      own: float [1, items].
      likeness: float [items]; −inf: unknown.
      allowed: bool [items].
    """
    own = np.where(allowed, own, -np.inf)
    known = np.isfinite(likeness)
    among = known & allowed if (known & allowed).any() else known
    alike = np.where(known, likeness, likeness[among].mean())
    return hybrid(own, alike[None], LIKENESS), (1 - LIKENESS) / moments(own)[1]


def likeness_to(first: Ranker, examples: Sequence[int]) -> np.ndarray:
    """float64 [items]: the cosine of each item's vector with those of the example items, their mean."""
    vectors = first.vectors.astype(np.float64)
    sizes = np.maximum(np.linalg.norm(vectors, axis=1), 1e-12)
    unit = vectors / sizes[:, None]
    return unit @ unit[list(examples)].mean(0)


def understanding_of(first: Ranker, titles: Titles | None = None, *, compares: bool = True) -> Understanding:
    """What reads requests for a run. compares: whether it may compare items, which takes vectors of them."""
    found = Titles(first.catalogue) if titles is None else titles
    return Understanding(found, compares=compares and first.task.retrieves and first.has_vectors)


def read_cases(first: Ranker, cases: Sequence[Encoded]) -> list[Reading]:
    """The readings of the instructions of cases."""
    understanding = understanding_of(first)
    return [understanding.read(case.example.instruction) for case in cases]


def served_scores(
    first: Ranker, fused: FusedRanker | None, cases: Sequence[Encoded], readings: Sequence[Reading]
) -> Callable[[slice], np.ndarray]:
    """A function: slice of the cases -> scores, float64 [cases, items]; −inf for items that a reading rules out.

    Args:
      fused: the hybrid that the run answers with, if there is one.
    """
    understanding = understanding_of(first)

    def said(case: Encoded, reading: Reading) -> str:
        if not reading.conditional:
            return case.example.instruction
        return first.wording.prompt(first.catalogue, [], reading.wish)

    asked = [
        replace(case.example, instruction=said(case, reading)) for case, reading in zip(cases, readings, strict=True)
    ]
    own = first.encode(asked)
    others = None if fused is None else fused.second.encode(asked)

    def score(block: slice) -> np.ndarray:
        hidden = [case.target.seen for case in cases[block]]
        alone = np.array(first.scores(own[block]), np.float64)
        if fused is None or others is None:
            scores = alone.copy()
        else:
            scores = np.array(fused.scores(own[block], others[block], hidden), np.float64)
        for row, reading in enumerate(readings[block]):
            allowed = np.ones(scores.shape[1], bool)
            allowed[hidden[row]] = False
            allowed = understanding.allowed(reading, allowed)[0]
            if reading.like:
                likeness = likeness_to(first, reading.like)
                scores[row] = mixed(alone[row : row + 1], likeness, allowed)[0][0] if reading.wish else likeness
            scores[row, ~allowed] = -np.inf
        return scores

    return score
