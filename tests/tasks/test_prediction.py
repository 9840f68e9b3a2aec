"""A model as tasks see it: each text runs once where its results are remembered, draws by seed and number."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from instructrec_jax.data.batch import Text
from instructrec_jax.inference.generation_config import GenerationConfig
from instructrec_jax.tasks.prediction import Predict


def text(number: int) -> Text:
    return Text(np.array([number], np.int32))


class Model:
    """Answers with a text's token; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []
        self.dropout: list[Any] = []

    def __call__(self, texts: Sequence[Text], own: object = None, dropout: Any = None) -> list[np.ndarray]:
        self.asked.append([int(each.tokens[0]) for each in texts])
        self.dropout.append(dropout)
        return [each.tokens * 10 for each in texts]


def values(outputs: Sequence[np.ndarray]) -> list[int]:
    return [int(output[0]) for output in outputs]


def test_without_a_memory_every_call_runs() -> None:
    model, one = Model(), text(1)
    predict = Predict(model)
    assert values(predict([one, one])) == values(predict([one, one])) == [10, 10]
    assert model.asked == [[1, 1], [1, 1]]


def test_a_remembered_text_runs_once_and_keeps_its_place() -> None:
    model, texts = Model(), [text(n) for n in range(4)]
    predict = Predict(model).remember()
    assert values(predict([texts[1], texts[0], texts[1]])) == [10, 0, 10]
    assert values(predict([texts[3], texts[1], texts[2]])) == [30, 10, 20]
    assert model.asked == [[1, 0], [3, 2]]
    assert values(predict([texts[2]])) == [20] and predict([]) == [] and len(model.asked) == 2


def test_objects_are_remembered_not_contents() -> None:
    """An id is reused after its object is gone: the memory keeps the object."""
    model = Model()
    predict = Predict(model).remember()
    for number in range(200):
        assert values(predict([text(number)])) == [10 * number]
    assert len(model.asked) == 200


def test_arrays_of_the_task_and_single_uses_pass_by_the_memory() -> None:
    model, one = Model(), text(1)
    predict = Predict(model).remember()
    predict([one], own={"extra": 1})
    predict.once([one])
    predict([one])
    assert model.asked == [[1]] * 3 and len(predict.known or {}) == 1


def test_subtasks_remember_too_and_apart() -> None:
    first, second, one = Model(), Model(), text(1)
    predict = Predict(first, subtasks={"other": Predict(second)})
    remembering = predict.remember()
    for _ in range(2):
        remembering([one])
        remembering.subtasks["other"]([one])
    assert first.asked == second.asked == [[1]] and predict.known is None


def test_draws_have_a_seed_and_the_numbers_of_their_texts() -> None:
    model = Model()
    predict = Predict(model).remember()
    predict.draw([text(5), text(6)], 7)
    predict.draw([text(5), text(6)], 2**32 - 1, numbers=[9, 3])
    (seed, numbers), (other, given) = model.dropout
    assert (seed, numbers.tolist()) == (7, [0, 1]) and (other, given.tolist()) == (2**32 - 1, [9, 3])
    assert seed.dtype == np.uint32 and numbers.dtype == given.dtype == np.int32
    assert model.asked == [[5, 6]] * 2  # never from the memory


def test_a_task_that_writes_nothing_says_so() -> None:
    with pytest.raises(TypeError, match="writes"):
        Predict(Model()).write([np.ones(1, np.int32)], GenerationConfig())
