"""The turns of a record: a column of messages, several columns joined, or an earlier history of pairs."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeGuard

from instructrec_jax.data.example import BadExample, Example, Message, check_text, is_blank, read_message, show

JOINT = " + "  # between the columns of `fields.messages`


def read_messages(
    value: object, required: bool, ignored: frozenset[str], name: str = "messages"
) -> tuple[Message, ...]:
    """The turns of a column.

    Args:
      required: whether null or no turn is an error.
      ignored: keys of messages to leave out.
      name: of the column, for errors.

    Raises BadExample.
    """
    if value is None and not required:
        return ()
    if not isinstance(value, list | tuple):
        hint = "set fields.messages to null if the column is unrelated."
        raise BadExample(name, "wrong type", f"expected a list of messages, found {show(value)}; {hint}")
    if required and not value:
        raise BadExample(name, "empty text", "the conversation has no messages: remove the row.")
    return tuple(read_message(turn, f"{name}[{number}]", ignored) for number, turn in enumerate(value))


def join_columns(columns: Mapping[str, object], ignored: frozenset[str]) -> tuple[Message, ...]:
    """One conversation from several columns: the last one is trained on, the ones before it are its context.

    A text in the first column is a turn of the user, in a later one a turn of the assistant. Turns that the next column
    repeats at its start are joined once: some files have the prompt in both.

    Raises BadExample naming the column.
    """
    turns: list[Message] = []
    for number, (name, value) in enumerate(columns.items()):
        if isinstance(value, str):
            role = "assistant" if number else "user"
            own = [Message(role, check_text(value, name))]
        elif is_blank(value):
            raise BadExample(name, "empty text", f"found {show(value)}: fill it in or remove the row.")
        else:
            own = list(read_messages(value, True, ignored, name))
        again = [turn.role for turn in turns] == [turn.role for turn in own[: len(turns)]]
        again &= all(a.content == b.content for a, b in zip(turns, own, strict=False))
        turns = [replace(turn, learn=turn.role != "assistant") for turn in turns]
        turns += own[len(turns) :] if again else own
    if turns[-1].role in ("user", "system"):
        detail = f"the conversation ends with a turn of the {turns[-1].role}: an answer of the assistant is missing."
        raise BadExample(list(columns)[-1], "missing answer", detail)
    return tuple(turns)


def without_nulls(value: object) -> object:
    """A value of an Arrow table without the null keys of its objects, which only other rows have."""
    if isinstance(value, Mapping):
        return {name: without_nulls(each) for name, each in value.items() if each is not None}
    return [without_nulls(each) for each in value] if isinstance(value, list | tuple) else value


def with_own_keys(turns: tuple[Message, ...]) -> tuple[Message, ...]:
    """The turns of an Arrow table's row with only the keys of their calls that the row has."""
    return tuple(
        replace(turn, extra={**turn.extra, "tool_calls": without_nulls(turn.extra["tool_calls"])})
        if "tool_calls" in turn.extra
        else turn
        for turn in turns
    )


def is_dialogue(history: object) -> TypeGuard[Sequence[Sequence[object]]]:
    """Whether a history holds earlier turns as [request, answer] pairs, not item ids."""
    return (
        isinstance(history, list | tuple)
        and bool(history)
        and all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in history)
    )


def with_earlier_turns(example: Example, history: Sequence[Sequence[object]]) -> Example:
    """The example as a conversation: the history, then instruction and input as the user's last turn."""
    if example.messages:
        raise BadExample("history", "two conversations", "the record also has messages: set fields.history to null.")
    turns = []
    for number, pair in enumerate(history):
        for role, text in zip(("user", "assistant"), pair, strict=True):
            turns.append(Message(role, check_text(text, f"history[{number}]")))
    request = "\n".join(part for part in (example.instruction, example.input) if part)
    return replace(example, instruction="", input=None, messages=(*turns, Message("user", request)))
