"""Pixels of a network as pictures again."""

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from instructrec_jax.data.media.drawing import data_uri, grid_of, picture_file, shown_values
from instructrec_jax.data.media.pictures import pixels_of, read_preprocessing

VALUES = np.random.default_rng(0).integers(0, 256, (6, 5, 3)).astype(np.float64)


@pytest.mark.parametrize(
    "numbers", [{}, {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.25]}, {"do_normalize": False}]
)
def test_values_are_those_that_became_pixels(numbers: dict[str, object], tmp_path: Path) -> None:
    processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": 6, "width": 5}} | numbers
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    how = read_preprocessing(tmp_path)
    pixels = pixels_of([Image.fromarray(VALUES.astype(np.uint8))], how)[0]
    assert np.array_equal(shown_values(pixels, how), VALUES)
    assert shown_values(pixels * 100, how).min() == 0 and shown_values(pixels * 100, how).max() == 255


def test_files_and_addresses_hold_the_values() -> None:
    for data in (picture_file(VALUES), base64.b64decode(data_uri(VALUES).removeprefix("data:image/png;base64,"))):
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), VALUES)
    assert Image.open(io.BytesIO(picture_file(VALUES, "JPEG"))).format == "JPEG"
    assert Image.open(io.BytesIO(picture_file(VALUES[..., :1]))).mode == "L"


def test_a_grid_has_each_picture_in_its_place() -> None:
    pictures = [np.full((4, 3, 3), float(n)) for n in range(5)]
    page = grid_of(pictures, gap=1)
    assert page.shape == (2 * 5 - 1, 3 * 4 - 1, 3)
    for n in range(5):
        assert (page[n // 3 * 5 : n // 3 * 5 + 4, n % 3 * 4 : n % 3 * 4 + 3] == n).all()
    assert (page[5:, 8:] == 255).all() and (page[4] == 255).all()
    assert grid_of(pictures[:1]) is pictures[0]
