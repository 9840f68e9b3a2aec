"""Vectors for files: formats, interruptions, bad rows. The vectors are made of a text's length, without a network."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from letters import ASKED, TEXTS, asker, write_rows

from instructrec_jax.answering import output_formats, prediction_files
from instructrec_jax.answering.partial_files import Share
from instructrec_jax.answering.prediction_files import Counts
from instructrec_jax.answering.vector_files import write_vectors
from instructrec_jax.files import read_jsonl


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prediction_files, "WINDOW", 5)
    monkeypatch.setattr(output_formats, "CHUNK", 7)


def encode(texts: Sequence[str]) -> np.ndarray:
    """As an encoder whose tokenizer has no token for "z"."""
    for number, text in enumerate(texts):
        if "z" in text:
            raise ValueError(f"text {number} has no tokens.")
    return np.array([[len(text) / 3, len(texts) > 0, -1.5] for text in texts], np.float32)


def written(
    source: Path, out: Path, encode: Callable[[Sequence[str]], np.ndarray] = encode, **settings: bool
) -> Counts:
    return write_vectors(encode, asker().mapper, source, out, asked=ASKED, **settings)


@pytest.mark.parametrize("ending", ["npy", "parquet"])
def test_every_row_has_its_vector(ending: str, tmp_path: Path) -> None:
    out = tmp_path / f"out.{ending}"
    assert written(write_rows(tmp_path / "in.csv", TEXTS), out) == Counts(23, 0)
    if ending == "npy":
        found = np.load(out)
    else:
        table = pq.read_table(out)
        assert table.column_names == ["text", "label", "note", "vector"]
        assert table.column("text").to_pylist() == TEXTS
        assert str(table.schema.field("vector").type) == "fixed_size_list<element: float>[3]"
        found = np.array(table.column("vector").to_pylist(), np.float32)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, encode(TEXTS))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.csv", out.name]


class Killed(BaseException):
    """Ends the process as SIGKILL would: nothing is cleaned up."""


@pytest.mark.parametrize("ending", ["npy", "parquet"])
def test_an_interrupted_call_resumes_to_the_same_bytes(ending: str, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.csv", TEXTS)
    whole, out = tmp_path / f"whole.{ending}", tmp_path / f"out.{ending}"
    written(source, whole)
    calls: list[int] = []

    def dies(texts: Sequence[str]) -> np.ndarray:
        calls.append(len(texts))
        if len(calls) == 3:
            raise Killed
        return encode(texts)

    with pytest.raises(Killed):
        written(source, out, dies)
    assert not out.exists()
    calls.clear()
    calls.extend([0] * 3)
    assert written(source, out, dies) == Counts(23, 0)
    assert calls[3:] == [5, 5, 3]  # the first two windows are not computed again
    assert out.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["in.csv", out.name, whole.name])


def test_bad_rows_stop_or_are_listed(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text('{"text": "ab"}\n{"note": "c"}\n{"text": "z"}\n{broken\n{"text": "abc"}\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"in\.jsonl, line 2"):
        written(source, tmp_path / "out.npy")
    with pytest.raises(ValueError, match="parquet"):
        written(source, tmp_path / "out.npy", skip=True)
    assert written(source, tmp_path / "out.parquet", skip=True) == Counts(2, 3)
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.column("text").to_pylist() == ["ab", "abc"]
    np.testing.assert_array_equal(np.array(table.column("vector").to_pylist(), np.float32), encode(["ab", "abc"]))
    rejected = read_jsonl(tmp_path / "out.rejected.jsonl")
    assert sorted(str(row["where"]).rpartition(" ")[2] for row in rejected) == ["2", "3", "4"]
    source.write_text('{"text": "ab"}\n{"text": "z"}\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"in\.jsonl, line 2.*no tokens"):
        written(source, tmp_path / "again.npy")


def test_an_error_that_no_text_causes_alone_is_raised(tmp_path: Path) -> None:
    def fails(texts: Sequence[str]) -> np.ndarray:
        if len(texts) > 1:
            raise ValueError("the mesh is too small.")
        return encode(texts)

    with pytest.raises(ValueError, match="mesh"):
        written(write_rows(tmp_path / "in.csv", TEXTS), tmp_path / "out.npy", fails)
    assert [path.name for path in tmp_path.iterdir()] == ["in.csv"]  # nothing was begun that would be in the way


def test_a_column_of_the_vectors_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"text": "a", "vector": "b"}\n', encoding="utf-8")
    with pytest.raises(ValueError, match="'vector'"):
        written(tmp_path / "in.jsonl", tmp_path / "out.parquet")


def test_parts(tmp_path: Path) -> None:
    source, out = write_rows(tmp_path / "in.csv", TEXTS), tmp_path / "out.npy"
    for number in (1, 0):
        write_vectors(encode, asker().mapper, source, out, asked=ASKED, share=Share(number, 2))
    parts = [np.load(tmp_path / f"out-0000{number}-of-00002.npy") for number in (1, 2)]
    np.testing.assert_array_equal(np.concatenate(parts), encode(TEXTS))
    assert (tmp_path / "out.npy.index.json").exists()


@pytest.mark.parametrize("name", ["out.csv", "out", "in.csv"])
def test_other_formats_are_refused_before_anything_is_read(name: str, tmp_path: Path) -> None:
    def never(texts: Sequence[str]) -> np.ndarray:
        raise AssertionError("texts were encoded")

    with pytest.raises(ValueError, match="--out"):
        written(write_rows(tmp_path / "in.csv", TEXTS), tmp_path / name, never)
