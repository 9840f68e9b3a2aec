"""Changes of words and items change all their occurrences, and nothing else."""

from pathlib import Path

import pytest
from tiny_thesauri import write_wordnet

from instructrec_jax.augmentation.synonyms import open_thesaurus
from instructrec_jax.data.example import Example, Message
from instructrec_jax.explanation.changes import Change, changed, single_changes

EXAMPLE = Example(
    instruction="A good film, a GOOD book",
    input="so good!",
    messages=(Message("user", "good 电影 🎬"),),
    candidates=("good", "bad"),
    history=("i1", "i2", "i1"),
    output="good",
)


@pytest.mark.parametrize(
    ("change", "instruction", "input", "message", "history"),
    [
        (Change("word", "good"), "A film, a book", "so!", "电影 🎬", ("i1", "i2", "i1")),
        (Change("word", "good", "fine"), "A fine film, a Fine book", "so fine!", "fine 电影 🎬", ("i1", "i2", "i1")),
        (Change("word", "电", "小"), "A good film, a GOOD book", "so good!", "good 小影 🎬", ("i1", "i2", "i1")),
        (Change("item", "i1"), "A good film, a GOOD book", "so good!", "good 电影 🎬", ("i2",)),
        (Change("item", "i1", "i9"), "A good film, a GOOD book", "so good!", "good 电影 🎬", ("i9", "i2", "i9")),
    ],
)
def test_one_change(change: Change, instruction: str, input: str, message: str, history: tuple[str, ...]) -> None:
    found = changed(EXAMPLE, [change])
    assert (found.instruction, found.input, found.messages[0].content, found.history) == (
        instruction,
        input,
        message,
        history,
    )
    assert (found.candidates, found.output) == (EXAMPLE.candidates, EXAMPLE.output)


def test_changes_do_not_meet() -> None:
    """A word that comes in place of another is not left out, nor replaced again."""
    both = [Change("word", "film", "book"), Change("word", "book", "film"), Change("word", "a")]
    assert changed(Example(instruction="a film is a book"), both).instruction == "book is film"
    moved = [Change("word", "film", "movie"), Change("word", "movie")]
    assert changed(Example(instruction="film movie"), moved).instruction == "movie"
    items = [Change("item", "i1", "i2"), Change("item", "i2")]
    assert changed(EXAMPLE, items).history == ("i2", "i2")
    assert changed(EXAMPLE, []) == EXAMPLE


def test_every_single_change(tmp_path: Path) -> None:
    thesaurus = open_thesaurus(str(write_wordnet(tmp_path / "wordnet")))
    found = single_changes(Example(instruction="The film", history=("i1", "i1")), thesaurus, {"i1": ["i2", "i3"]})
    assert found == [
        Change("word", "The"),
        Change("word", "film"),
        Change("word", "film", "movie"),
        Change("item", "i1"),
        Change("item", "i1", "i2"),
        Change("item", "i1", "i3"),
    ]
    said = single_changes(Example(instruction="", messages=(Message("user", "film"),)), None, {})
    assert said == [Change("word", "film")]  # and not "user", which is no word of the text
    assert single_changes(Example(instruction="?!"), None, {}) == []
