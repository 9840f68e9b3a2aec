"""Every form broken in ten ways: an error that names file, place and field, or one counted skip."""

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from instructrec_jax.data.fields import FieldsConfig
from instructrec_jax.data.source_config import SourceConfig
from instructrec_jax.data.sources import open_sources

Row = dict[str, Any]
HALF = "\ud83c"


def said(role: str, content: Any, **more: Any) -> Row:
    return {"role": role, "content": content} | more


def shared(who: str, value: Any) -> Row:
    return {"from": who, "value": value}


ASKED, ANSWER = said("user", "two and two?"), said("assistant", "Four.")
CALL = {"name": "add", "arguments": {"a": 2}}
TOOLS = [{"type": "function", "function": {"name": "add"}}]
TALK = [
    shared("human", "two?"),
    shared("function_call", json.dumps(CALL)),
    shared("observation", "4"),
    shared("gpt", "Four."),
]
CALLS = [ASKED, said("assistant", None, tool_calls=[{"function": CALL}]), said("tool", "4"), ANSWER]
PARTS = [{"type": "text", "text": "two?"}]


def at(turns: list[Row], number: int, turn: Any) -> list[Any]:
    return [*turns[:number], turn, *turns[number + 1 :]]


# Form -> (a good record, settings, [(what is broken, field of the error, its text)]).
FORMS: dict[str, tuple[Row, Row, list[tuple[Row, str, str]]]] = {
    "ShareGPT": (
        {"conversations": TALK},
        {"messages": "conversations"},
        [
            ({"conversations": at(TALK, 0, shared("alien", "x"))}, "messages[0].role", "the roles are"),
            ({"conversations": at(TALK, 0, {"value": "x"})}, "messages[0].role", "expected role"),
            ({"conversations": at(TALK, 0, {"from": "human"})}, "messages[0]", "expected content"),
            ({"conversations": at(TALK, 0, shared("human", ""))}, "messages[0].content", "fill it in"),
            ({"conversations": at(TALK, 1, shared("function_call", "add(2)"))}, "messages[1]", "JSON of a call"),
            ({"conversations": at(TALK, 1, shared("function_call", "[1]"))}, "messages[1]", "expected a list"),
            ({"conversations": at(TALK, 2, shared("observation", None))}, "messages[2].content", "expected text"),
            ({"conversations": at(TALK, 3, "Four.")}, "messages[3]", "expected {role"),
            ({"conversations": at(TALK, 3, shared("gpt", "a") | {"mood": "x"})}, "messages[3].mood", "fields.ignore"),
            ({"conversations": []}, "messages", "remove the row"),
        ],
    ),
    "calls of tools": (
        {"messages": CALLS, "tools": TOOLS},
        {},
        [
            ({"tools": "{"}, "tools", "expected JSON"),
            ({"tools": ["add"]}, "tools", "list of JSON schemas"),
            ({"tools": {"name": "add"}}, "tools", "list of JSON schemas"),
            ({"messages": at(CALLS, 1, said("assistant", None, tool_calls="add"))}, "messages[1]", "expected a list"),
            (
                {"messages": at(CALLS, 1, said("assistant", None, tool_calls=[{"id": 1}]))},
                "messages[1]",
                "expected a list",
            ),
            (
                {
                    "messages": at(
                        CALLS, 1, said("assistant", "", tool_calls=[{"function": {"name": "a", "arguments": "{"}}])
                    )
                },
                "messages[1]",
                "invalid JSON",
            ),
            (
                {
                    "messages": at(
                        CALLS, 1, said("assistant", "", tool_calls=[{"function": {"name": "a", "arguments": [1]}}])
                    )
                },
                "messages[1]",
                "arguments are",
            ),
            ({"messages": at(CALLS, 1, said("assistant", None))}, "messages[1].content", "found null"),
            ({"messages": at(CALLS, 2, said("tool", {"sum": 4}))}, "messages[2].content", "expected text"),
            (
                {"messages": at(CALLS, 2, said("tool", "4", tool_call_id=4))},
                "messages[2].tool_call_id",
                "expected text",
            ),
        ],
    ),
    "prompt and completion": (
        {"prompt": "two?", "completion": "Four."},
        {"instruction": "prompt", "output": "completion"},
        [
            ({"prompt": None}, "instruction", "found null"),
            ({"prompt": ""}, "instruction", "fill it in"),
            ({"prompt": 3}, "instruction", "fields.instruction"),
            ({"prompt": {"text": "a"}}, "instruction", "name the text inside of it in fields.instruction"),
            ({"prompt": "a\x00b"}, "instruction", "character 1 is NUL"),
            ({"prompt": f"a{HALF}"}, "instruction", "half a surrogate"),
            ({"completion": None}, "output", "fill it in"),
            ({"completion": " \n"}, "output", "fill it in"),
            ({"completion": {"text": "a"}}, "output", "expected text"),
            ({"completion": f"{HALF}a"}, "output", "half a surrogate"),
        ],
    ),
    "messages in two columns": (
        {"prompt": [ASKED], "completion": [ANSWER]},
        {"messages": "prompt + completion"},
        [
            ({"prompt": None}, "prompt", "remove the row"),
            ({"prompt": []}, "prompt", "remove the row"),
            ({"prompt": 3}, "prompt", "list of messages"),
            ({"prompt": ["two?"]}, "prompt[0]", "expected {role"),
            ({"prompt": [said("user", "a\x00")]}, "prompt[0].content", "NUL"),
            ({"completion": None}, "completion", "remove the row"),
            ({"completion": [ASKED]}, "completion", "an answer of the assistant is missing"),
            ({"completion": [said("assistant", 3)]}, "completion[0].content", "expected text"),
            ({"completion": [said("assistant", "a", score=1)]}, "completion[0].score", "fields.ignore"),
            ({"completion": [said("robot", "a")]}, "messages[1].role", "the roles are"),
        ],
    ),
    "preferences": (
        {"chosen": [ASKED, ANSWER], "rejected": [ASKED, ANSWER]},
        {"messages": "chosen", "ignore": ["rejected"]},
        [
            ({"chosen": None}, "messages", "expected a list"),
            ({"chosen": []}, "messages", "remove the row"),
            ({"chosen": "Four."}, "messages", "expected a list"),
            ({"chosen": [ASKED, "Four."]}, "messages[1]", "expected {role"),
            ({"chosen": [ASKED, said("assistant", "")]}, "messages[1].content", "fill it in"),
            ({"chosen": [ASKED, said("assistant", HALF)]}, "messages[1].content", "half a surrogate"),
            ({"chosen": [said("user", "a", weight=1), ANSWER]}, "messages[0].weight", "only assistant turns"),
            ({"chosen": [said("user", "a", images=["x"]), ANSWER]}, "messages[0].images", "fields.ignore"),
            ({"chosen": [said(None, "a"), ANSWER]}, "messages[0].role", "expected role"),
            ({"images": ["a.png"]}, "images[0]", "no such picture"),
        ],
    ),
    "parts and thoughts": (
        {"messages": [said("user", PARTS), said("assistant", PARTS)]},
        {},
        [
            ({"messages": [said("user", [{"type": "image"}]), ANSWER]}, "messages[0].content[0]", "'image'"),
            ({"messages": [said("user", ["two?"]), ANSWER]}, "messages[0].content[0]", "expected"),
            ({"messages": [said("user", [{}]), ANSWER]}, "messages[0].content[0]", "null"),
            (
                {"messages": [said("user", [{"type": "text", "text": 3}]), ANSWER]},
                "messages[0].content[0].text",
                "expected",
            ),
            ({"messages": [said("user", [{"type": "text", "text": ""}]), ANSWER]}, "messages[0].content", "fill it in"),
            (
                {"messages": [said("user", PARTS + [{"text": "a", "url": "x"}]), ANSWER]},
                "messages[0].content[1].url",
                "ignore",
            ),
            (
                {"messages": [ASKED, said("assistant", "a", reasoning_content=3)]},
                "messages[1].reasoning_content",
                "expected",
            ),
            ({"messages": [ASKED, said("assistant", "a", thinking=" ")]}, "messages[1].thinking", "fill it in"),
            (
                {"messages": [ASKED, said("assistant", [{"type": "thinking", "thinking": "a"}], reasoning="b")]},
                "messages[1].content",
                "beside",
            ),
            ({"chat_template_kwargs": {"enable_thinking": True}}, "chat_template_kwargs", "fields.ignore"),
        ],
    ),
    "Alpaca": (
        {"instruction": "two?", "input": None, "output": "Four."},
        {},
        [
            ({"instruction": None}, "instruction", "fill it in"),
            ({"instruction": 3}, "instruction", "fields.instruction"),
            ({"input": 3}, "input", "set fields.input to"),
            ({"input": {"text": "a"}}, "input", "null"),
            ({"input": "a\x00"}, "input", "NUL"),
            ({"output": None}, "output", "fill it in"),
            ({"output": True}, "output", "label_names"),
            ({"output": float("inf")}, "output", "correct the value"),
            ({"system": 3}, "system", "fields.system"),
            ({"history": "a|b"}, "history", "separator"),
        ],
    ),
    "nested fields": (
        {"data": {"asked": "two?", "said": ["Four."]}},
        {"instruction": "Say {data.asked}", "output": "data.said.0"},
        [
            ({"data": None}, "instruction", "no column 'data.asked'"),
            ({"data": "two?"}, "instruction", "Name the right one"),
            ({"data": []}, "instruction", "no column"),
            ({"data": {"said": ["a"]}}, "instruction", "no column"),
            ({"data": {"asked": None, "said": ["a"]}}, "instruction (column data.asked)", "expected text or a number"),
            ({"data": {"asked": ["a"], "said": ["a"]}}, "instruction (column data.asked)", "expected text or a number"),
            ({"data": {"asked": "a"}}, "output", "no column 'data.said.0'"),
            ({"data": {"asked": "a", "said": []}}, "output", "no column"),
            ({"data": {"asked": "a", "said": [None]}}, "output", "fill it in"),
            ({"data": {"asked": "a", "said": [{"x": 1}]}}, "output", "expected text"),
        ],
    ),
}
CASES = [(form, number) for form, (_, _, broken) in FORMS.items() for number in range(len(broken))]


