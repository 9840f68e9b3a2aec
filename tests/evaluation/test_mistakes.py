"""The wrong answers that are given most."""

import numpy as np
from tiny_pictures import png

from instructrec_jax.data.batch import Text
from instructrec_jax.data.example import Example
from instructrec_jax.data.media.picture import Picture
from instructrec_jax.evaluation.mistakes import EACH, mistakes_of
from instructrec_jax.tasks.base import Encoded
from instructrec_jax.tasks.scores import Scores


def cases(
    said: list[tuple[object, object]], instruction: str = "", pictures: bool = True
) -> tuple[list[Encoded], Scores]:
    examples = [
        Example(instruction=instruction, images=(Picture.of(png(number)),) if pictures else ())
        for number in range(len(said))
    ]
    records = [{"reference": target, "prediction": answer} for target, answer in said]
    return [Encoded(Text(np.zeros(1, np.int32)), None, e) for e in examples], Scores({}, {}, records)


def test_the_most_frequent_come_first_with_pictures_of_their_own_cases() -> None:
    encoded, scores = cases([("a", "b"), ("a", "a"), ("b", "a"), *[("a", "b")] * 4, ("c", "c")])
    first, second = mistakes_of({"": scores}, {"": encoded})
    assert (first["reference"], first["prediction"], first["count"]) == ("a", "b", 5)
    assert (second["reference"], second["prediction"], second["count"]) == ("b", "a", 1)
    assert len(first["pictures"]) == EACH and "instruction" not in first
    assert len({each["data"] for each in first["pictures"]}) == EACH


def test_a_question_is_shown_beside_its_picture() -> None:
    encoded, scores = cases([(["red"], "blue"), (["red"], "blue")], "what color?")
    (found,) = mistakes_of({"": scores}, {"": encoded})
    assert found["instruction"] == "what color?" and found["reference"] == "red" and len(found["pictures"]) == 1


def test_there_are_none_without_pictures_or_texts() -> None:
    for encoded, scores in (cases([("a", "b")], "x", pictures=False), cases([(1.5, 2.0), (["a", "b"], ["a"])])):
        assert mistakes_of({"": scores}, {"": encoded}) == []
