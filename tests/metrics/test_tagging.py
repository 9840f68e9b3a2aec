"""Spans of tags: seqeval called directly, and spans counted by hand."""

import numpy as np
import pytest
from seqeval.metrics import f1_score

from instructrec_jax.metrics.tagging import marks_spans, resampled_span_f1, span_metrics

WANTED = [["B-per", "I-per", "O", "B-loc"], ["O", "B-loc", "I-loc"]]
FOUND = [["B-per", "I-per", "O", "B-per"], ["O", "B-loc", "O"]]


def test_spans_are_right_as_a_whole() -> None:
    """One of three wanted spans is found whole; one of three found ones is right."""
    values, report = span_metrics(WANTED, FOUND)
    assert values["span_precision"] == values["span_recall"] == pytest.approx(1 / 3)
    assert values["span_f1"] == f1_score(WANTED, FOUND)
    assert "per" in report and "loc" in report


@pytest.mark.parametrize(
    ("labels", "expected"),
    [(["O", "B-x", "I-x"], True), (["B-x", "I-x"], False), (["O", "I-x"], False), (["O", "B-x", "verb"], False)],
)
def test_which_labels_mark_spans(labels: list[str], expected: bool) -> None:
    assert marks_spans(labels) is expected


def test_span_f1_of_any_texts() -> None:
    wanted = [["B-x", "I-x", "O"], ["O", "B-y"], ["B-x", "O"]]
    found = [["B-x", "O", "O"], ["O", "B-y"], ["B-x", "B-y"]]
    again = [0, 2, 2, 1]
    expected = span_metrics([wanted[i] for i in again], [found[i] for i in again])[0]["span_f1"]
    assert resampled_span_f1(wanted, found).value(np.array(again)) == pytest.approx(expected)
