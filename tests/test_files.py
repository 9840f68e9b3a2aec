import errno
import json
import os
import re
import stat
from typing import Literal, NotRequired, TypedDict

import numpy as np
import pytest

from instructrec_jax import files
from instructrec_jax.files import (
    append_jsonl,
    read_json,
    read_jsonl,
    replacing,
    sweep,
    write_json,
    write_jsonl,
    write_text,
)


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_text_goes_through_unchanged_and_leaves_nothing_else(tmp_path):
    text = "crème brûlée\r\n映画\n\u2028end"
    path = write_text(tmp_path / "new" / "a.txt", text)
    assert path.read_bytes() == text.encode("utf-8")
    write_text(path, "shorter")
    assert path.read_text() == "shorter" and names(tmp_path / "new") == ["a.txt"]


def test_written_files_are_readable_like_any_other(tmp_path):
    (tmp_path / "plain").write_text("")
    write_text(tmp_path / "ours", "")
    assert stat.S_IMODE((tmp_path / "ours").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_full_disk_keeps_the_old_file_and_says_what_to_do(tmp_path, monkeypatch, step):
    path = write_text(tmp_path / "a.txt", "old")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(OSError, match="disk") as caught:
        write_text(path, "new")
    assert str(path) in str(caught.value) and caught.value.errno == errno.ENOSPC
    assert path.read_text() == "old" and names(tmp_path) == ["a.txt"]


def test_full_disk_while_appending_keeps_whole_rows(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    append_jsonl(path, [{"a": 1}])

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="disk"):
        append_jsonl(path, [{"a": 2}])
    assert path.read_bytes() == b'{"a": 1}\n'


def test_a_file_in_the_way_of_the_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="folder") as caught:
        write_text(tmp_path / "file" / "a.txt", "x")
    assert str(tmp_path / "file" / "a.txt") in str(caught.value)


def test_an_error_halfway_through_the_rows_keeps_the_old_file(tmp_path):
    path = tmp_path / "a.jsonl"
    write_jsonl(path, [{"a": 1}])

    def rows():
        yield {"a": 2}
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError, match="the source broke"):
        write_jsonl(path, rows())
    assert read_jsonl(path) == [{"a": 1}] and names(tmp_path) == ["a.jsonl"]


def test_an_error_of_the_source_is_not_taken_for_one_of_the_disk(tmp_path):
    def rows():
        yield from read_jsonl(tmp_path / "missing.jsonl")

    with pytest.raises(FileNotFoundError) as caught:
        write_jsonl(tmp_path / "a.jsonl", rows())
    assert caught.value.filename == str(tmp_path / "missing.jsonl")
    assert names(tmp_path) == []


def test_json_types(tmp_path):
    value = {
        "nan": float("nan"),
        "deep": [(np.float32("inf"), np.int64(3), np.float64(0.1))],
        "path": tmp_path,
        "bool": np.bool_(True),
        "text": "é",
    }
    path = write_json(tmp_path / "a.json", value)
    wanted = {"nan": None, "deep": [[None, 3, 0.1]], "path": str(tmp_path), "bool": True, "text": "é"}
    assert read_json(path) == wanted
    assert "é" in path.read_text(encoding="utf-8")


def test_json_refuses_what_it_cannot_hold(tmp_path):
    path = tmp_path / "a.json"
    with pytest.raises(ValueError, match="a.json.*set"):
        write_json(path, {"a": {1, 2}})
    with pytest.raises(ValueError, match="a.txt.*UTF-8"):
        write_text(tmp_path / "a.txt", "\ud800")
    assert names(tmp_path) == []


def test_half_a_surrogate_pair_survives_in_json(tmp_path):
    append_jsonl(tmp_path / "a.jsonl", [{"title": "broken \ud83d title"}])
    assert read_jsonl(tmp_path / "a.jsonl") == [{"title": "broken \ud83d title"}]


def test_rows_with_newlines_inside_stay_one_line_each(tmp_path):
    rows = [{"a": "one\ntwo\r\u2028\x85three"}, {"b": [None, True]}]
    assert append_jsonl(tmp_path / "a.jsonl", rows[:1]) == 1
    assert append_jsonl(tmp_path / "a.jsonl", rows[1:]) == 1
    assert read_jsonl(tmp_path / "a.jsonl") == rows
    assert (tmp_path / "a.jsonl").read_bytes().count(b"\n") == 2


def test_every_possible_kill_leaves_a_readable_file(tmp_path, caplog):
    """Cut after each byte (also within a multi-byte character): whole rows survive, and appending goes on."""
    rows = [{"a": 1}, {"title": "é映"}]
    write_jsonl(tmp_path / "whole.jsonl", rows)
    content = (tmp_path / "whole.jsonl").read_bytes()
    first = content.index(b"\n") + 1
    for cut in range(len(content) + 1):
        path = tmp_path / "cut.jsonl"
        path.write_bytes(content[:cut])
        whole = (cut >= first - 1) + (cut >= len(content) - 1)
        assert read_jsonl(path) == rows[:whole], cut
        append_jsonl(path, [{"b": 2}])
        assert read_jsonl(path) == [*rows[:whole], {"b": 2}], cut
    assert "last line" in caplog.text


