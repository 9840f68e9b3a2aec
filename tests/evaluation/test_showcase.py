"""The examples that a run ends with."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from instructrec_jax.data.batch import Text
from instructrec_jax.data.example import Example
from instructrec_jax.evaluation.showcase import showcase
from instructrec_jax.evaluation.tables import format_examples
from instructrec_jax.tasks.base import Encoded, Task
from instructrec_jax.tasks.prediction import Predict

PREDICT = Predict(lambda texts, *_: [np.zeros(1) for _ in texts])


class Echo(Task):
    """Shows the first examples of a group."""

    def showcase(self, predict: Predict, encoded: Sequence[Encoded]) -> list[dict[str, Any]]:
        return [{"instruction": e.example.instruction, "wanted": None, "answers": []} for e in encoded[:5]]


def cases(name: str, count: int) -> list[Encoded]:
    text = Text(np.zeros(1, np.int32))
    return [Encoded(text, None, Example(instruction=f"{name}{number}")) for number in range(count)]


def test_groups_take_turns_and_never_show_the_same_case() -> None:
    groups = {"seen": cases("s", 6), "unseen": cases("u", 6)}
    shown = showcase(Echo(), PREDICT, groups)
    assert [x["instruction"] for x in shown] == ["s0", "u1", "s2", "u3", "s4"]
    assert [x["group"] for x in shown] == ["seen", "unseen", "seen", "unseen", "seen"]
    few = showcase(Echo(), PREDICT, {"seen": cases("s", 1), "unseen": cases("u", 2)})
    assert [x["instruction"] for x in few] == ["s0", "u1"]


def test_one_group_is_not_named() -> None:
    shown = showcase(Echo(), PREDICT, {"": cases("s", 3)})
    assert [x["instruction"] for x in shown] == ["s0", "s1", "s2"] and "group" not in shown[0]


def test_text_says_group_facts_and_reasons() -> None:
    example = {
        "group": "unseen phrasings",
        "instruction": "Something gloomy.",
        "asked": ["sad", "war"],
        "wanted": "Ark (1990)",
        "wanted_why": "sad, war",
        "answers": [{"text": "Ark (1990)", "score": 1.5, "why": "sad, war"}, {"text": "Bee", "score": 1.0, "why": ""}],
    }
    assert format_examples([example]).splitlines() == [
        "unseen phrasings:",
        "“Something gloomy.”",
        " asked for: sad, war",
        "* 1.   1.5000  Ark (1990)  (sad, war)",
        "  2.   1.0000  Bee",
        "    target: Ark (1990)  (sad, war)",
    ]
