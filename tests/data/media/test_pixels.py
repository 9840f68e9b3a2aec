"""Pixels of a batch: those of transformers' processor, and hostile pictures named."""

import io
import pickle
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_pictures import image_network, png

from instructrec_jax.data.media import pixels as pixels_module
from instructrec_jax.data.media.picture import picture
from instructrec_jax.data.media.pictures import decoded, pixels_of, read_preprocessing
from instructrec_jax.data.media.pixels import PixelReader
from instructrec_jax.files import read_json, write_json


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_network("vit", tmp_path_factory.mktemp("vit"))


def reader(folder: Path) -> PixelReader:
    return PixelReader.of(folder, 3, 5)


def test_pixels_are_those_of_the_processor_and_are_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = reader(folder)
    expected = pixels_of([Image.open(io.BytesIO(png(1)))], read_preprocessing(folder))[0]
    laid = np.zeros((2, 2, *read.shape), np.float32)
    read.into(laid, [(1, 0), (0, 1)], [picture(png(1)), picture(png(2))])
    assert np.array_equal(laid[1, 0], expected) and not laid[0, 0].any() and laid[0, 1].any()
    monkeypatch.setattr(pixels_module, "decoded", None)  # a kept picture is not decoded again
    assert np.array_equal(read(picture(png(1))), expected)
    monkeypatch.undo()
    again = pickle.loads(pickle.dumps(read))
    assert again == read and np.array_equal(again(picture(png(1))), expected)


def bomb(width: int, height: int) -> bytes:
    """A PNG that claims a size, in a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")


def rotated() -> bytes:
    """A picture whose EXIF says to turn it by a quarter: left half red as stored, top half red as seen."""
    picture, file = Image.new("RGB", (40, 20), "blue"), io.BytesIO()
    picture.paste("red", (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(file, format="JPEG", exif=exif, quality=95)
    return file.getvalue()


def animated() -> bytes:
    file = io.BytesIO()
    first, second = Image.new("RGB", (20, 20), "red"), Image.new("RGB", (20, 20), "blue")
    first.save(file, format="GIF", save_all=True, append_images=[second])
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (bomb(100_000, 100_000), "decompression bomb"),
        (bomb(30_000, 3_000), "30,000 × 3,000 pixels, more than"),
        (bomb(20, 20), "cannot be read as a picture"),
        (png(1)[:-200], "cannot be read as a picture"),
        (png(1, format="JPEG")[:300], "cannot be read as a picture"),
        (b"no picture at all", "cannot be read as a picture"),
        (b"", "cannot be read as a picture"),
        (png(1, mode="I;16"), "mode I;16"),
        (png(1, mode="F", format="TIFF"), "mode F"),
    ],
    ids=lambda value: str(len(value)) if isinstance(value, bytes) else "",
)
def test_a_picture_that_cannot_be_read_is_named(data: bytes, said: str, folder: Path) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        reader(folder)(picture(data))
    assert f"{len(data):,} bytes" in str(caught.value)


@pytest.mark.parametrize(
    ("data", "top_left"),
    [
        (png(1, mode="CMYK", format="JPEG"), None),
        (png(1, mode="L"), None),
        (png(1, mode="P", format="GIF"), None),
        (png(1, size=(1, 10_000)), None),
        (png(1, size=(10_000, 1)), None),
        (rotated(), (1.0, -1.0, -1.0)),
        (animated(), (1.0, -1.0, -1.0)),
    ],
    ids=lambda value: str(len(value)) if isinstance(value, bytes) else "",
)
def test_unusual_pictures_are_read(data: bytes, top_left: Any, folder: Path) -> None:
    """Upright, and of an animation the first frame."""
    found = reader(folder)(picture(data))
    assert found.shape == (16, 16, 3) and np.isfinite(found).all()
    if top_left is not None:
        assert np.allclose(found[2, [2, 13]], top_left, atol=0.1)


def test_transparency_is_on_white(folder: Path) -> None:
    clear = io.BytesIO()
    Image.new("RGBA", (20, 20), (255, 0, 0, 0)).save(clear, format="PNG")
    assert np.allclose(reader(folder)(picture(clear.getvalue())), 1.0)


def test_a_resized_picture_is_bounded_too(tmp_path: Path) -> None:
    folder = image_network("clip", tmp_path)
    with pytest.raises(ValueError, match="resized, a picture of 10,000,000 × 1 pixels has"):
        reader(folder)(picture(png(1, size=(10_000_000, 1))))


def test_settings_without_one_size_or_of_other_channels_are_named(folder: Path, tmp_path: Path) -> None:
    settings = read_json(folder / "preprocessor_config.json", dict)
    write_json(tmp_path / "preprocessor_config.json", settings | {"size": {"shortest_edge": 16}})
    with pytest.raises(ValueError, match="different sizes, but a batch needs one size"):
        reader(tmp_path)
    with pytest.raises(ValueError, match="16 × 16 × 3 values, but the network reads 16 × 16 × 1"):
        PixelReader.of(folder, 1, 5)(picture(png(1)))


def test_decoded_names_the_file() -> None:
    with pytest.raises(ValueError, match=r"x\.png cannot be read"):
        decoded(b"nothing", "x.png")
