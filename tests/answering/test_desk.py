"""The desk without a network: actions, slots by patterns, replies, and the requests of a file."""

import io
import sys
from pathlib import Path
from typing import Any

import pytest
from desk_actions import ACTIONS, INTENTS

from instructrec_jax.answering.desk import (
    Desk,
    matched,
    read_actions,
    read_requests,
    respond,
    tagged_slots,
)
from instructrec_jax.data.example import BadExample


@pytest.fixture
def actions(tmp_path: Path) -> Path:
    file = tmp_path / "actions.yaml"
    file.write_text(ACTIONS, encoding="utf-8")
    return file


def test_replies_questions_and_handing_over(actions: Path) -> None:
    read = read_actions(actions, INTENTS)
    assert respond(read, "ask_space", {}) == {"action": "show", "reply": "Here it is."}
    asked = {"action": "ask", "reply": "Which day?", "missing": ["day"]}
    assert respond(read, "ask_love", {"order": "4711"}) == asked
    assert respond(read, "ask_love", {})["missing"] == ["order", "day"]
    # a customer's text is never used as a template
    both = respond(read, "ask_love", {"order": "{day} {0}", "day": "monday"})
    assert both == {"action": "find_order", "reply": "Order {day} {0} comes on monday. 你好 {}"}
    handed = {"action": "hand_over", "reply": "A colleague will answer."}
    assert respond(read, "ask_war", {}) == respond(read, None, {}) == handed


def test_slots_by_patterns(actions: Path) -> None:
    patterns = read_actions(actions, INTENTS).slots
    assert matched(patterns, "where is #4711?") == {"order": "4711"}
    assert matched(patterns, "4711 or 0815, 4711 on monday") == {"order": "4711, 0815", "day": "monday"}
    assert matched(patterns, "你好 🚀") == {}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("ask_space:", "ask_spaec:", "'ask_spaec'.*ask_space"),
        ("{order} ", "{ordr} ", "intents.ask_love.*'ordr'.*order"),
        (", day: 'Which day?'", "", "'day'"),
        ("day: 'Which day?'", "night: 'Which?'", "'night'"),
        ("{order}", "{order.__class__}", "order.__class__"),
        ("{order}", "{}", "the reply"),
        ("{order}", "{order:d}", r"\{order\}"),
        ("{order}", "{order", "reply"),
        ("(\\d{4})", "(\\d{4}", "slots.order"),
        ("(\\d{4})", "(\\d)(\\d)", "2 groups"),
        ("action: show, ", "", "action"),
        ("action: show", "acton: show", "'acton'.*action"),
        ("hand_over:", "#", "hand_over"),
        ("intents:", "intent:", "'intent'"),
        ("intents:", "intents: [", "YAML"),
    ],
)
def test_actions_files_with_mistakes(old: str, new: str, message: str, actions: Path) -> None:
    assert old in ACTIONS
    actions.write_text(ACTIONS.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(ValueError, match=message) as error:
        read_actions(actions, INTENTS)
    assert str(actions) in str(error.value)


def test_answers_before_a_bad_request_are_given() -> None:
    class Picky(Desk):
        def __init__(self) -> None:
            pass

        def answer(self, requests: Any) -> list[dict[str, Any]]:
            if bad := [where for where, text in requests if text == "bad"]:
                raise BadExample("text", "unusable text", "too long", bad[0])
            return [{"text": text} for _, text in requests]

    got = []
    with pytest.raises(BadExample, match="line 3"):
        for answer in Picky().answers(iter([("line 1", "a"), ("line 2", "b"), ("line 3", "bad"), ("line 4", "c")])):
            got.append(answer["text"])
    assert got == ["a", "b"]


def test_slots_of_tags() -> None:
    assert tagged_slots(["O", "I-day", "B-day", "B-order", "B-"]) == ["day", "order"]
    with pytest.raises(ValueError, match="--slots"):
        tagged_slots(["O", "I-day"])


def test_slots_of_a_tagging_run_may_be_required(actions: Path) -> None:
    actions.write_text(
        ACTIONS.replace("{action: show,", "{requires: {city: 'Where?'}, action: show,"), encoding="utf-8"
    )
    with pytest.raises(ValueError, match="'city'.*day, order"):
        read_actions(actions, INTENTS)
    read = read_actions(actions, INTENTS, tagged=["city"])
    assert respond(read, "ask_space", {})["missing"] == ["city"] and "city" not in read.slots


# ------------------------------------------------------------------ requests


def requests(path: Path, text: str, field: str | None = None) -> list[str]:
    path.write_text(text, encoding="utf-8")
    return [asked for _, asked in read_requests(str(path), field)]


def test_lines_of_text(tmp_path: Path) -> None:
    assert requests(tmp_path / "a.txt", "\ufeffone\n\n  two words \r\n漢字 🎬") == ["one", "two words", "漢字 🎬"]
    (where, _), *_ = read_requests(str(tmp_path / "a.txt"))
    assert where.endswith("a.txt, line 1")


def test_lines_of_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"one\n\ntwo\n")))
    assert list(read_requests("-")) == [("stdin, line 1", "one"), ("stdin, line 3", "two")]


def test_fields_of_records(tmp_path: Path) -> None:
    rows = '{"text": "a", "instruction": "b", "q": "c"}\n'
    assert requests(tmp_path / "a.jsonl", rows) == ["a"] and requests(tmp_path / "a.jsonl", rows, "q") == ["c"]
    assert requests(tmp_path / "a.jsonl", '{"instruction": "b"}\n') == ["b"]
    assert requests(tmp_path / "a.csv", "text,x\none,1\n") == ["one"]


@pytest.mark.parametrize(
    ("name", "text", "field", "place"),
    [
        ("a.jsonl", '{"text": "a"}\n{"question": "b"}\n', None, "line 2.*'text'"),
        ("a.jsonl", '{"text": "a"}\n{"text": 3}\n', None, "line 2.*'text'"),
        ("a.jsonl", '{"text": "a"}\n{"text": \n', None, "line 2"),
        ("a.jsonl", '{"text": "a"}\n', "question", "line 1.*'question'"),
    ],
)
def test_requests_without_a_text_are_named(name: str, text: str, field: str | None, place: str, tmp_path: Path) -> None:
    with pytest.raises(BadExample, match=f"{name}, {place}"):
        requests(tmp_path / name, text, field)


def test_lines_that_are_not_utf_8_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"one\n\xff\xfe\n")
    with pytest.raises(BadExample, match="a.txt, line 2.*UTF-8"):
        list(read_requests(str(tmp_path / "a.txt")))
