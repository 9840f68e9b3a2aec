"""What an evaluation of a task gives: metrics, and what intervals and reports need of its cases."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from instructrec_jax.data.example import Example
from instructrec_jax.metrics.bootstrap import CorpusMetric
from instructrec_jax.tasks.answers import CaseRecord


@dataclass
class Scores:
    """Result of an evaluation.

    Attributes:
      metrics: name -> value, as printed and logged.
      cases: metric -> float [cases], for metrics that are means over cases (for paired intervals).
      predictions: one JSON-able record per case.
      report: longer text, such as a per-class table.
      main: the metrics of the table; empty: all.
      segments: subgroup -> numbers of its cases.
      places: subgroup -> (axis, place on it), for subgroups along an axis, in its order.
      protocol: how the metrics were measured.
      charts: data of the report's charts: "confusion" {"labels", "counts"}, "calibration" {"bins"}.
      compared: metrics with paired differences to other rows, beside the metric that selects checkpoints.
      corpus: metrics that are not means over cases, for intervals by resampling.
      owners: metric -> int64 [cases], see `owners_of`; the cases of a missing metric are independent.
      note: a remark below the table, such as why a baseline has no metrics.
    """

    metrics: dict[str, float]
    cases: dict[str, np.ndarray] = field(default_factory=dict)
    predictions: Sequence[CaseRecord] = ()
    report: str = ""
    main: Sequence[str] = ()
    segments: Mapping[str, np.ndarray] = field(default_factory=dict)
    places: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    protocol: str = ""
    charts: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    compared: Sequence[str] = ()
    corpus: Mapping[str, CorpusMetric] = field(default_factory=dict)
    owners: Mapping[str, np.ndarray] = field(default_factory=dict)
    note: str = ""

    def owned_by(self, owners: np.ndarray | None) -> "Scores":
        """The same scores with the owners of the cases, see `owners_of`."""
        shared = {} if owners is None else dict.fromkeys([*self.cases, *self.corpus], owners)
        return replace(self, owners={**self.owners, **shared})


# Fields of an example's origin that name its owner; the first one present counts.
OWNERS = ("user", "viewer", "customer", "author", "speaker", "conversation", "dialogue", "document", "article")


def owner_of(example: Example) -> tuple[str, str]:
    """(field of the origin that names the example's owner, owner); ("", "") without one."""
    named = ((name, example.origin.get(name, "")) for name in OWNERS)
    return next((pair for pair in named if pair[1]), ("", ""))


def owners_of(examples: Iterable[Example], shared_input: bool = False) -> np.ndarray | None:
    """int64 [examples], equal for examples of one owner (user, document, conversation); None where all differ.

    Cases of one owner are correlated, so bootstrap intervals resample owners. The owner is the field of `origin` named
    in `OWNERS`, else the example object, which consecutive windows or turns may share.

    Args:
      shared_input: whether examples with the same `input` have the same owner.
    """
    known: dict[tuple[str, str], int] = {}

    def numbers() -> Iterator[int]:
        last, number, count = None, 0, 0
        for example in examples:
            said = owner_of(example)
            if not said[1] and shared_input and example.input:
                said = ("input", example.input)
            if said[1] or example is not last:
                number = known.setdefault(said, count) if said[1] else count
                count += number == count
            last = example
            yield number

    owners = np.fromiter(numbers(), np.int64)
    return owners if len(owners) and owners.max() + 1 < len(owners) else None


class BaselineNotFitted(ValueError):
    """The training examples do not suffice to fit a baseline: its row of the table has this message as a note."""


def unless_unfit(measure: Callable[[], Scores]) -> Scores:
    """The result of `measure`; where it raises `BaselineNotFitted`, scores without metrics and a note."""
    try:
        return measure()
    except BaselineNotFitted as error:
        return Scores({}, note=str(error))
