"""WebDataset shards as sources."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_pictures import png, tar

from instructrec_jax.data.example import Example
from instructrec_jax.data.rows import open_rows
from instructrec_jax.data.source_config import SourceConfig
from instructrec_jax.data.sources import open_sources


def opened(file: Path, **settings: Any) -> list[Example]:
    found = open_sources([SourceConfig(path=str(file), **settings)])
    return [found.sources[0][index] for index in range(len(found))]  # type: ignore[union-attr]


def test_files_of_one_key_are_a_record(tmp_path: Path) -> None:
    content = {
        "a/000.jpg": png(0, format="JPEG"),
        "a/000.json": json.dumps({"label": "cat"}).encode(),
        "a/001.left.png": png(1),
        "a/001.right.png": png(2),
        "a/001.cls": b"7\n",
    }
    examples = opened(tar(tmp_path / "s.tar", content))
    assert [example.output for example in examples] == ["cat", 7]
    assert [example.id for example in examples] == ["a/000", "a/001"]
    assert [[picture.read() for picture in example.images] for example in examples] == [
        [content["a/000.jpg"]],
        [content["a/001.left.png"], content["a/001.right.png"]],
    ]
    assert examples[0].where.endswith("s.tar, key a/000")


def test_captions_and_other_files(tmp_path: Path) -> None:
    content = {"0.png": png(0), "0.txt": "ein Bild 🎬".encode(), "0.npy": b"\x93NUMPY", "0.cls": b"dog"}
    (row,) = [open_rows(str(tar(tmp_path / "s.tar", content))).row(0)]
    assert row == {"image": "s.tar/0.png", "text": "ein Bild 🎬", "npy": b"\x93NUMPY", "label": "dog", "id": "0"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"0.png": png(0), "0.json": b"[1]"}, "must be an object"),
        ({"0.png": png(0), "0.json": b"{"}, "malformed file"),
        ({"0.png": png(0), "0.json": b'{"label": 1}', "0.cls": b"2"}, "two values"),
        ({"0.png": png(0), "0.txt": b"\xff"}, "malformed file"),
        ({}, "holds no records"),
    ],
)
def test_a_damaged_record_is_named(content: dict[str, bytes], said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        opened(tar(tmp_path / "s.tar", content))


def test_a_compressed_tar_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s.tar.gz").write_bytes(b"\x1f\x8b")
    with pytest.raises(ValueError, match="decompress it"):
        opened(tmp_path / "s.tar.gz")
