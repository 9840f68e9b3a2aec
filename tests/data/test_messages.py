"""Every field of a record and of its messages is used, ignored by name, or told of."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from instructrec_jax.data.example import BadExample, Example, Message
from instructrec_jax.data.fields import FieldMapper, FieldsConfig
from instructrec_jax.data.prompts import conversation, render
from instructrec_jax.data.rows import open_rows
from instructrec_jax.data.sources import row_source

ASKED = {"role": "user", "content": "two and two?"}
CALL = {"function": {"name": "add", "arguments": '{"b": 2, "a": 2}'}}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}


def convert(row: dict[str, Any], **fields: Any) -> Example:
    return FieldMapper(FieldsConfig(**fields))(row)


def bad(row: dict[str, Any], **fields: Any) -> BadExample:
    with pytest.raises(BadExample) as caught:
        convert(row, **fields)
    return caught.value


def last_turn(**keys: Any) -> dict[str, Any]:
    return {"messages": [ASKED, {"role": "assistant", "content": "four"} | keys]}


# ------------------------------------------------------------------ messages


@pytest.mark.parametrize("mark", [{"weight": 0}, {"weight": 0.0}, {"train": False}, {"train": False, "weight": 1}])
def test_a_turn_of_weight_0_is_not_learnt(mark: dict[str, Any]) -> None:
    assert not convert(last_turn(**mark)).messages[-1].learn
    assert convert(last_turn(weight=1, train=True)) == convert(last_turn())
    assert convert(last_turn(**mark), ignore=[f"messages.{name}" for name in mark]) == convert(last_turn())


@pytest.mark.parametrize(
    "keys", [{"weight": 0.5}, {"weight": "0"}, {"train": 2}, {"loss_mask": [1]}, {"images": ["a.png"]}, {"from": "gpt"}]
)
def test_a_key_of_a_message_that_nobody_reads_is_an_error(keys: dict[str, Any]) -> None:
    (name,) = keys
    assert bad(last_turn(**keys)).field == f"messages[1].{name}"


def test_only_the_assistant_can_be_learnt() -> None:
    row = {"messages": [ASKED | {"weight": 1}, {"role": "assistant", "content": "four"}]}
    assert bad(row).field == "messages[0].weight"
    assert convert({"messages": [ASKED | {"weight": 0}, row["messages"][1]]}) == convert(last_turn())


def test_empty_keys_say_nothing() -> None:
    """`datasets` fills the keys that other rows have with nulls."""
    assert convert(last_turn(tool_calls=None, images=[], name="", reasoning_content=None)) == convert(last_turn())


def test_what_templates_write_travels_with_the_message() -> None:
    said = convert(last_turn(reasoning_content="2 + 2 = 4", name="bot")).messages[-1]
    assert said.extra == {"reasoning_content": "2 + 2 = 4", "name": "bot"}
    assert bad(last_turn(reasoning_content=4)).field == "messages[1].reasoning_content"


def test_calls_of_tools() -> None:
    called = convert(last_turn(content=None, tool_calls=[CALL]) | {"tools": [TOOL]})
    assert called.messages[-1].content == "" and called.tools == (TOOL,)
    (call,) = called.messages[-1].extra["tool_calls"]
    assert call["function"]["arguments"] == {"b": 2, "a": 2}  # an object, as templates write it
    assert convert(last_turn() | {"tools": json.dumps([TOOL])}).tools == (TOOL,)
    assert convert(last_turn() | {"tools": "[]"}).tools == ()
    for calls in ("add(2, 2)", [{"name": 1}], [{"function": {"name": "add", "arguments": "{"}}]):
        assert "tool_calls" in bad(last_turn(tool_calls=calls)).detail
    assert bad(last_turn() | {"tools": "no json"}).field == "tools"
    older = convert(last_turn(content=None, function_call=CALL["function"]) | {"tools": [TOOL]})
    assert older.messages[-1].extra["tool_calls"] == [{"type": "function", "function": call["function"]}]
    assert "function_call" in bad(last_turn(function_call="add(2, 2)")).detail
    assert bad(last_turn(function_call={"name": "add"}, tool_calls=[CALL])).reason == "two calls"


def test_a_record_and_back() -> None:
    example = convert(last_turn(reasoning_content="r", weight=0, tool_calls=[CALL]) | {"tools": [TOOL], "system": "s"})
    assert Example.from_record(json.loads(json.dumps(example.to_record()))) == example
    assert "where" not in Example(instruction="a", where="file, line 3").to_record()
    assert Example(instruction="a", where="x") == Example(instruction="a", where="y")


# ------------------------------------------------------------------ system prompts and earlier turns


def test_alpaca_with_system_and_history() -> None:
    row = {"instruction": "add", "input": "1 2", "output": "3", "system": "Be brief."}
    turns = [Message("system", "Be brief."), Message("user", "add\n1 2"), Message("assistant", "3")]
    assert conversation(convert(row)) == turns
    assert render(convert(row)) == "system: Be brief.\nadd\n1 2"
    earlier = convert(row | {"history": [["hi", "hello"]]})
    assert conversation(earlier) == [turns[0], Message("user", "hi"), Message("assistant", "hello"), *turns[1:]]
    assert convert(row | {"history": [], "system": ""}) == convert({k: row[k] for k in row if k != "system"})
    assert convert(row | {"history": [3, 4]}).history == ("3", "4")
    assert bad(row | {"history": [["hi", ""]]}).field == "history[0]"


def test_a_system_prompt_beside_messages() -> None:
    turns = conversation(convert(last_turn() | {"system": "Be brief."}))
    assert [turn.role for turn in turns] == ["system", "user", "assistant"]
    twice = convert({"messages": [{"role": "system", "content": "a"}, ASKED], "system": "b"})
    with pytest.raises(ValueError, match="fields.system"):
        conversation(twice)


# ------------------------------------------------------------------ columns


@pytest.mark.parametrize("name", ["tools", "system_prompt", "videos", "chat_template_kwargs", "system"])
def test_a_column_that_changes_what_is_asked_is_read_or_refused(name: str) -> None:
    row = {"instruction": "a", "output": "b"}
    fields = {name: "other"} if name in ("tools", "system") else {}
    other = {"other": None} if fields else {}
    assert bad(row | other | {name: ["x"]}, **fields).field == name
    assert convert(row | other | {name: ["x"]}, ignore=[name], **fields) == convert(row)
    assert convert(row | other | {name: None}, **fields) == convert(row)


def test_a_default_column_can_be_ignored_and_another_setting_cannot() -> None:
    assert convert({"instruction": "a", "output": "b", "system": 3}, ignore=["system"]).system is None
    with pytest.raises(ValueError, match="fields.ignore"):
        FieldMapper(FieldsConfig(instruction="text", ignore=["text"]))


def note_of(path: Path, caplog: pytest.LogCaptureFixture, **fields: Any) -> str:
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        mapper = FieldMapper(FieldsConfig(**fields))
        row_source(open_rows(str(path), mapper.columns()), mapper, "mine")
    return caplog.text


def test_other_columns_are_counted_and_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"instruction": "a", "output": "b", "url": "x", "lang": n and "de"} for n in (None, 1, 1)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    note = note_of(path, caplog)
    assert note.count("mine") == 1 and "url (3)" in note and "lang (2)" in note
    assert "url" not in note_of(path, caplog, ignore=["url"]) and not note_of(path, caplog, ignore=["url", "lang"])


def test_columns_of_parquet_files_are_told_without_being_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"instruction": ["a"], "output": ["b"], "url": ["x"]}), tmp_path / "a.parquet")
    assert "url (1)" in note_of(tmp_path / "a.parquet", caplog)


def test_examples_know_their_place(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"instruction": "a", "output": "b"}\n{"instruction": "c", "output": "d"}\n')
    source = row_source(open_rows(str(path)), FieldMapper(FieldsConfig()), "mine")
    assert source[1].where == f"{path}, line 2"


# ------------------------------------------------------------------ lists of words


def test_a_list_of_words_keeps_its_words() -> None:
    tagged = convert({"instruction": "tag", "input": ["New York", "is", "big"], "output": ["P", "O", "O"]})
    assert tagged.words == ("New York", "is", "big") and tagged.input == "New York is big"
    assert convert({"instruction": "tag", "input": ["a", ""], "output": ["P", "O"]}).words == ("a", "")
    assert convert({"instruction": "tag", "input": ["a", "b"], "output": ["P", "O"]}).words == ()
    assert convert({"instruction": "sum up", "input": ["One day. ", "Two."], "output": "x"}).words == ()
