"""Whether explanations say what a run goes by: the loss by removing or keeping the words that they rank first.

    comprehensiveness = F(x) − F(x without the first k words)      higher is better
    sufficiency       = F(x) − F(the first k words of x alone)     lower is better

DeYoung et al. (2020, "ERASER"), of the number F that is explained, averaged over shares of the words. Each method is
compared with random orders of the same words, at equal k (Madsen et al., 2022).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from instructrec_jax.explanation.explain import Explainer, Explanation, Method, drawn, parts_of
from instructrec_jax.explanation.rows import Asked
from instructrec_jax.metrics.bootstrap import bootstrap_interval, paired_bootstrap
from instructrec_jax.tasks.objective import Choice
from instructrec_jax.tasks.scores import owners_of

SHARES = (0.1, 0.2, 0.5)
RANDOM_ORDERS = 5

Interval = tuple[float, float, float]


@dataclass(frozen=True)
class MethodRow:
    """A method's faithfulness; differences are (mean, low, high) of the method less random orders."""

    method: Method
    comprehensiveness: Interval
    sufficiency: Interval
    more: Interval
    less: Interval

    @property
    def beats_random(self) -> bool:
        """Whether both differences are on the right side of 0 with their whole intervals."""
        return self.more[1] > 0 and self.less[2] < 0

    def cells(self) -> tuple[tuple[str, str], tuple[str, str]]:
        """(value, difference with interval) of comprehensiveness and of sufficiency, as text."""
        return (
            (f"{self.comprehensiveness[0]:.3f}", _interval(self.more)),
            (f"{self.sufficiency[0]:.3f}", _interval(self.less)),
        )

    def to_record(self) -> dict[str, object]:
        found = {name: list(getattr(self, name)) for name in ("comprehensiveness", "sufficiency", "more", "less")}
        return {"method": self.method, **found, "beats_random": self.beats_random}


@dataclass(frozen=True)
class Faithfulness:
    """The rows of all methods, and random orders (comprehensiveness, sufficiency).

    Attributes:
      texts, skipped: number of examples, and of those left out because they have fewer than two words.
      unit: of the values.
    """

    rows: tuple[MethodRow, ...]
    random: tuple[float, float]
    texts: int
    skipped: int
    unit: str
    shares: tuple[float, ...] = SHARES


def faithfulness(explainer: Explainer, choice: Choice, limit: int = 100) -> Faithfulness:
    """Faithfulness on `limit` examples of data.validation, drawn with the run's seed.

    Raises ValueError for a run without validation data, or with fewer than two usable examples.
    """
    run = explainer.run
    if limit < 2:
        raise ValueError(f"faithfulness is asked of {limit} examples, but intervals need at least 2.")
    cases = drawn(run, limit)
    if len(cases) < 2:
        raise ValueError("faithfulness needs at least two examples in data.validation.")
    found = ((number, explainer.first_asked(encoded, choice)) for number, encoded in cases.items())
    asked = {number: each for number, each in found if each is not None and len(parts_of(each)) > 1}
    explained = iter(explainer.explanations(list(asked.values())))
    measured: list[np.ndarray] = []
    used: list[Asked] = []
    for number, each in asked.items():
        of_methods = [next(explained) for _ in explainer.methods]
        moved = measure(explainer, each, of_methods, np.random.default_rng([run.config.seed, number]))
        if moved is not None:
            measured.append(moved)
            used.append(each)
    if len(measured) < 2:
        raise ValueError("too few examples of data.validation can be used: the others have fewer than two words.")
    values = np.stack(measured)  # [examples, methods and random, 2]
    owners = owners_of([each.encoded.example for each in used])
    rows = [
        MethodRow(
            method,
            *(bootstrap_interval(values[:, place, side], owners=owners) for side in (0, 1)),
            *(paired_bootstrap(values[:, place, side], values[:, -1, side], owners=owners) for side in (0, 1)),
        )
        for place, method in enumerate(explainer.methods)
    ]
    means, unit = values[:, -1].mean(0), used[-1].objective.unit
    return Faithfulness(tuple(rows), (float(means[0]), float(means[1])), len(used), len(cases) - len(used), unit)


def measure(
    explainer: Explainer, asked: Asked, explained: Sequence[Explanation], rng: np.random.Generator
) -> np.ndarray | None:
    """float64 [methods + 1, 2]: comprehensiveness and sufficiency of each method and, last, of random orders.

    None: the network cannot read the text without some of its words.

    Args:
      explained: the explanations of `asked` by each method.
    """
    parts = parts_of(asked)
    orders = []
    for each in explained:
        scores = [-np.inf if score is None else score for score in each.parts]
        orders.append(np.argsort(-np.array(scores), kind="stable"))
    orders += [rng.permutation(len(parts)) for _ in range(RANDOM_ORDERS)]
    removed = [part for order in orders for part in _removed(order)]
    left = [explainer.shortened(asked, [parts[place] for place in some]) for some in removed]
    there = [e for e in left if e is not None]
    if len(there) < len(left):
        return None
    whole, *rest = explainer.values([(asked.objective, e) for e in (asked.encoded, *there)])
    lost = (whole - np.array(rest)).reshape(len(orders), len(SHARES), 2).mean(1)
    return np.concatenate([lost[:-RANDOM_ORDERS], lost[-RANDOM_ORDERS:].mean(0, keepdims=True)])


def _removed(order: np.ndarray) -> list[Sequence[int]]:
    """For each share of the words: the first ones (comprehensiveness), and all others (sufficiency)."""
    counts = [max(1, round(share * len(order))) for share in SHARES]
    return [part for count in counts for part in (order[:count].tolist(), order[count:].tolist())]


def _interval(each: Interval) -> str:
    return f"{each[0]:+.3f} [{each[1]:+.3f}, {each[2]:+.3f}]"
