"""What counts as grounded."""

import pytest
from synthesis_texts import RIVER, TOWN

from instructrec_jax.synthesis import grounding as module
from instructrec_jax.synthesis.grounding import Pair, problem, share_in, stands_in
from instructrec_jax.synthesis.passages import Passage

TEN, NINE = "The cathedral was built in 10 years by them.", "The cathedral was built in 9 years by them."


@pytest.mark.parametrize(
    ("part", "text", "stands"),
    [
        ("Black  forest", TOWN, True),
        ("25,000", TOWN, True),
        ("25", TOWN, False),
        ("5,000", TOWN, False),
        ("Freib", TOWN, False),
        ("a univer", TOWN, False),
        ("1957", RIVER, True),
        ("957", RIVER, False),
        ("第一座大桥", RIVER, True),
        ("６３００公里", RIVER, True),
        ("第三座大桥", RIVER, False),
        ("", TOWN, False),
        ("cat", "a cathedral, a cat", True),
        ("café", "the cafe\u0301 there", True),
    ],
)
def test_stands_in(part: str, text: str, stands: bool) -> None:
    assert stands_in(part, text) == stands


def test_shares_of_words() -> None:
    assert share_in("The cathedral of Cologne", Passage(TOWN)) == 0.5
    assert share_in("the of", Passage(TOWN)) == 1.0
    assert share_in("三峡大坝", Passage(RIVER)) == 1.0
    assert share_in("三峡水坝", Passage(RIVER)) == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("pair", "reason"),
    [
        (Pair("r", "Where?", "the Black Forest"), ""),
        (Pair("r", "Where?", "the White Forest"), module.NOT_IN_TEXT),
        (Pair("r", "Where?", "."), module.EMPTY),
        (Pair("r", " ", "Freiburg"), module.EMPTY),
        (Pair("r", "Where?", "word " * 121), module.LONG),
        (Pair("r", "a cathedral of Freiburg", "Freiburg has a cathedral", "summary"), ""),
        (Pair("r", "s", "Cologne has a river and boats", "summary"), module.FOREIGN_WORDS),
        (Pair("r", "s", TOWN[:250], "summary"), module.NO_SUMMARY),
        (Pair("r", "t", "Freiburg, old town", "title"), ""),
        (Pair("r", "t", "Cologne and Hamburg", "title"), module.OTHER_TITLE),
        (Pair("r", "A. Many visitors\nB. It has a library", "B, A", "order"), ""),
        (Pair("r", "A. Many visitors\nB. It has a library", "A, B", "order"), module.NO_ORDER),
        (Pair("r", "A. Many visitors\nB. It has a library", "B", "order"), module.NO_ORDER),
        (Pair("r", "A. Many visitors\nB. It has a library", "B, C", "order"), module.NO_ORDER),
        (Pair("r", "A. Many visitors\nB. It has a church", "B, A", "order"), module.NO_ORDER),
        (Pair("r", "Which order?", "B, A", "order"), module.NO_ORDER),
        (Pair("r", "So? It has a library", "Yes", "yes", ("It has a library",)), ""),
        (Pair("r", "So?", "Yes", "yes", ("It has a library",)), module.UNCHECKED),
        (Pair("r", "So?", "Yes", "yes"), module.UNCHECKED),
        (Pair("r", "So? It has a church", "Yes", "yes", ("It has a church",)), module.NOT_SO),
        (Pair("r", "So? It has a church", "No", "no", ("It has a church", "It has a library")), ""),
        (Pair("r", "So? It has a church", "No", "no", ("It has a church", "It has a school")), module.NOT_SO),
        (Pair("r", "So? It has a library", "No", "no", ("It has a library", "Many visitors")), module.NOT_SO),
    ],
)
def test_problems(pair: Pair, reason: str) -> None:
    assert problem(pair, Passage(TOWN)) == reason
