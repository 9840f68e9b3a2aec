"""The forms in which people keep conversations: from a file to the text of training, with what is trained on."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from byte_tokenizer import byte_tokenizer

from instructrec_jax.data.conversations import join_columns
from instructrec_jax.data.example import BadExample, Example
from instructrec_jax.data.own_template import Rendering
from instructrec_jax.data.prompts import prompt, written
from instructrec_jax.data.source_config import SourceConfig
from instructrec_jax.data.sources import open_sources

# As Qwen2.5's, with a thinking block: system turns anywhere, tools, calls and their results.
TOOLS = (
    "{% if tools %}<|im_start|>system\n{% for t in tools %}{{ t | tojson }}{% endfor %}<|im_end|>\n{% endif %}"
    "{% for m in messages %}"
    "{% if m.role == 'tool' %}<|im_start|>user\n<result>{{ m.content }}</result><|im_end|>\n"
    "{% else %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<call>{{ c.function | tojson }}</call>{% endfor %}<|im_end|>\n"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}{% endif %}"
)
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
CALL = {"name": "add", "arguments": {"a": 2, "b": 2}}
WRITTEN = '<call>{"name": "add", "arguments": {"a": 2, "b": 2}}</call><|im_end|>'
ASKED = {"role": "user", "content": "two and two?"}
ANSWER = {"role": "assistant", "content": "Four."}
SHAREGPT = [
    {"from": "system", "value": "Be brief."},
    {"from": "human", "value": "two and two?"},
    {"from": "function_call", "value": json.dumps(CALL)},
    {"from": "observation", "value": "4"},
    {"from": "gpt", "value": "Four."},
]
OPENAI = [
    {"role": "system", "content": "Be brief."},
    ASKED,
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "1", "type": "function", "function": CALL | {"arguments": json.dumps(CALL["arguments"])}}
        ],
    },
    {"role": "tool", "tool_call_id": "1", "content": "4"},
    ANSWER,
]
OLDER = [
    *OPENAI[:2],
    {"role": "assistant", "content": None, "function_call": CALL},
    {"role": "function", "name": "add", "content": "4"},
    ANSWER,
]


def file_of(folder: Path, row: dict[str, Any], suffix: str = "jsonl") -> Path:
    path = folder / f"a.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist([row]), path)
    else:
        path.write_text(json.dumps([row] if suffix == "json" else row))
    return path


def read(folder: Path, row: dict[str, Any], suffix: str = "jsonl", **fields: Any) -> Example:
    source = SourceConfig(path=str(file_of(folder, row, suffix)))
    for name, value in fields.items():
        setattr(source.fields, name, value)
    return open_sources([source])[0]


def learnt(example: Example, template: str = TOOLS, **told: Any) -> list[str]:
    tokenizer = byte_tokenizer(chat_template=template)
    pieces = written(example, None, tokenizer, eos="</s>", rendering=Rendering(**told), notes=Counter())
    return [text for text, said in pieces if said]


@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet"])
@pytest.mark.parametrize("name, turns", [("conversations", SHAREGPT), ("messages", OPENAI), ("messages", OLDER)])
@pytest.mark.parametrize("as_text", [False, True])
def test_calls_are_trained_on_and_results_are_not(
    tmp_path: Path, suffix: str, name: str, turns: list[dict[str, Any]], as_text: bool
) -> None:
    tools = json.dumps([TOOL]) if as_text else [{"type": "function", "function": {"name": "add", "parameters": "none"}}]
    example = read(tmp_path, {name: turns, "tools": tools}, suffix)
    assert [turn.role for turn in example.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert learnt(example) == [WRITTEN, "Four.<|im_end|>"]
    assert "<result>4</result>" in prompt(example, None, byte_tokenizer(chat_template=TOOLS))
    with pytest.raises(ValueError, match="does not write tool_calls of messages.2"):
        learnt(example, "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}")


def test_a_call_may_come_last_and_several_at_once(tmp_path: Path) -> None:
    turns = [*SHAREGPT[:2], {"from": "function_call", "value": json.dumps([CALL, CALL])}]
    assert learnt(read(tmp_path, {"conversations": turns})) == [WRITTEN.replace("<|im_end|>", WRITTEN)]


TRL = [
    ({"prompt": "two and two?", "completion": "Four."}, 1),
    ({"prompt": [ASKED], "completion": [ANSWER]}, 1),
    ({"prompt": [ASKED], "completion": "Four."}, 1),
    ({"prompt": "two and two?", "completion": [ANSWER]}, 1),
    ({"prompt": [ASKED, ANSWER, ASKED], "completion": [ANSWER]}, 1),
    ({"prompt": "two and two?", "chosen": "Four.", "rejected": "Five."}, 1),
    ({"prompt": [ASKED], "chosen": [ANSWER], "rejected": [ANSWER | {"content": "Five."}]}, 1),
    ({"prompt": "two and two?", "chosen": [ASKED, ANSWER], "rejected": [ASKED, ANSWER]}, 1),
    ({"chosen": [ASKED, ANSWER], "rejected": [ASKED, ANSWER | {"content": "Five."}]}, 1),
]


def test_arrow_tables_fill_the_keys_of_other_rows_with_nulls(tmp_path: Path) -> None:
    calls = [CALL, {"name": "halve", "arguments": {"number": 4}}]
    rows = [
        {
            "messages": [ASKED, {"role": "assistant", "tool_calls": [{"function": call}]}],
            "tools": [{"name": "x", **more}],
        }
        for call, more in zip(calls, ({"a": 1}, {"b": {"c": None}}), strict=True)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    found = open_sources([SourceConfig(path=str(tmp_path / "a.parquet"))])
    assert [found[n].messages[1].extra["tool_calls"][0]["function"]["arguments"] for n in (0, 1)] == [
        {"a": 2, "b": 2},
        {"number": 4},
    ]
    assert [found[n].tools for n in (0, 1)] == [({"name": "x", "a": 1},), ({"name": "x", "b": {}},)]
    null = {"function": {"name": "add", "arguments": {"a": None}}}
    kept = read(tmp_path, {"messages": [ASKED, {"role": "assistant", "tool_calls": [null]}]})
    assert kept.messages[1].extra["tool_calls"][0]["function"]["arguments"] == {"a": None}  # JSON says what it means


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize("row, answers", TRL)
def test_prompts_completions_and_preferences(
    tmp_path: Path, suffix: str, row: dict[str, Any], answers: int, caplog: pytest.LogCaptureFixture
) -> None:
    example = read(tmp_path, row, suffix)
    assert learnt(example) == ["Four.<|im_end|>"] * answers
    text = "".join(piece for piece, _ in written(example, None, byte_tokenizer(chat_template=TOOLS), eos="</s>"))
    assert "Five" not in text and text.count("two and two?") == max(
        1, len(row.get("prompt", "")) - 1 if isinstance(row.get("prompt"), list) else 1
    )
    assert ("rejected are left out" in caplog.text) == ("rejected" in row)


def test_the_same_written_out(tmp_path: Path) -> None:
    example = read(tmp_path, {"q": [ASKED], "a": {"said": [ANSWER]}}, messages="q + a.said")
    assert learnt(example) == ["Four.<|im_end|>"] and not example.instruction


@pytest.mark.parametrize(
    "row, message",
    [
        ({"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "c"}, "line 1, field 'instruction'.*no prompt.*lists"),
        (
            {"prompt": [ASKED], "completion": [ASKED]},
            "line 1, field 'completion'.*an answer of the assistant is missing",
        ),
        ({"prompt": [ASKED], "completion": []}, "line 1, field 'completion'.*remove the row"),
        (
            {"prompt": [ASKED], "completion": [{"role": "x", "content": "a"}]},
            r"field 'messages\[1\].role'.*the roles are",
        ),
        ({"prompt": [ASKED], "completion": ["Four."]}, r"field 'completion\[0\]'.*expected"),
        ({"prompt": [ASKED], "completion": [ANSWER], "label": True}, "line 1, field 'output'.*keep the good rows"),
        ({"prompt": [ASKED], "completion": [ANSWER], "images": ["a.png"]}, r"line 1, field 'images\[0\]'"),
        ({"prompt": [ASKED], "completion": 3}, "field 'completion'.*expected a list of messages, found int 3"),
    ],
)
def test_broken_prompts_and_preferences(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(tmp_path, row)


def test_columns_of_a_conversation_are_named_as_such() -> None:
    for setting in ("a + a", "a + ", " + a"):
        with pytest.raises(ValueError, match="fields.messages.*different columns"):
            open_sources([SourceConfig(path="a.jsonl", fields=type(SourceConfig().fields)(messages=setting))])
    with pytest.raises(BadExample, match="'b': empty text"):
        join_columns({"a": "x", "b": None}, frozenset())


# ------------------------------------------------------------------ system turns


LATE = [ASKED, ANSWER, {"role": "system", "content": "In French."}, ASKED, ANSWER | {"content": "Quatre."}]


def test_system_turns_anywhere(tmp_path: Path) -> None:
    example = read(tmp_path, {"messages": LATE})
    assert learnt(example) == ["Four.<|im_end|>", "Quatre.<|im_end|>"]
    assert "<|im_start|>system\nIn French.<|im_end|>" in prompt(example, None, byte_tokenizer(chat_template=TOOLS))


@pytest.mark.parametrize(
    "condition, message",
    [
        (
            "{% if m.role == 'system' and not loop.first %}{{ raise_exception('system first') }}{% endif %}",
            "system first",
        ),
        ("{% if m.role == 'system' %}{% continue %}{% endif %}", r"leaves out the system turn messages\[2\]"),
    ],
)
def test_a_template_that_refuses_or_drops_system_turns(tmp_path: Path, condition: str, message: str) -> None:
    template = TOOLS.replace("{% for m in messages %}", "{% for m in messages %}" + condition)
    with pytest.raises(ValueError, match=message):
        learnt(read(tmp_path, {"messages": LATE}), template)


def test_a_template_that_drops_the_first_system_turn(tmp_path: Path) -> None:
    example = read(tmp_path, {"messages": [{"role": "system", "content": "Be brief."}, ASKED, ANSWER]})
    with pytest.raises(ValueError, match=r"leaves out the system turn messages\[0\].*task.template"):
        learnt(example, TOOLS.replace("{% for m in messages %}", "{% for m in messages if m.role != 'system' %}"))
    upper = TOOLS.replace("{{ m.content }}", "{{ m.content | upper }}{% generation %}{% endgeneration %}")
    assert "BE BRIEF." in prompt(example, None, byte_tokenizer(chat_template=upper))


# ------------------------------------------------------------------ thoughts and parts


@pytest.mark.parametrize(
    "turn",
    [
        {"content": "Four.", "reasoning_content": "2 + 2"},
        {"content": [{"type": "thinking", "thinking": "2 + 2"}, {"type": "text", "text": "Four."}]},
        {"content": [{"type": "reasoning", "reasoning": "2 + 2"}, {"type": "text", "text": "Fo"}, {"text": "ur."}]},
    ],
)
def test_thoughts_are_trained_on(tmp_path: Path, turn: dict[str, Any]) -> None:
    example = read(tmp_path, {"messages": [ASKED, {"role": "assistant"} | turn]})
    assert learnt(example) == ["<think>2 + 2</think>Four.<|im_end|>"]
    plain = read(tmp_path, {"messages": [ASKED, ANSWER]})
    tokenizer = byte_tokenizer(chat_template=TOOLS)
    assert prompt(plain, None, tokenizer, rendering=Rendering(enable_thinking=False)).endswith("<think></think>")
    assert not prompt(plain, None, tokenizer, rendering=Rendering(enable_thinking=True)).endswith("<think></think>")


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_contents_in_parts(tmp_path: Path, suffix: str) -> None:
    """Parquet gives every part the keys of all, with nulls."""
    parts = [{"type": "text", "text": "two and "}, {"type": "text", "text": "two?", "image_url": None}]
    example = read(
        tmp_path, {"messages": [{"role": "user", "content": parts}, ANSWER | {"content": parts[:1]}]}, suffix
    )
    assert [turn.content for turn in example.messages] == ["two and two?", "two and "]


@pytest.mark.parametrize(
    "part, message",
    [
        ({"type": "image_url", "image_url": {"url": "x"}}, r"\[1\]'.*no such picture"),
        ({"type": "image"}, r"\[1\]'.*'image'"),
        ({"type": "input_audio", "input_audio": {}}, "'input_audio'"),
        ({"type": "text"}, None),
        ({"type": "text", "text": 3}, r"\[1\].text': wrong type"),
        ({"type": "text", "text": "a\x00"}, "unusable"),
        (
            {"type": "text", "text": "a", "cache_control": {"x": 1}},
            r"cache_control'.*fields.ignore to .messages.cache_control",
        ),
        ({"text": "a", "type": None}, None),
        ("a", r"\[1\]'.*expected .*type"),
        ({}, "type null"),
    ],
)
def test_parts_of_other_types_are_named(tmp_path: Path, part: object, message: str | None) -> None:
    row = {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}, part]}, ANSWER]}
    if message is None:
        assert read(tmp_path, row).messages[0].content.startswith("Hi")
        return
    with pytest.raises(ValueError, match=f"(?s)line 1, field 'messages.0..content.*{message}"):
        read(tmp_path, row)
    source = SourceConfig(path=str(tmp_path / "a.jsonl"))
    with pytest.raises(ValueError, match="none of its 1 rows is valid"):
        open_sources([source], on_bad_example="skip")


# ------------------------------------------------------------------ instructions


@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet"])
@pytest.mark.parametrize(
    "extra", [{}, {"input": None}, {"input": ""}, {"input": None, "system": None, "history": None}]
)
def test_alpaca_with_null_inputs(tmp_path: Path, suffix: str, extra: dict[str, Any]) -> None:
    example = read(tmp_path, {"instruction": "two and two?", "output": "Four."} | extra, suffix)
    assert example == Example(instruction="two and two?", output="Four.")


@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet"])
def test_nested_and_dotted_fields(tmp_path: Path, suffix: str) -> None:
    row = {"data": {"asked": {"text": "two?"}, "said": ["Two.", "2"]}, "a.b": "dotted"}
    found = read(tmp_path, row, suffix, instruction="data.asked.text", output="data.said.0", input="a.b")
    assert (found.instruction, found.output, found.input) == ("two?", "Two.", "dotted")
    both = read(tmp_path, row, suffix, instruction="Say {data.asked.text}", output="data.said.1")
    assert (both.instruction, both.output) == ("Say two?", "2")
    turns = read(tmp_path, {"sample": {"turns": [ASKED, ANSWER]}}, suffix, messages="sample.turns")
    assert learnt(turns) == ["Four.<|im_end|>"]
