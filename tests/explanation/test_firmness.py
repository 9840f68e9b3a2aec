"""What answers say, and how far they are from saying something else."""

import math

import pytest

from instructrec_jax.explanation.firmness import Outcome, firmness, outcome
from instructrec_jax.tasks.answers import (
    Answer,
    ChoiceAnswer,
    ItemsAnswer,
    LabelAnswer,
    LabelsAnswer,
    NumberAnswer,
    RankedItem,
    TextAnswer,
)


def test_labels_are_compared_by_the_logarithms_of_probabilities() -> None:
    before = outcome(LabelAnswer("a", {"a": 0.7, "b": 0.2, "c": 0.1}))
    nearer = outcome(LabelAnswer("a", {"a": 0.6, "b": 0.1, "c": 0.3}))
    there = outcome(LabelAnswer("b", {"a": 0.2, "b": 0.5, "c": 0.3}))
    assert firmness(before, before, None) == pytest.approx(math.log(0.7 / 0.2))
    assert firmness(nearer, before, None) == pytest.approx(math.log(0.6 / 0.3))
    assert firmness(nearer, before, "b") == pytest.approx(math.log(0.6 / 0.1))
    assert firmness(there, before, None) < 0 < firmness(there, before, "c")
    assert there.is_other(before, None) and there.is_other(before, "b") and not there.is_other(before, "c")
    sure = outcome(LabelAnswer("a", {"a": 1.0, "b": 0.0}))
    assert math.isfinite(firmness(sure, sure, None))


def test_labels_that_stand_together_leave_and_come() -> None:
    before = outcome(LabelsAnswer(("a", "b"), {"a": 0.9, "b": 0.6, "c": 0.2}))
    nearer = outcome(LabelsAnswer(("a", "b"), {"a": 0.9, "b": 0.55, "c": 0.2}))
    assert firmness(nearer, before, None) < firmness(before, before, None)
    assert firmness(before, before, "c") == pytest.approx(math.log(0.8 / 0.2))
    none = outcome(LabelsAnswer((), {"a": 0.1, "b": 0.4}))
    assert none.said == "no label" and firmness(none, none, None) == pytest.approx(math.log(0.6 / 0.4))
    assert none.is_other(before, None) and before.is_other(none, "b")


def test_items_that_do_not_count() -> None:
    items = tuple(RankedItem(f"i{n}", f"title {n}", 3.0 - n) for n in range(3))
    found = outcome(ItemsAnswer(items), {"i0"})
    assert (found.said, found.ids, found.numbers) == ("title 1", ("i1",), {"i1": 2.0, "i2": 1.0})
    assert firmness(found, found, None) == 1.0
    far = Outcome("title 9", ("i9",), "score", {"i9": 5.0, "i2": 1.0})
    assert firmness(far, found, None) == 1.0 - 5.0  # i1 is behind the last one that is compared
    with pytest.raises(ValueError, match="no item"):
        outcome(ItemsAnswer(items), {"i0", "i1", "i2"})


@pytest.mark.parametrize("answer", [NumberAnswer(3.5)])
def test_other_answers_are_refused_by_name(answer: Answer) -> None:
    with pytest.raises(ValueError, match="answers with number"):
        outcome(answer)


def test_candidates_and_texts() -> None:
    choice = outcome(ChoiceAnswer("a", 0.6, {"a": -1.0, "b": -3.0}))
    assert firmness(choice, choice, None) == 2.0 and firmness(choice, choice, "b") == 2.0
    one, other = outcome(TextAnswer("war")), outcome(TextAnswer("love"))
    assert other.is_other(one, None) and other.is_other(one, "love") and not other.is_other(one, "peace")
