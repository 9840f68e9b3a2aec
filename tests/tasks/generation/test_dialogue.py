"""A conversation as one example per trained turn of the assistant."""

import pytest

from instructrec_jax.data.example import Example, Message
from instructrec_jax.data.prompts import answer
from instructrec_jax.tasks.generation.dialogue import turns
from instructrec_jax.tasks.scores import owners_of

USER, BOT = "user", "assistant"


def talk(*said: tuple[str, str] | Message, **fields: object) -> Example:
    messages = tuple(m if isinstance(m, Message) else Message(*m) for m in said)
    return Example(instruction="", messages=messages, **fields)  # type: ignore[arg-type]


CHAT = talk((USER, "one?"), (BOT, "1"), (USER, "two?"), (BOT, "2"), (USER, "three?"), (BOT, "3"), id="c")


def test_each_turn_is_asked_after_the_turns_before_it() -> None:
    found = turns(CHAT)
    assert [answer(e) for e in found] == ["1", "2", "3"]
    assert [len(e.messages) for e in found] == [2, 4, 6]
    assert [e.id for e in found] == ["c, turn 2", "c, turn 4", "c"]


def test_an_output_behind_the_conversation_is_its_last_turn() -> None:
    found = turns(talk((USER, "one?"), (BOT, "1"), (USER, "two?"), output="2"))
    assert [answer(e) for e in found] == ["1", "2"] and found[0].output is None
    repeated = turns(talk((USER, "one?"), (BOT, "1"), output="1"))  # said twice: one turn
    assert [answer(e) for e in repeated] == ["1"]


def test_turns_that_are_not_learnt_are_context_only() -> None:
    found = turns(talk((USER, "a"), Message(BOT, "bad", learn=False), (USER, "b"), (BOT, "good")))
    assert [answer(e) for e in found] == ["good"] and len(found[0].messages) == 4


def test_a_single_turn_is_the_example_itself() -> None:
    (only,) = turns(talk((USER, "a"), (BOT, "b"), id="x"))
    assert (only.id, answer(only)) == ("x", "b")
    assert [answer(e) for e in turns(Example(instruction="a", output="b"))] == ["b"]


@pytest.mark.parametrize("name", ["c", ""])
def test_turns_of_a_conversation_share_an_owner(name: str) -> None:
    """Intervals resample conversations, because the turns of one are not independent."""
    other = talk((USER, "x"), (BOT, "y"), (USER, "z"), (BOT, "w"), id="d" if name else "")
    first = Example(instruction="", messages=CHAT.messages, id=name)
    owners = owners_of([*turns(first), *turns(other)])
    assert owners is not None and owners.tolist() == [0, 0, 0, 1, 1]


def test_an_owner_that_the_data_name_comes_first() -> None:
    chats = [talk((USER, "a"), (BOT, f"b{n}"), id=f"c{n}", origin={"user": "ann"}) for n in range(2)]
    owners = owners_of([turn for chat in chats for turn in turns(chat)])
    assert owners is not None and owners.tolist() == [0, 0]


def test_a_conversation_of_the_data_itself_is_kept() -> None:
    (turn,) = turns(talk((USER, "a"), (BOT, "b"), id="row 7", origin={"conversation": "c1", "source": "x"}))
    assert turn.origin == {"conversation": "c1", "source": "x"}
