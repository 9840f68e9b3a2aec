"""uncertainty.json: what `evaluate` measures of a run's uncertainty, which the report shows."""

from collections.abc import Sequence
from typing import NotRequired, TypedDict

from instructrec_jax.evaluation.layout import fitted, text_width


class DoubtTable(TypedDict):
    """A table of texts: a title, what it says, and rows; the first of these has the names of the columns."""

    title: str
    text: str
    rows: list[list[str]]


class Uncertainty(TypedDict):
    """The tables, and the numbers that they are made of.

    Attributes:
      split: the cases.
      calibration: as in calibration.json.
      coverage: of `metrics.conformal.set_metrics`, with "coverage", "sets" and "validation_cases".
      out_of_domain: file -> score -> "auroc", "fpr_at_95_tpr" and "aupr", each with its 95% interval.
      abstention: of `metrics.abstention.selective_metrics`, with "score" and "threshold".
    """

    split: str
    tables: list[DoubtTable]
    calibration: NotRequired[dict[str, object]]
    coverage: NotRequired[dict[str, object]]
    out_of_domain: NotRequired[dict[str, dict[str, dict[str, list[float]]]]]
    abstention: NotRequired[dict[str, object]]


def format_doubts(tables: Sequence[DoubtTable]) -> str:
    """The tables as text for the terminal."""
    found = []
    for table in tables:
        found.append("\n".join([table["title"], table["text"], *fitted(table["rows"], text_width())]))
    return "\n\n".join(found)
