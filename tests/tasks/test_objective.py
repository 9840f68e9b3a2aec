"""The target of an explanation, what it is contrasted with, and names that there are not."""

import pytest

from instructrec_jax.tasks.objective import Choice, contrast, one_of, place_of, refuse_contrast, refuse_word

NAMES = ["good", "bad"]


def test_the_prediction_is_the_default() -> None:
    assert contrast(Choice(), NAMES, 1, "label") == (1, None)
    assert contrast(Choice("good", "bad"), NAMES, 1, "label") == (0, 1)
    assert one_of(2, 0, 1).tolist() == [1, -1] and one_of(2, 1, None).tolist() == [0, 1]


def test_what_there_is_not_is_named() -> None:
    with pytest.raises(ValueError, match="no label 'ugly': choose from 'good', 'bad'"):
        place_of("ugly", NAMES, "label")
    with pytest.raises(ValueError, match="both 'bad'"):
        contrast(Choice(against="bad"), NAMES, 1, "label")
    with pytest.raises(ValueError, match="leave them out"):
        refuse_contrast(Choice("good"), "this task has none")
    with pytest.raises(ValueError, match="--word"):
        refuse_word(Choice(word="film"))
