"""Every answer has a record of plain JSON, with the prediction itself first."""

import inspect
import json
from typing import Any

import numpy as np
import pytest

from instructrec_jax.data.media.drawing import data_uri
from instructrec_jax.tasks import answers as module
from instructrec_jax.tasks.answers import (
    ChoiceAnswer,
    CodesAnswer,
    ImageAnswer,
    ItemsAnswer,
    LabelAnswer,
    LabelsAnswer,
    NumberAnswer,
    RankedItem,
    SpanAnswer,
    TagsAnswer,
    TextAnswer,
    Word,
)

ANSWERS: list[tuple[Any, object, set[str]]] = [
    (LabelAnswer("a", {"a": 0.7, "b": 0.3}), "a", {"probabilities"}),
    (LabelsAnswer(("a", "b"), {"a": 0.7, "b": 0.6}), ["a", "b"], {"probabilities"}),
    (LabelsAnswer((), {"a": 0.1}), [], {"probabilities"}),
    (NumberAnswer(0.5), 0.5, set()),
    (TagsAnswer((Word("New York", "P", 0, 8), Word("is", "O", 9, 11))), ["P", "O"], {"words"}),
    (SpanAnswer("the Po", 3, 9, 1.5), "the Po", {"start", "end", "ahead_of_no_answer"}),
    (SpanAnswer("", None, None, -1.5), "", {"start", "end", "ahead_of_no_answer"}),
    (TextAnswer("漢字 🎬"), "漢字 🎬", set()),
    (TextAnswer("yes", -0.25), "yes", {"log_probability"}),
    (CodesAnswer((3, 0, 7)), [3, 0, 7], set()),
    (ImageAnswer(np.zeros((2, 2, 3)), -4.5), data_uri(np.zeros((2, 2, 3))), {"log_probability"}),
    (ChoiceAnswer("a", 0.7, {"a": 1.0, "b": 0.0}), "a", {"probability", "candidates"}),
    (ItemsAnswer((RankedItem("i1", "Moon", 0.5), RankedItem("i0", "Alien", 0.5))), ["i1", "i0"], {"items"}),
    (ItemsAnswer(), [], {"items"}),
]


@pytest.mark.parametrize(("answer", "prediction", "more"), ANSWERS, ids=lambda value: type(value).__name__)
def test_records(answer: Any, prediction: object, more: set[str]) -> None:
    record = answer.to_record()
    assert next(iter(record)) == "prediction" and record["prediction"] == prediction
    assert set(record) - {"prediction"} == more
    assert json.loads(json.dumps(record, allow_nan=False)) == record


def test_every_kind_of_answer_is_above() -> None:
    kinds = {cls for _, cls in inspect.getmembers(module, inspect.isclass) if cls.__name__.endswith("Answer")}
    assert kinds - {module.Answer} == {type(answer) for answer, _, _ in ANSWERS}


def test_items_and_words_keep_their_order_and_fields() -> None:
    items = ItemsAnswer((RankedItem("i1", "Moon", 0.5),)).to_record()["items"]
    assert items == [{"id": "i1", "title": "Moon", "score": 0.5}]
    words = TagsAnswer((Word("a", "O", 0, 1),)).to_record()["words"]
    assert words == [{"word": "a", "tag": "O", "start": 0, "end": 1}]
