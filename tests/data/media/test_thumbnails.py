"""Small copies of pictures for pages."""

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_pictures import png

from instructrec_jax.data.media.picture import Picture, Sound
from instructrec_jax.data.media.thumbnails import START, blank_picture, thumbnail


def opened(uri: str) -> Image.Image:
    assert uri.startswith(START)
    return Image.open(io.BytesIO(base64.b64decode(uri.removeprefix(START))))


@pytest.mark.parametrize(("size", "expected"), [((500, 250), (128, 64)), ((20, 18), (20, 18)), ((90, 900), (13, 128))])
def test_a_large_picture_is_made_smaller_and_a_small_one_is_not(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    shown = opened(thumbnail(Picture.of(png(0, size))))
    assert shown.format == "JPEG" and shown.size == expected


def test_transparency_is_white() -> None:
    file = io.BytesIO()
    Image.new("RGBA", (40, 40), (200, 0, 0, 0)).save(file, format="PNG")
    assert np.asarray(opened(thumbnail(Picture.of(file.getvalue())))).min() > 250


def test_what_cannot_be_shown_has_none(tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(file, format="PNG")
    gone = Picture("0" * 32, str(tmp_path / "gone.png"))
    for each in (gone, Picture.of(b"no picture"), Picture.of(file.getvalue()), Sound.of(png(0))):
        assert thumbnail(each) == ""


def test_the_blank_one_is_white() -> None:
    assert np.asarray(opened(thumbnail(blank_picture()))).min() > 250
