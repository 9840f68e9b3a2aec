"""Examples of a source, read once: fresh where anything changed that they depend on, reused where nothing did."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from instructrec_jax.data import example_store
from instructrec_jax.data.example import Example, Message
from instructrec_jax.data.fields import FieldsConfig
from instructrec_jax.data.fingerprints import digest_of_example, fingerprint, json_and_digest
from instructrec_jax.data.source_config import SourceConfig
from instructrec_jax.data.sources import ListSource, RowSource, open_sources
from instructrec_jax.data.storage import Storage


def rows(count: int) -> list[dict[str, Any]]:
    return [
        {"instruction": f"ask {n} 中文😀", "output": "yes", "origin": {"user": "u", "b": "1", "a": "2"}}
        for n in range(count)
    ]


def jsonl(path: Path, records: list[Any]) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(each) + "\n" for each in records))
    return str(path)


def opened(path: str, storage: Storage | None = None, config: dict[str, Any] | None = None, **more: Any) -> RowSource:
    source = open_sources([SourceConfig(path=path, **config or {})], storage=storage, **more).sources[0]
    assert isinstance(source, RowSource)
    return source


def test_the_same_examples_from_memory_and_from_disk(tmp_path: Path) -> None:
    path, store = jsonl(tmp_path / "a.jsonl", rows(7)), Storage(str(tmp_path / "store"))
    memory, written, reused = opened(path), opened(path, store), opened(path, store)
    assert [each.store.reused for each in (memory, written, reused)] == [False, False, True]
    for each in (written, reused):
        assert list(each) == list(memory)
        assert each[6].where == f"{path}, line 7"
        assert list(each[0].origin) == ["user", "b", "a"], "the order of keys is kept"
        assert each.fingerprint == memory.fingerprint == fingerprint(memory) == ListSource(list(memory)).fingerprint


def test_what_makes_a_store_stale(tmp_path: Path) -> None:
    path, store = jsonl(tmp_path / "a.jsonl", rows(5)), Storage(str(tmp_path / "store"))
    opened(path, store)
    assert opened(path, store).store.reused

    renamed = Path(path).rename(tmp_path / "b.jsonl")
    moved = opened(str(renamed), store)
    assert moved.store.reused, "the name of a file does not matter"
    assert moved[2].where == f"{renamed}, line 3"

    others: list[dict[str, Any]] = [
        {"config": {"fields": FieldsConfig(instruction="{instruction}!")}},
        {"config": {"task": "other"}},
        {"labels": ["yes"]},
        {"on_bad_example": "skip"},
        {"task": {"type": "other"}},
    ]
    for change in others:
        assert not opened(str(renamed), store, **change).store.reused, change
        assert opened(str(renamed), store, **change).store.reused, change
    text = renamed.read_text()
    renamed.write_text(text.replace("ask 3", "ask 4"))
    stale = opened(str(renamed), store)
    assert not stale.store.reused and stale[3].instruction.startswith("ask 4")
    renamed.write_text(text)
    assert opened(str(renamed), store).store.reused, "the first content again"


def test_a_store_lies_beside_large_data_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = jsonl(tmp_path / "data" / "a.jsonl", rows(30))
    assert opened(path, Storage(None)).store.place is None
    assert [each.name for each in Path(path).parent.iterdir()] == ["a.jsonl"]
    monkeypatch.setattr("instructrec_jax.data.storage.KEPT_FROM", 30)
    place = opened(path, Storage(None)).store.place
    assert place is not None and place.parent == tmp_path / "data" / ".instructrec"
    assert opened(path, Storage(None)).store.reused
    assert opened(str(tmp_path / "data"), Storage(None))[29].where == f"{path}, line 30", "not read as data itself"


def test_skipped_rows_and_notes_are_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    records: list[Any] = [*rows(3), {"instruction": " ", "output": "x"}, {**rows(1)[0], "url": "u"}, 17]
    path, store = jsonl(tmp_path / "a.jsonl", records), Storage(str(tmp_path / "store"))
    said, found = [], []
    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            found.append(opened(path, store, on_bad_example="skip"))
        said.append(caplog.text)
    assert found[1].store.reused
    assert [row.where for row in found[1].skipped] == [f"{path}, line 4", f"{path}, line 6"]
    assert found[0].skipped == found[1].skipped
    assert "url (1)" in said[0] and said[0] == said[1]


def test_bad_rows_are_listed_and_nothing_is_kept_as_whole(tmp_path: Path) -> None:
    path, store = (
        jsonl(tmp_path / "a.jsonl", [*rows(2), {"instruction": "a", "output": 1, "tools": 3}]),
        tmp_path / "store",
    )
    for _ in range(2):
        with pytest.raises(ValueError, match=r"(?s)1 bad row.*line 3.*tools"):
            opened(path, Storage(str(store)))
    assert not list(store.glob("*/index.json"))


def test_in_workers_as_in_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three parts in two processes, with bad rows: the same store."""
    monkeypatch.setattr("instructrec_jax.data.example_store.PART_ROWS", 4)
    bad = [{"instruction": "", "output": "x"}]
    path = jsonl(tmp_path / "a.jsonl", [*rows(5), *bad, *rows(4), *bad])
    one = opened(path, Storage(str(tmp_path / "one"), workers=1), on_bad_example="skip")
    two = opened(path, Storage(str(tmp_path / "two"), workers=2), on_bad_example="skip")
    assert list(one) == list(two) and one.skipped == two.skipped and one.store.summary == two.store.summary
    with pytest.raises(ValueError, match=r"(?s)2 bad rows.*line 6 \(and 1 more\)"):
        opened(path, Storage(str(tmp_path / "two"), workers=2))


def test_names_that_contain_one_another() -> None:
    names = ["a.jsonl", "b/a.jsonl"]
    where = example_store._numbered("b/a.jsonl, line 3", names)
    assert example_store.named(where, ["x", "y"]) == "y, line 3"


def test_the_json_keeps_the_order_that_templates_may_write() -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {"z": 1, "a": 2}}}
    example = Example(
        instruction="",
        messages=(Message("user", "a"), Message("assistant", "", extra={"tool_calls": [call]})),
        tools=({"type": "function", "function": {"name": "f", "description": "d"}},),
    )
    kept, digest = json_and_digest(example)
    found = Example.from_record(json.loads(kept))
    assert found == example and list(found.tools[0]) == ["type", "function"]
    calls: Any = found.messages[1].extra["tool_calls"]
    assert list(calls[0]["function"]["arguments"]) == ["z", "a"]
    other = Example(instruction="a", origin={"user": "1"})
    assert digest == digest_of_example(example) and json_and_digest(other)[1] == digest_of_example(other)
