"""Scores of the spans that tags mark (B-x begins one of kind x, I-x goes on, O is outside): a thin door to seqeval."""

import warnings
from collections.abc import Sequence

from seqeval import metrics as seqeval


def marks_spans(labels: Sequence[str]) -> bool:
    """Whether labels are tags of spans: "O" and at least one B-x, and nothing but B-x and I-x beside it."""
    others = [label for label in labels if label != "O"]
    return len(others) < len(labels) and "B-" in {x[:2] for x in others} and all(x[:2] in ("B-", "I-") for x in others)


def span_metrics(
    targets: Sequence[Sequence[str]], predictions: Sequence[Sequence[str]]
) -> tuple[dict[str, float], str]:
    """Micro-averaged "span_precision", "span_recall" and "span_f1" as conlleval counts them, and a report by kind.

    A span is right when its kind and both its ends are. targets, predictions: tags of each text.
    """
    tags = [list(row) for row in targets], [list(row) for row in predictions]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # kinds without a prediction count as 0, and the report shows them
        values = {
            "span_precision": float(seqeval.precision_score(*tags, zero_division=0)),
            "span_recall": float(seqeval.recall_score(*tags, zero_division=0)),
            "span_f1": float(seqeval.f1_score(*tags, zero_division=0)),
        }
        return values, seqeval.classification_report(*tags, digits=4, zero_division=0)