@pytest.mark.parametrize("bad", [b"{broken", b"", b"[1]", b'{"a": NaN}', b"\xff\xfe", b'{"a": 1} {"b": 2}'])
@pytest.mark.parametrize("after", [b"", b'{"a": 3}\n'])
def test_any_other_broken_line_is_named(tmp_path, bad, after):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n' + bad + b"\n" + after)
    with pytest.raises(ValueError, match=r"a\.jsonl, line 2: "):
        read_jsonl(path)


def test_broken_json_file_names_itself(tmp_path):
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ValueError, match="a.json: "):
        read_json(tmp_path / "a.json")
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "none.json")


def test_what_is_written_is_standard_json(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [{"loss": float("-inf")}])
    assert json.loads((tmp_path / "a.jsonl").read_text()) == {"loss": None}


class Inner(TypedDict):
    size: int


class Outer(TypedDict):
    name: str
    share: float
    inner: NotRequired[Inner | None]
    pairs: NotRequired[list[tuple[str, float | None]]]
    kind: NotRequired[Literal["a", "b"]]
    by_name: NotRequired[dict[str, bool]]


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ({"name": "x", "share": 1}, None),
        ({"name": "x", "share": 0.5, "inner": None, "more": 3}, None),
        ({"name": "x", "share": 1, "inner": {"size": 3}, "pairs": [["a", None]], "by_name": {"a": True}}, None),
        ([], "the value should be an object"),
        ({"name": "x"}, "share is missing"),
        ({"name": 3, "share": 1}, "name should be a text"),
        ({"name": "x", "share": 10**400}, "share should be a number"),  # no float holds it
        ({"name": "x", "share": True}, "share should be a number"),
        ({"name": "x", "share": None}, "share should be a number"),
        ({"name": "x", "share": 1, "inner": {"size": 1.5}}, "inner.size should be an integer"),
        ({"name": "x", "share": 1, "inner": {}}, "inner.size is missing"),
        ({"name": "x", "share": 1, "pairs": [["a", 1], ["b"]]}, "pairs[1] should be a list of 2 values"),
        ({"name": "x", "share": 1, "pairs": [["a", "1"]]}, "pairs[0][1] should be a number"),
        ({"name": "x", "share": 1, "kind": "c"}, "kind should be 'a' or 'b'"),
        ({"name": "x", "share": 1, "by_name": {"a": 1}}, "by_name['a'] should be true or false"),
    ],
)
def test_a_typed_reading_names_the_field(tmp_path, value, problem):
    path = write_json(tmp_path / "a.json", value)
    if problem is None:
        assert read_json(path, Outer) == value
    else:
        with pytest.raises(ValueError, match=re.escape(f"{path}: {problem}")):
            read_json(path, Outer)


def test_a_typed_reading_of_rows_names_the_line(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [{"size": 1}, {"size": "2"}])
    with pytest.raises(ValueError, match=r"a\.jsonl, line 2: size"):
        read_jsonl(tmp_path / "a.jsonl", Inner)


def test_only_temporary_files_of_the_dead_are_swept(tmp_path):
    stale = tmp_path / f".a.txt.{'0' * 32}.tmp"
    stale.write_text("half")
    with replacing(tmp_path / "b.txt") as file:
        file.write(b"whole")
        sweep(tmp_path)
        assert len(names(tmp_path)) == 1 and not stale.exists()
    sweep(tmp_path)
    assert names(tmp_path) == ["b.txt"]


def test_a_sweep_just_before_the_lock_loses_no_file(tmp_path, monkeypatch):
    """Another process sweeps, or begins to, between the creation of a file and its lock."""
    real, held, calls = files.try_lock, [], []

    def late(file, **how):
        calls.append(file.name)
        if len(calls) == 1:  # the sweep is over: the file has no name any more
            os.unlink(file.name)
        if len(calls) == 2:  # the sweep holds the lock, and deletes the file next
            held.append(open(file.name, "rb"))
            assert real(held[0])
        if len(calls) == 3:
            held[0].close()
        return real(file, **how)

    monkeypatch.setattr(files, "try_lock", late)
    write_text(tmp_path / "a.txt", "whole")
    assert len(calls) == 3 and names(tmp_path) == ["a.txt"] and (tmp_path / "a.txt").read_text() == "whole"


def test_the_folder_is_forced_to_disk_after_the_file_has_its_name(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.path.isdir(f"/proc/self/fd/{handle}")))
    write_text(tmp_path / "a.txt", "text")
    assert synced == [False, True]
    append_jsonl(tmp_path / "a.jsonl", [{"a": 1}])
    append_jsonl(tmp_path / "a.jsonl", [{"a": 2}])
    assert synced == [False, True, False, True, False]
