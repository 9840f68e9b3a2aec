"""Pictures of records: every form of them, and none from where they may not come."""

import base64
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tiny_pictures import png

from instructrec_jax.data.example import BadExample
from instructrec_jax.data.media.picture import digest_of
from instructrec_jax.data.media.picture_references import (
    NO_FILES,
    PictureFolder,
    PictureFolders,
    folders_of,
    numbered,
    placed,
    read_pictures,
    row_pictures,
)

DATA = png(0)
CODED = base64.b64encode(DATA).decode()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data" / "pics").mkdir(parents=True)
    (tmp_path / "data" / "pics" / "a.png").write_bytes(DATA)
    (tmp_path / "secret.png").write_bytes(png(9))
    return tmp_path / "data"


@pytest.mark.parametrize(
    "value",
    [
        "pics/a.png",
        "./pics/../pics/a.png",
        DATA,
        CODED,
        "\n".join(CODED[i : i + 76] for i in range(0, len(CODED), 76)),
        f"data:image/png;base64,{CODED}",
        {"bytes": DATA, "path": "elsewhere.png"},
        {"bytes": None, "path": "pics/a.png"},
        {"bytes": CODED},
    ],
)
def test_one_picture_in_every_form(value: Any, folder: Path) -> None:
    (found,) = read_pictures(value, PictureFolder(folder))
    assert found.read() == DATA and found.digest == digest_of(DATA)
    assert read_pictures([value, value], PictureFolder(folder)) == (found, found)


def test_a_picture_of_pillow_and_none_at_all(folder: Path) -> None:
    (found,) = read_pictures(Image.new("RGB", (3, 2), "red"), NO_FILES)
    assert found.data.startswith(b"\x89PNG")
    assert read_pictures(None, NO_FILES) == read_pictures([], NO_FILES) == read_pictures("", NO_FILES) == ()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("../secret.png", "lies outside"),
        ("pics/../../secret.png", "lies outside"),
        ("{root}/secret.png", "lies outside"),
        ("link.png", "lies outside"),
        ("/etc/passwd", "lies outside"),
        ("gone.png", "no such picture.*is no file"),
        ("pics", "no such picture.*is no file"),
        ("pipe", "no such picture.*is no file"),
        ("a\x00b", "no such picture"),
        ("https://example.org/a.png", "URLs are never fetched"),
        ("s3://bucket/a.png", "URLs are never fetched"),
        ("file:///etc/passwd", "URLs are never fetched"),
        ("data:image/png,abc", "data URI"),
        ("data:image/png;base64,@@@", "not base64"),
        (3, "wrong type"),
        ({"url": "a"}, "wrong type"),
        ([["pics/a.png"]], r"image\[0\]'.*wrong type"),
    ],
)
def test_what_is_no_picture_of_the_data_is_named(value: Any, said: str, folder: Path) -> None:
    (folder / "link.png").symlink_to(folder.parent / "secret.png")
    os.mkfifo(folder / "pipe")
    value = value.format(root=folder.parent) if isinstance(value, str) else value
    with pytest.raises(BadExample, match=said):
        read_pictures(value, PictureFolder(folder))


def test_a_setting_names_another_folder(folder: Path) -> None:
    (files,) = folders_of([folder / "a.jsonl"], str(folder.parent))
    assert read_pictures("secret.png", files)[0].read() == png(9)
    assert read_pictures(str(folder / "pics" / "a.png"), files)[0].read() == DATA


def test_a_record_of_a_client_names_no_file(folder: Path) -> None:
    with pytest.raises(BadExample, match="give it as base64"):
        read_pictures(str(folder / "pics" / "a.png"), NO_FILES)
    assert read_pictures(CODED, NO_FILES)[0].data == DATA


def test_pictures_inside_of_messages(folder: Path) -> None:
    turns = [
        {"role": "user", "content": [{"type": "image", "image": "pics/a.png"}, {"type": "text", "text": "what?"}]},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{CODED}"}}]},
        {"role": "assistant", "content": "a cat"},
    ]
    messages, found = row_pictures({}, turns, PictureFolder(folder))
    assert [each.digest for each in found] == [digest_of(DATA)] * 2
    assert messages[0]["content"][0] == messages[1]["content"][0] == {"type": "image"}  # type: ignore[index]
    with pytest.raises(BadExample, match="image and messages"):
        row_pictures({"image": "pics/a.png"}, turns, PictureFolder(folder))


def test_each_part_has_its_picture(folder: Path) -> None:
    turns = [{"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "and"}]}]
    messages, found = row_pictures({"images": ["pics/a.png"]}, turns, PictureFolder(folder))
    assert len(found) == 1 and messages[0]["content"][0]["type"] == "image"  # type: ignore[index]
    for pictures in ([], ["pics/a.png"] * 2):
        with pytest.raises(BadExample, match=r"messages\[0\]\.content\[0\]'.*1 parts of type 'image', but"):
            row_pictures({"images": pictures}, turns, PictureFolder(folder))


def test_paths_in_a_store_follow_the_data(folder: Path) -> None:
    pictures = read_pictures(["pics/a.png", DATA], PictureFolder(folder))
    short = numbered(pictures, (PictureFolder(folder),))
    assert str(folder) not in short[0].path
    moved = placed(short, (PictureFolder(folder.parent / "new"),))
    assert moved[0].path == str(folder.parent / "new" / "pics" / "a.png") and moved[1].data == DATA
    assert placed(short, (PictureFolder(folder),))[0].path == pictures[0].path


def test_the_folder_of_a_row_is_that_of_its_file(folder: Path) -> None:
    folders = PictureFolders(("x/a.jsonl", "x/a.jsonl.gz"), (PictureFolder(Path("1")), PictureFolder(Path("2"))))
    assert folders.of("x/a.jsonl, line 3").start == Path("1")
    assert folders.of("x/a.jsonl.gz, line 3").start == Path("2")
    assert folders.of("y/a.jsonl, line 3") is NO_FILES
