"""Examples: checked, written as records, and read back."""

import json
import math
import pickle
from typing import Any

import pytest

from instructrec_jax.data.example import (
    REASONING,
    BadExample,
    Example,
    Message,
    check_example,
    check_labels,
    check_messages,
    is_blank,
    read_message,
    read_tools,
    show,
    suggest,
)
from instructrec_jax.data.fields import FieldMapper, FieldsConfig
from instructrec_jax.data.fingerprints import fingerprint

FULL = Example(
    instruction="推荐一部电影 🎬",
    input="I liked Alien.",
    output=("1", "2"),
    messages=(Message("system", "Be brief."), Message("user", "Hi\u2028there")),
    candidates=("1", "2", "3"),
    history=("7",),
    task="choose",
    id="x1",
    origin={"template": "t3", "user": ""},
)


@pytest.mark.parametrize(
    "example",
    [
        FULL,
        Example(instruction="a"),
        Example(instruction="a", output=0),
        Example(instruction="a", output=0.0),
        Example(instruction="a", output=()),
        Example(instruction="", messages=(Message("user", "hi"),)),
    ],
)
def test_a_record_and_back(example):
    record = json.loads(json.dumps(example.to_record()))
    back = Example.from_record(record)
    assert back == example and type(back.output) is type(example.output)
    assert all(value not in (None, "", {}) for value in record.values())
    assert FieldMapper(FieldsConfig())({**record, "output": record.get("output", "x")}).to_record()
    hash(example)


def test_own_records_are_read_by_the_default_fields():
    assert FieldMapper(FieldsConfig())(FULL.to_record()) == FULL


@pytest.mark.parametrize(
    "record, field",
    [
        ([], "record"),
        ({"instruction": "a", "inptu": "b"}, "inptu"),
        ({}, "instruction"),
        ({"instruction": "a", "messages": [{"role": "user"}]}, "messages[0]"),
        ({"instruction": "a", "messages": "hi"}, "messages"),
        ({"instruction": "a", "candidates": "abc"}, "candidates"),
        ({"instruction": "a", "output": {"x": 1}}, "output"),
    ],
)
def test_from_record_is_strict(record, field):
    with pytest.raises(BadExample) as caught:
        Example.from_record(record)
    assert caught.value.field == field


@pytest.mark.parametrize(
    "change, field, reason",
    [
        ({"instruction": ""}, "instruction", "empty text"),
        ({"instruction": " \n\t"}, "instruction", "empty text"),
        ({"instruction": 3}, "instruction", "wrong type"),
        ({"instruction": "a\x00b"}, "instruction", "unusable character"),
        ({"instruction": "a\ud83d"}, "instruction", "unusable character"),
        ({"input": ""}, "input", "empty text"),
        ({"output": math.nan}, "output", "not a finite number"),
        ({"output": -math.inf}, "output", "not a finite number"),
        ({"output": 10**400}, "output", "not a finite number"),
        ({"output": True}, "output", "wrong type"),
        ({"output": ("a", None)}, "output[1]", "wrong type"),
        ({"output": ["a"]}, "output", "wrong type"),
        ({"candidates": ("a", "")}, "candidates[1]", "empty text"),
        ({"history": ("a", 3)}, "history[1]", "wrong type"),
        ({"messages": (Message("robot", "hi"),)}, "messages[0].role", "unknown role"),
        ({"messages": (Message("user", ""),)}, "messages[0].content", "empty text"),
        ({"origin": {"user": 3.5}}, "origin.user", "wrong type"),
    ],
)
def test_what_an_example_promises(change, field, reason):
    with pytest.raises(BadExample) as caught:
        check_example(Example(**{"instruction": "a", **change}))
    assert caught.value.field == field
    assert reason is None or caught.value.reason == reason
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_errors_stay_short():
    with pytest.raises(BadExample) as caught:
        check_example(Example(instruction=["x" * 10**7] * 5))  # type: ignore[arg-type]
    assert len(str(caught.value)) < 1000


def test_an_empty_list_of_outputs_has_no_unknown_label():
    check_labels(Example(instruction="a", output=()), ["yes", "no"])
    with pytest.raises(BadExample, match=r"output\[1\]"):
        check_labels(Example(instruction="a", output=("yes", "maybe")), ["yes", "no"])


# ------------------------------------------------------------------ turns


def test_a_turn_in_either_spelling() -> None:
    assert read_message({"role": "assistant", "content": "a"}, "m") == Message("assistant", "a")
    for name in ("gpt", "chatgpt", "bot", "model"):
        assert read_message({"from": name, "value": "a"}, "m") == Message("assistant", "a")
    assert read_message({"from": "human", "value": "a"}, "m").role == "user"
    assert read_message({"role": "user", "content": "a", "mood": "x"}, "m", frozenset({"mood"})) == Message("user", "a")


