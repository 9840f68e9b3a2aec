"""Vectors of a file's rows, window by window: in the order of the rows, or no file."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from instructrec_jax.answering import prediction_files
from instructrec_jax.answering.vector_files import write_vectors
from instructrec_jax.data.example import BadExample
from instructrec_jax.data.fields import FieldsConfig
from instructrec_jax.data.usual_columns import RecordMapper

MAPPER = RecordMapper(FieldsConfig(output=None))
COUNT = 7


def encode(texts: Sequence[str]) -> np.ndarray:
    """[texts, 2]: the number in the text, and the number of its letters."""
    return np.array([[int(text.split()[-1]), len(text)] for text in texts], np.float64)


def rows(folder: Path, *texts: str, **more: object) -> Path:
    path = folder / "in.jsonl"
    path.write_text("".join(json.dumps({"text": text, **more}) + "\n" for text in texts), encoding="utf-8")
    return path


TEXTS = [f"film {'x' * n} {n}" for n in range(COUNT)]


@pytest.mark.parametrize("window", [1, 3, 7, 100])
def test_vectors_of_numpy(window: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prediction_files, "WINDOW", window)
    assert write_vectors(encode, MAPPER, rows(tmp_path, *TEXTS), tmp_path / "out.npy") == COUNT
    found = np.load(tmp_path / "out.npy")
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, encode(TEXTS))


@pytest.mark.parametrize("window", [1, 3, 100])
def test_a_table_has_the_rows_beside_their_vectors(
    window: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prediction_files, "WINDOW", window)
    write_vectors(
        lambda texts: encode(texts).astype(np.float32), MAPPER, rows(tmp_path, *TEXTS, n=1), tmp_path / "o.parquet"
    )
    table = pq.read_table(tmp_path / "o.parquet")
    assert table.column_names == ["text", "n", "vector"] and table["text"].to_pylist() == TEXTS
    np.testing.assert_array_equal(np.array(table["vector"].to_pylist()), encode(TEXTS))


@pytest.mark.parametrize("name", ["out.npy", "out.parquet"])
def test_a_row_without_text_is_named_and_nothing_is_written(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prediction_files, "WINDOW", 2)
    path = rows(tmp_path, *TEXTS)
    path.write_text(path.read_text() + '{"text": \n')
    with pytest.raises(BadExample, match="in.jsonl, line 8"):
        write_vectors(encode, MAPPER, path, tmp_path / name)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["in.jsonl"]


@pytest.mark.parametrize("name", ["out.csv", "out", "in.jsonl"])
def test_other_formats_are_refused_before_anything_is_read(name: str, tmp_path: Path) -> None:
    def never(texts: Sequence[str]) -> np.ndarray:
        raise AssertionError("texts were encoded")

    with pytest.raises(ValueError, match="--out"):
        write_vectors(never, MAPPER, rows(tmp_path, *TEXTS), tmp_path / name)
