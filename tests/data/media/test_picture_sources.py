"""Pictures in every kind of source, read into stores that follow the data."""

import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_pictures import png

from instructrec_jax.data.example import Example
from instructrec_jax.data.fields import FieldsConfig
from instructrec_jax.data.source_config import SourceConfig
from instructrec_jax.data.sources import open_sources
from instructrec_jax.data.storage import Storage
from instructrec_jax.files import write_jsonl
from instructrec_jax.preparation.inspection.inspect import inspect
from instructrec_jax.preparation.inspection.showing import show
from instructrec_jax.preparation.own_config import InspectConfig


def opened(path: Path, storage: Storage | None = None, **settings: Any) -> Any:
    return open_sources([SourceConfig(path=str(path), **settings)], storage=storage)


def pictures_of(mixture: Any) -> list[list[bytes]]:
    source = mixture.sources[0]
    return [[picture.read() for picture in source[number].images] for number in range(len(source))]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    (folder / "pics").mkdir(parents=True)
    for number in range(3):
        (folder / "pics" / f"{number}.png").write_bytes(png(number))
    write_jsonl(folder / "a.jsonl", [{"image": f"pics/{number}.png", "label": "x"} for number in range(3)])
    return folder


WHOLE = [[png(number)] for number in range(3)]


def test_parquet_with_bytes_and_paths(data: Path) -> None:
    cells = [{"bytes": png(0), "path": "gone.png"}, {"bytes": None, "path": "pics/1.png"}, {"bytes": png(2)}]
    pq.write_table(pa.table({"image": cells, "label": ["x", "y", "x"]}), data / "b.parquet")
    assert pictures_of(opened(data / "b.parquet")) == WHOLE
    pq.write_table(pa.table({"images": [[png(0), png(1)]], "label": ["x"]}), data / "c.parquet")
    assert pictures_of(opened(data / "c.parquet")) == [[png(0), png(1)]]


def test_a_data_set_of_datasets_is_not_decoded(data: Path) -> None:
    datasets = pytest.importorskip("datasets")
    cells = [{"bytes": png(number), "path": None} for number in range(3)]
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["x", "y"]))
    datasets.Dataset.from_dict({"image": cells, "label": [0, 1, 0]}, features).save_to_disk(str(data / "saved"))
    found = opened(data / "saved", kind="datasets")
    assert pictures_of(found) == WHOLE and [found.sources[0][n].output for n in range(3)] == ["x", "y", "x"]


def test_a_stream_reads_pictures_beside_its_file(data: Path) -> None:
    stream = opened(data / "a.jsonl", streaming=True, shuffle_block=1)
    assert [[picture.read() for picture in example.images] for example in stream] == WHOLE


def test_a_store_follows_data_that_move(data: Path, tmp_path: Path) -> None:
    """The store is found by the bytes of the data file; the paths in it are those of where it lies now."""
    storage = Storage(str(tmp_path / "store"))
    first = opened(data / "a.jsonl", storage)
    shutil.move(data, tmp_path / "moved")
    second = opened(tmp_path / "moved" / "a.jsonl", storage)
    assert second.sources[0].store.reused and pictures_of(second) == WHOLE
    assert first.fingerprint == second.fingerprint


def test_another_column_and_another_folder(data: Path, tmp_path: Path) -> None:
    (tmp_path / "records").mkdir()
    write_jsonl(tmp_path / "records" / "b.jsonl", [{"photo": "1.png", "label": "x"}])
    with pytest.raises(ValueError, match=r"line 1, field 'image': no such picture.*is no file"):
        opened(tmp_path / "records" / "b.jsonl", fields=FieldsConfig(image="photo"))
    found = opened(tmp_path / "records" / "b.jsonl", fields=FieldsConfig(image="photo"), images=str(data / "pics"))
    assert pictures_of(found) == [[png(1)]]


def test_bad_rows_are_skipped_by_name(data: Path) -> None:
    rows = [{"image": "pics/0.png", "label": "x"}, {"image": "http://a.b/c.png", "label": "x"}, {"label": "x"}]
    write_jsonl(data / "b.jsonl", rows)
    found = open_sources([SourceConfig(path=str(data / "b.jsonl"))], on_bad_example="skip")
    assert [row.where.rpartition(", ")[2] for row in found.skipped] == ["line 2", "line 3"]
    assert "never fetched" in found.skipped[0].detail


def test_inspect_shows_pictures_and_guesses_nothing(data: Path, tmp_path: Path) -> None:
    shown = show(InspectConfig(files=[str(data / "a.jsonl")])).describe()
    assert "3, 0 bad" in shown and "pics/0.png" in shown and "3 examples have pictures" in shown
    with pytest.raises(ValueError, match=r"the column 'image' holds pictures.*docs/images\.md"):
        inspect(InspectConfig(files=[str(data / "a.jsonl")], out=str(tmp_path / "my.yaml")))


def test_marks_in_a_conversation(data: Path) -> None:
    content = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
    turns = [{"role": "user", "content": content}, {"role": "assistant", "content": "a cat"}]
    write_jsonl(data / "b.jsonl", [{"messages": turns, "images": ["pics/2.png"]}])
    (example,) = opened(data / "b.jsonl").sources[0]
    assert isinstance(example, Example) and example.messages[0].content == "<image>What is it?"
    assert [picture.read() for picture in example.images] == [png(2)]
