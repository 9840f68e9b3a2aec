"""Metrics of spans marked by BIO tags (B-x starts a span of kind x, I-x continues it): a thin wrapper of seqeval."""

import warnings
from collections.abc import Sequence

import numpy as np

from instructrec_jax.metrics.bootstrap import CorpusMetric


def marks_spans(labels: Sequence[str]) -> bool:
    """Whether labels are BIO tags: "O", at least one B-x, and otherwise only B-x and I-x."""
    others = [label for label in labels if label != "O"]
    return len(others) < len(labels) and "B-" in {x[:2] for x in others} and all(x[:2] in ("B-", "I-") for x in others)


def span_metrics(
    targets: Sequence[Sequence[str]], predictions: Sequence[Sequence[str]]
) -> tuple[dict[str, float], str]:
    """Micro-averaged "span_precision", "span_recall" and "span_f1" as in conlleval, and a report by kind.

    A span is correct if its kind and both its ends are. targets, predictions: tags of each text.
    """
    from seqeval import metrics as seqeval  # takes a second to import, as it loads scikit-learn

    tags = [list(row) for row in targets], [list(row) for row in predictions]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # kinds without a prediction count as 0, and the report shows them
        values = {
            "span_precision": float(seqeval.precision_score(*tags, zero_division=0)),
            "span_recall": float(seqeval.recall_score(*tags, zero_division=0)),
            "span_f1": float(seqeval.f1_score(*tags, zero_division=0)),
        }
        return values, seqeval.classification_report(*tags, digits=4, zero_division=0)


def resampled_span_f1(targets: Sequence[Sequence[str]], predictions: Sequence[Sequence[str]]) -> CorpusMetric:
    """Micro-averaged F1 of the spans of any of the texts; targets, predictions: tags of each text."""
    from seqeval.metrics.sequence_labeling import get_entities

    pairs = [
        (set(get_entities(list(truth))), set(get_entities(list(guess))))
        for truth, guess in zip(targets, predictions, strict=True)
    ]
    counts = np.array([(len(true & found), len(true) + len(found)) for true, found in pairs], np.int64)

    def value(drawn: np.ndarray) -> float:
        right, named = counts[drawn].sum(0)
        return float(2 * right / named) if named else 0.0

    return CorpusMetric(value, len(counts))
