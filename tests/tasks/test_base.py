"""What all tasks share: examples in pieces, and what is counted."""

import numpy as np

from instructrec_jax.data.batch import Text
from instructrec_jax.data.example import Example
from instructrec_jax.tasks import ClassificationConfig, LanguageModelConfig, RetrievalConfig
from instructrec_jax.tasks.base import Encoded, TaskContext, pieces


def windows(count: int, each: int) -> list[Encoded]:
    examples = [Example(instruction=str(number)) for number in range(count)]
    return [Encoded(Text(np.array([window])), None, e) for e in examples for window in range(each)]


def test_what_was_made_of_an_example_is_found_together() -> None:
    encoded = windows(4, 3)
    assert list(pieces(encoded)) == [encoded[first : first + 3] for first in (0, 3, 6, 9)] and list(pieces([])) == []


def test_counts_add_up_and_nothing_is_no_line() -> None:
    context = TaskContext(None, 8)
    context.count("texts cut")
    context.count("texts cut", 2)
    context.count("texts dropped", 0)
    assert context.counts == {"texts cut": 3}


def test_configs_say_what_they_are() -> None:
    assert ClassificationConfig(labels=["a", "b"]).label_names == ["a", "b"]
    assert ClassificationConfig().name == "classification" and LanguageModelConfig().label_names is None
    assert RetrievalConfig().ranks_catalogue and not RetrievalConfig().answers_are_text
    assert LanguageModelConfig().answers_are_text and not LanguageModelConfig().ranks_catalogue
