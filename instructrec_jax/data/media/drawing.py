"""Pixels of a network → pictures: files, and data URIs for reports."""

import base64
import io
from collections.abc import Sequence
from math import ceil, sqrt

import numpy as np

from instructrec_jax.data.media.pictures import Preprocessing
from instructrec_jax.extras import require


def shown_values(pixels: np.ndarray, how: Preprocessing) -> np.ndarray:
    """Whole numbers from 0 to 255, float64, of pixels [..., channels] that a network reads or draws.

    The inverse of the numbers' part of `Preprocessing`; numbers beyond black and white become these.
    """
    values = pixels.astype(np.float64)
    if how.mean is not None:
        values = values * np.array(how.std) + np.array(how.mean)
    return np.clip(np.rint(values / (1.0 if how.factor is None else how.factor)), 0, 255)


def picture_file(values: np.ndarray, format: str = "PNG") -> bytes:
    """The file of a picture, from values 0 to 255 [height, width, 3 (or 1)]. format: a name of Pillow's."""
    require("PIL", "a picture that is drawn")
    from PIL import Image

    whole = values.astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(whole[..., 0] if whole.shape[-1] == 1 else whole).save(file, format=format)
    return file.getvalue()


def data_uri(values: np.ndarray) -> str:
    """The same as an address that holds the file itself, for HTML."""
    return "data:image/png;base64," + base64.b64encode(picture_file(values)).decode()


def grid_of(pictures: Sequence[np.ndarray], gap: int = 2) -> np.ndarray:
    """Pictures of one size in a grid that is about as wide as high, on white, row by row.

    Args:
        pictures: values [height, width, channels] each.
        gap: pixels between them.
    """
    if len(pictures) == 1:
        return pictures[0]
    columns = ceil(sqrt(len(pictures)))
    height, width, channels = pictures[0].shape
    rows = ceil(len(pictures) / columns)
    page = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, channels), 255.0)
    for number, each in enumerate(pictures):
        top, left = number // columns * (height + gap), number % columns * (width + gap)
        page[top : top + height, left : left + width] = each
    return page
