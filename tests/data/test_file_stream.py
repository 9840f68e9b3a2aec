"""Files as a stream: every row once and in order, from any position, one file after another."""

import json
from pathlib import Path

import pytest

from instructrec_jax.data.fields import FieldMapper, FieldsConfig
from instructrec_jax.data.file_stream import FileStream
from instructrec_jax.data.rows import find_files
from instructrec_jax.data.source_config import SourceConfig
from instructrec_jax.data.sources import StreamSource, open_sources


def folder_of(path: Path, sizes: tuple[int, ...] = (4, 1, 5)) -> Path:
    path.mkdir()
    first = 0
    for number, size in enumerate(sizes):
        rows = [{"instruction": f"{n}", "output": "x"} for n in range(first, first + size)]
        (path / f"{number}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        first += size
    return path


def read(stream: FileStream) -> list[object]:
    return [placed.row["instruction"] for placed in stream]


def test_from_every_position(tmp_path: Path) -> None:
    files = find_files(str(folder_of(tmp_path / "data")))
    stream = FileStream(files)
    states, walked = [stream.state_dict()], []
    for placed in stream:
        walked.append(placed.row["instruction"])
        states.append(json.loads(json.dumps(stream.state_dict())))
    assert walked == [str(n) for n in range(10)]
    for place, state in enumerate(states):
        other = FileStream(files)
        other.load_state_dict(state)
        assert read(other) == walked[place:]
        assert read(other) == walked, "the next epoch begins at the start"


def test_broken_rows_are_named_by_file_and_line(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "data")
    with (folder / "1.jsonl").open("a") as file:
        file.write("{torn\n")
    source = open_sources([SourceConfig(path=str(folder), streaming=True, shuffle_block=3)], on_bad_example="skip")
    assert isinstance(source, StreamSource)
    assert sorted(int(e.instruction) for e in source) == list(range(10))
    (row,) = source.skipped
    assert row.where == f"{folder / '1.jsonl'}, line 2" and row.reason == "malformed line"
    strict = open_sources([SourceConfig(path=str(folder), streaming=True)])
    with pytest.raises(ValueError, match="1.jsonl, line 2"):
        list(strict)


def test_usual_columns_are_found(tmp_path: Path) -> None:
    path = tmp_path / "reviews.csv"
    path.write_text("text,label\ngood,yes\nbad,no\n")
    found = list(open_sources([SourceConfig(path=str(path), streaming=True, shuffle_block=1)]))
    assert sorted((e.instruction, e.output) for e in found) == [("bad", "no"), ("good", "yes")]
    assert {e.where for e in found} == {f"{path}, line 2", f"{path}, line 3"}


def test_a_file_that_disappears_is_named(tmp_path: Path) -> None:
    files = find_files(str(folder_of(tmp_path / "data")))
    stream = StreamSource(FileStream(files), FieldMapper(FieldsConfig()), "s", shuffle_block=1)
    files[2].unlink()
    with pytest.raises(ValueError, match="2.jsonl"):
        list(stream)