def source(path: Path, settings: Row) -> SourceConfig:
    return SourceConfig(path=str(path), fields=FieldsConfig(**settings))


def test_every_form_is_broken_in_ten_ways() -> None:
    assert [len(broken) for _, _, broken in FORMS.values()] == [10] * len(FORMS)


@pytest.mark.parametrize("form, number", CASES)
@pytest.mark.parametrize("suffix", ["jsonl", "json"])
def test_a_broken_record(tmp_path: Path, form: str, number: int, suffix: str) -> None:
    good, settings, broken = FORMS[form]
    change, field, text = broken[number]
    path = tmp_path / f"a.{suffix}"
    lines = [json.dumps(row) for row in (good, good | change, good)]
    path.write_text("\n".join(lines) if suffix == "jsonl" else f"[{', '.join(lines)}]")
    place = "line 2" if suffix == "jsonl" else "record 2"
    with pytest.raises(ValueError) as caught:
        open_sources([source(path, settings)])
    assert f"{path}, {place}, field '{field}': " in str(caught.value) and text in str(caught.value)
    opened = open_sources([source(path, settings)], on_bad_example="skip")
    assert len(opened) == 2 and [(row.where, row.field) for row in opened.skipped] == [(f"{path}, {place}", field)]


# ---------------------------------------------------------------- files

