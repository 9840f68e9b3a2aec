"""Ties: where a file lists the answer never matters."""

import numpy as np
import pytest

from instructrec_jax.data.batch import Text
from instructrec_jax.data.example import Example
from instructrec_jax.tasks.base import Encoded
from instructrec_jax.tasks.text.option_scoring import Options, option_scores, shown_options

NAMES = ("a", "b", "c", "d", "e", "f")


def cases(right: int, count: int = 60) -> tuple[list[Encoded], list[Options]]:
    made = [Example(instruction=f"which {n}", output=NAMES[right], candidates=NAMES, id=str(n)) for n in range(count)]
    return [Encoded(Text(np.array([1])), None, e) for e in made], [Options(NAMES, NAMES, right, True)] * count


@pytest.mark.parametrize("right", range(6))
def test_a_constant_scorer_gets_what_guessing_gets(right: int) -> None:
    encoded, options = cases(right)
    found = option_scores(encoded, options, [np.zeros(6)] * len(encoded), NAMES, "")
    expected = {"accuracy": 1 / 6, "mrr": np.mean(1 / np.arange(1, 7)), "recall@2": 2 / 6, "recall@5": 5 / 6}
    for name, value in expected.items():
        assert found.cases[name].tolist() == pytest.approx([value] * len(encoded))
    assert found.metrics["ece"] == pytest.approx(0)
    assert {record["prediction"] for record in found.predictions} == set(NAMES)
    assert found.metrics["macro_f1"] < 0.2


def test_what_is_clear_is_counted_as_before_and_ties_below_the_top_are_averaged() -> None:
    encoded, options = cases(2, count=3)
    logits = [np.array([0, 0, 3.0, 1, 1, 1]), np.array([5, 0, 4.0, 1, 1, 1]), np.array([5, 4, 4.0, 1, 1, 1])]
    found = option_scores(encoded, options, logits, [], "")
    assert found.cases["accuracy"].tolist() == [1, 0, 0]
    assert found.cases["mrr"].tolist() == pytest.approx([1, 1 / 2, (1 / 2 + 1 / 3) / 2])
    assert found.cases["recall@2"].tolist() == pytest.approx([1, 1, 1 / 2])


def test_of_equal_candidates_the_predicted_one_is_shown_first() -> None:
    encoded, options = cases(0, count=8)
    found = option_scores(encoded, options, [np.zeros(6)] * 8, [], "")
    for record in found.predictions:
        assert shown_options(record)["answers"][0]["text"] == record["prediction"]


def test_numbers_that_are_none_are_an_error() -> None:
    encoded, options = cases(0, count=1)
    with pytest.raises(ValueError, match="NaN"):
        option_scores(encoded, options, [np.full(6, np.nan)], [], "")
