"""The explanations of a run in its report: which methods can be trusted, some texts, and the words for each label."""

from collections import defaultdict
from collections.abc import Iterable, Sequence

import jax
import numpy as np

from instructrec_jax.distributed.heartbeat import heartbeat
from instructrec_jax.evaluation.explained import (
    Explanations,
    MeasuredMethod,
    PushedTarget,
    PushingWord,
)
from instructrec_jax.explanation.explain import Explainer, Explanation, methods_of
from instructrec_jax.explanation.faithfulness import Faithfulness, MethodRow, faithfulness
from instructrec_jax.explanation.page import shaded
from instructrec_jax.explanation.shown import NAMES
from instructrec_jax.runs.run import Run
from instructrec_jax.tasks.objective import Choice

SHOWN = 20  # texts with their words shaded
WORDS = 10  # of a target
TARGETS = 20
STEPS = 32  # most points of integrated gradients: an error above 1% is counted and said


def explanations(run: Run, limit: int) -> Explanations:
    """Explains examples of data.validation by the most faithful method.

    Of the methods that beat random orders (see `faithfulness`), that is the one with the largest gain of
    comprehensiveness; if none does, no text is explained.

    Args:
      limit: number of examples, drawn with the run's seed.

    Raises ValueError as `Explainer` and `faithfulness`, and where several processes run.
    """
    if jax.process_count() > 1:
        raise ValueError("--explanations runs on one process: leave it out here, and evaluate once more on one.")
    with heartbeat(f"explaining {limit} examples"):
        return _explanations(run, limit)


def _explanations(run: Run, limit: int) -> Explanations:
    explainer = Explainer(run, methods_of(run), most=STEPS)
    measured = faithfulness(explainer, Choice(), limit)
    found: Explanations = {
        "texts_measured": measured.texts,
        "random": (f"{measured.random[0]:.3f}", f"{measured.random[1]:.3f}"),
        "methods": [_method(row) for row in measured.rows],
        "unconverged": 0,
        "texts": [],
        "targets": [],
    }
    best = most_faithful(measured)
    if best is None:
        return found
    explained = Explainer(run, (best.method,), most=STEPS).of_validation(limit)
    return found | {
        "method": NAMES[best.method],
        "unconverged": sum(each.converged is False for each in explained),
        "texts": [shaded(each, explainer.reader) for each in explained[:SHOWN]],
        "targets": pushed(explained),
    }


def most_faithful(measured: Faithfulness) -> MethodRow | None:
    """The method that gains most comprehensiveness over random orders; None: none beats them."""
    return max((row for row in measured.rows if row.beats_random), key=lambda row: row.more[0], default=None)


def _method(row: MethodRow) -> MeasuredMethod:
    (comprehensiveness, more), (sufficiency, less) = row.cells()
    return {
        "name": NAMES[row.method],
        "comprehensiveness": comprehensiveness,
        "more": more,
        "sufficiency": sufficiency,
        "less": less,
        "beats_random": row.beats_random,
    }


def pushed(explained: Iterable[Explanation]) -> list[PushedTarget]:
    """The words (and items of the history) of each predicted target with the largest mean scores.

    Targets by their number of texts with words.
    """
    scores: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    texts: dict[str, int] = defaultdict(int)
    for e in explained:
        named = [*zip(map(str.casefold, e.words), e.scores, strict=True), *e.history]
        texts[e.target] += bool(named)
        for word, score in named:
            if score is not None:
                scores[e.target][word].append(score)
    most = sorted((target for target in texts if texts[target]), key=lambda target: (-texts[target], target))[:TARGETS]
    return [{"target": target, "words": _largest(scores[target])} for target in most]


def _largest(scores: dict[str, list[float]]) -> list[PushingWord]:
    words: Sequence[PushingWord] = [
        {"word": word, "score": float(np.mean(each)), "texts": len(each)} for word, each in scores.items()
    ]
    # a word's sum, as in a linear model of the scores: frequent words with a small mean count, too
    return sorted(words, key=lambda word: -abs(word["score"]) * word["texts"])[:WORDS]