LINE = '{"instruction": "a", "output": "b"}'


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return bytes(sink.getvalue())


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]


def with_crc(data: bytes) -> bytes:
    return flipped(data, len(data) - 6)


TEXT = "\n".join([LINE] * 50).encode()
GZIP, ZSTD = gzip.compress(TEXT, mtime=0), zstd(TEXT)
WIDE = TEXT.decode().encode("utf-16")
FILES: dict[str, list[tuple[str, bytes, str]]] = {
    "gzip and zstd": [
        ("a.jsonl.gz", GZIP[:-4], "unzipped.*damaged or incomplete"),
        ("a.jsonl.gz", GZIP[: len(GZIP) // 2], "unzipped"),
        ("a.jsonl.gz", GZIP[:5], "unzipped"),
        ("a.jsonl.gz", with_crc(GZIP), "unzipped.*CRC"),
        ("a.jsonl.gz", flipped(GZIP, 12), "unzipped"),
        ("a.jsonl.gz", GZIP + b"more", "unzipped"),
        ("a.jsonl.gz", gzip.compress(GZIP, mtime=0), "compressed twice"),
        ("a.jsonl", gzip.compress(b"", mtime=0), "empty"),
        ("a.jsonl.zst", ZSTD[:-5], "unzipped"),
        ("a.jsonl.zst", ZSTD + b"more", "unzipped"),
        ("a.jsonl.zst", flipped(ZSTD, 5), "unzipped"),
        ("a.jsonl", b"BZh91AY&SY", "bzip2"),
        ("a.gz", GZIP, "unknown format"),
    ],
    "UTF-16": [
        ("a.jsonl", WIDE[:-1], "UTF-16.*save it as UTF-8"),
        ("a.jsonl", b"\xff\xfe", "empty|no records"),
        ("a.jsonl", TEXT.decode().encode("utf-16-le"), "UTF-16 without a byte-order mark"),
        ("a.jsonl", TEXT.decode().encode("utf-16-be"), "UTF-16 without a byte-order mark"),
        ("a.jsonl", b"\xff\xfe\0\0" + TEXT, "UTF-32"),
        ("a.csv", "a,a\n1,2".encode("utf-16"), "line 1: two columns"),
        ("a.csv", "a,b\n".encode("utf-16"), "no records"),
        ("a.json", "[1".encode("utf-16"), "line 1: .*not closed"),
        ("a.json", "{}".encode("utf-16"), "line 1: .*starts with"),
        ("a.jsonl.gz", gzip.compress(WIDE[:-1], mtime=0), "UTF-16"),
    ],
    "JSON arrays": [
        ("a.json", b" \n", "line 2: .*blank"),
        ("a.json", b"[]", "no records"),
        ("a.json", LINE.encode(), "line 1: .*array.*jsonl"),
        ("a.json", TEXT, "line 1: .*array.*jsonl"),
        ("a.json", f"[\n{LINE},\n".encode(), "line 3: .*not closed"),
        ("a.json", f"[\n{LINE}}}]".encode(), "line 2: .*follows the array"),
        ("a.json", f"[{LINE}]\n[{LINE}]".encode(), "line 2: .*follows the array"),
        ("a.json", b'[{"a": "b]', "line 1: .*text is not closed"),
        ("a.json", f'{{"data": [{LINE}]}}'.encode(), "line 1: .*array"),
        ("a.json", b"\x00" * 99, "no text"),
    ],
    "Parquet": [
        ("a.parquet", b"", "empty"),
        ("a.parquet", b"PAR1", "unreadable Parquet"),
        ("a.parquet", TEXT, "unreadable Parquet"),
        ("a.parquet", b"PAR1" + bytes(100) + b"PAR1", "unreadable Parquet"),
    ],
}


@pytest.mark.parametrize(
    "name, data, text",
    [pytest.param(*case, id=f"{kind} {number}") for kind, cases in FILES.items() for number, case in enumerate(cases)],
)
def test_a_broken_file(tmp_path: Path, name: str, data: bytes, text: str) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    for mode in ("error", "skip"):
        with pytest.raises(ValueError, match=text) as caught:
            open_sources([source(path, {})], on_bad_example=mode)
        assert str(path) in str(caught.value)


GOOD = [{"instruction": f"a{n}", "output": "b"} for n in range(30)]


def parquet(path: Path, change: Callable[[list[Row]], Any] = lambda rows: rows) -> bytes:
    made = change([dict(row) for row in GOOD])
    if not isinstance(made, pa.Table):  # which has the columns of its first row
        names = dict.fromkeys(name for row in made for name in row)
        made = pa.Table.from_pylist([{name: row.get(name) for name in names} for row in made])
    pq.write_table(made, path, row_group_size=10, compression="gzip")
    return path.read_bytes()


def without_column(rows: list[Row]) -> list[Row]:
    return [{"instruction": row["instruction"]} for row in rows]


def put(number: int, **cells: Any) -> Callable[[list[Row]], list[Row]]:
    def change(rows: list[Row]) -> list[Row]:
        rows[number] |= cells
        return rows

    return change


@pytest.mark.parametrize(
    "change, text",
    [
        (put(12, output=None), "row 13, field 'output'"),
        (put(12, instruction=None), "row 13, field 'instruction'"),
        (put(12, instruction="a\x00"), "row 13, field 'instruction'.*NUL"),
        (put(12, system=b"x"), "row 13, field 'system'.*found bytes.*not as binary; to leave"),
        (put(12, tools=[{"name": "a"}], images=["x"]), r"row 13, field 'images\[0\]'"),
        (put(12, messages="none"), "row 13, field 'messages'.*list"),
        (put(12, history=[["a", ""]]), r"row 13, field 'history\[0\]'"),
        (without_column, "row 1 .*field 'output'.*no column"),
        (lambda rows: pa.Table.from_pylist(rows).slice(0, 0), "no records"),
        (lambda rows: pa.Table.from_pylist(rows).rename_columns(["a", "a"]), "two columns share a name"),
    ],
)
def test_broken_tables(tmp_path: Path, change: Callable[[list[Row]], Any], text: str) -> None:
    path = tmp_path / "a.parquet"
    parquet(path, change)
    with pytest.raises(ValueError, match=f"a.parquet.*{text}"):
        open_sources([source(path, {})])
    if "row 13" in text:
        opened = open_sources([source(path, {})], on_bad_example="skip")
        assert len(opened) == 29 and opened.skipped[0].where == f"{path}, row 13"


@pytest.mark.parametrize("damage", ["cut in front", "page", "footer", "cut behind"])
def test_damaged_tables(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "a.parquet"
    data = parquet(path)
    place = pq.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    end = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    made = {
        "cut in front": data[20:],
        "page": data[: place + 22] + bytes(20) + data[place + 42 :],
        "footer": data[:end] + bytes(40) + data[end + 40 :],
        "cut behind": data[:-9],
    }[damage]
    path.write_bytes(made)
    for mode in ("error", "skip"):
        with pytest.raises(ValueError, match="a.parquet: unreadable Parquet") as caught:
            open_sources([source(path, {})], on_bad_example=mode)
        assert damage != "page" or re.search(r"row group 2 \(rows 11 to 20\)", str(caught.value))