@pytest.mark.parametrize("name", REASONING)
def test_a_turn_may_have_reasoning_alone(name: str) -> None:
    turn = read_message({"role": "assistant", "content": None, name: "hm"}, "m")
    assert turn == Message("assistant", "", extra={name: "hm"}) and turn.extra == {name: "hm"}
    assert read_message(turn.to_record(), "m") == turn


@pytest.mark.parametrize(
    ("turn", "field"),
    [
        ("hi", "m"),
        (None, "m"),
        ({"content": "a"}, "m.role"),
        ({"role": 3, "content": "a"}, "m.role"),
        ({"role": "user"}, "m"),
        ({"role": "user", "content": ""}, "m.content"),
        ({"role": "user", "content": 7}, "m.content"),
        ({"role": "user", "content": "a", "mood": "x"}, "m.mood"),
        ({"role": "user", "content": "a", "weight": 1}, "m.weight"),
        ({"role": "assistant", "content": "a", "weight": "1"}, "m.weight"),
        ({"role": "assistant", "content": "a", "train": 2}, "m.train"),
        ({"role": "assistant", "content": "a", "name": 7}, "m.name"),
        ({"role": "assistant", "content": "a", "function_call": {"name": 3}}, "m"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": 1}}]}, "m"),
    ],
)
def test_a_turn_that_is_none(turn: Any, field: str) -> None:
    with pytest.raises(BadExample) as caught:
        read_message(turn, "m")
    assert caught.value.field == field


def test_what_is_context_only_says_so_in_its_record() -> None:
    for mark in ({"weight": 0}, {"train": False}, {"train": True, "weight": 0}):
        turn = read_message({"role": "assistant", "content": "a", **mark}, "m")
        assert not turn.learn and read_message(turn.to_record(), "m") == turn
    assert "weight" not in Message("assistant", "a").to_record()


def test_system_turns_may_stand_anywhere() -> None:
    system, user = Message("system", "s"), Message("user", "u")
    assert check_messages((user, system)) == (user, system)


@pytest.mark.parametrize("value", ["", "  ", "[]", [], None, ()])
def test_no_tools(value: Any) -> None:
    assert read_tools(value) == ()


@pytest.mark.parametrize("value", ["[", "3", [3], {"name": "f"}, '["f"]'])
def test_tools_that_are_none(value: Any) -> None:
    with pytest.raises(BadExample) as caught:
        read_tools(value)
    assert caught.value.field == "tools"


# ------------------------------------------------------------------ errors


def test_blank_is_not_zero() -> None:
    assert all(map(is_blank, (None, "", [], (), {})))
    assert not any(map(is_blank, (0, 0.0, False, " ", [None], {"a": None})))


@pytest.mark.parametrize("value", ["x" * 10**6, ["y" * 10**6] * 10**3, {n: "z" * 100 for n in range(10**4)}, 10**400])
def test_values_are_shown_short_and_with_their_type(value: Any) -> None:
    assert show(value).startswith(type(value).__name__) and len(show(value)) < 600
    assert show(None) == "null"


def test_the_nearest_choice_is_suggested_if_any_is_near() -> None:
    assert '"comedy"' in suggest("comdey", ["horror", "comedy"])
    assert suggest("western", ["horror", "comedy"]) == suggest("x", []) == ""
    assert suggest("a" * 10**6, ["a" * 10**6, "b"]) == ""  # long ones are not compared


def test_an_error_has_its_place_field_and_reason_in_this_order() -> None:
    error = BadExample("output", "empty text", "fill it in.")
    assert str(error) == "field 'output': empty text: fill it in."
    assert str(error.at("a.csv, line 3")) == "a.csv, line 3, field 'output': empty text: fill it in."
    assert str(BadExample("", "malformed line", "no JSON.")) == "malformed line: no JSON."


def test_the_place_of_a_record_is_no_part_of_it() -> None:
    here, there = Example(instruction="a", where="x"), Example(instruction="a", where="y")
    assert here == there and fingerprint([here]) == fingerprint([there]) and "where" not in here.to_record()


def test_labels_may_come_from_any_iterable() -> None:
    several = Example(instruction="a", output=("yes", "no"))
    for labels in (["yes", "no"], ("yes", "no"), {"yes", "no"}, iter(["yes", "no"])):
        check_labels(several, labels)
    check_labels(Example(instruction="a"), [])  # nothing to compare
    for output, field in ((1, "output"), (True, "output"), ("yes", "output")):
        with pytest.raises(BadExample) as caught:
            check_labels(Example(instruction="a", output=output), ["no"])
        assert (caught.value.field, caught.value.reason) == (field, "unknown label")
