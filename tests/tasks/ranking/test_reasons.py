"""Why an item answers: the facts that it shares with what was asked."""

import pytest

from instructrec_jax.data.example import Example
from instructrec_jax.ranking.catalogue import Catalogue
from instructrec_jax.tasks.ranking.reasons import asked_for, facts_of, reason

ITEMS = Catalogue(
    ["a", "b", "c", "d"],
    ["Ark", "Bee", "Cat", "Dog"],
    ["w", "x", "y", "z"],
    {
        "year": [1990, None, 1992, 1993],
        "maker": ["Ann Lee", None, "Bo", "Ann Lee"],
        "kinds": [["war", "sad"], ["war"], None, ["sad", "war", "sad"]],
    },
)


def test_facts_are_the_texts_of_an_items_columns() -> None:
    assert [facts_of(ITEMS, item) for item in range(4)] == [
        ["Ann Lee", "war", "sad"],
        ["war"],
        ["Bo"],
        ["Ann Lee", "sad", "war"],
    ]


@pytest.mark.parametrize(
    ("item", "instruction", "asked", "history", "said"),
    [
        (0, "Something gloomy.", "sad, space", (), "sad"),  # made of facts that other words stand for
        (1, "Something gloomy.", "sad, space", (), ""),
        (0, "A War film by ann lee, please.", "", (), "Ann Lee, war"),  # named word by word
        (0, "Any warm film, saddle or not?", "", (), ""),  # parts of words are none
        (3, "What next?", "", ("a", "b"), "in common with the history: war"),
        (3, "What next?", "", ("a", "d", "b"), "in common with the history: war, Ann Lee, sad"),
        (3, "What next?", "", ("a", "gone"), ""),  # one item is no habit; unknown ones are none
    ],
)
def test_reason(item: int, instruction: str, asked: str, history: tuple[str, ...], said: str) -> None:
    example = Example(instruction=instruction, output="a", history=history, origin={"asked": asked} if asked else {})
    assert reason(ITEMS, item, example) == said
    assert asked_for(example) == [fact for fact in asked.split(", ") if fact]
