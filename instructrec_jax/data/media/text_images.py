"""The images (or sounds) of texts, and their places in packed rows."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from instructrec_jax.backbones.row_images import RowImages
from instructrec_jax.data.media.media_reader import MediaReader
from instructrec_jax.data.media.picture import Picture


@dataclass(frozen=True)
class TextImages:
    """The images of a text.

    Attributes:
      pictures: decoded when a batch is made.
      places: int32 [length]: k * V + v at the token of vector v of image k, -1 at a word; see `RowImages`.
      read: what makes pixels of pictures.
    """

    pictures: Sequence[Picture]
    places: np.ndarray
    read: MediaReader

    @classmethod
    def alone(cls, pictures: Sequence[Picture], read: MediaReader) -> "TextImages":
        """Images without words, each in its tokens."""
        return cls(pictures, np.arange(len(pictures) * read.vectors, dtype=np.int32), read)

    @property
    def vectors(self) -> int:
        """V, the vectors of an image."""
        return int(self.places.max() + 1) // len(self.pictures)


def image_tokens(texts: Sequence[TextImages | None], row: np.ndarray) -> int:
    """What the network computes of the images of one row, in tokens. row: int [texts], the row of each text."""
    some = [images for images in texts if images is not None]
    if not some:
        return 0
    counts = np.array([0 if images is None else len(images.pictures) for images in texts], np.int64)
    return images_per_row(row, counts) * some[0].read.tokens


def images_per_row(row: np.ndarray, counts: np.ndarray) -> int:
    """Images that each row has room for: 1, 2, 3, 4, 6, 8, 12, ..., so that few shapes are compiled.

    Args:
      row: int [texts], the row of each text.
      counts: int [texts], the images of each.
    """
    most = int(np.bincount(row, counts).max()) if len(row) else 0
    if most < 2:
        return most
    power = 1 << (most.bit_length() - 1)
    return next(size for size in (power, power + power // 2, 2 * power) if size >= most)


def lay_images(
    texts: Sequence[TextImages | None],
    lengths: np.ndarray,
    row: np.ndarray,
    at: tuple[np.ndarray, np.ndarray],
    shape: tuple[int, int],
    room: tuple[int, ...] | None,
) -> RowImages:
    """The images of texts in rows, decoded.

    Args:
      texts: None for a text without images.
      lengths, row: int [texts], tokens and row of each text.
      at: (row, column) of the tokens of all texts, end to end.
      shape: (rows, length).
      room: (images of a row, height, width, channels), of sounds (sounds of a row, frames, mels); None: as the texts
        have.

    Raises:
      ValueError: a picture that is gone, or is another one than when the data were read.
    """
    some = [(number, images) for number, images in enumerate(texts) if images is not None and len(images.pictures)]
    counts = np.zeros(len(texts), np.int64)
    counts[[number for number, _ in some]] = [len(images.pictures) for _, images in some]
    if room is None:
        room = (images_per_row(row, counts), *some[0][1].read.shape)
    flat = [np.full(length, -1, np.int32) for length in lengths.tolist()]
    taken = np.zeros(shape[0], np.int64)  # images of each row so far
    slots: list[tuple[int, int]] = []
    for number, images in some:
        first = int(taken[row[number]])
        flat[number] = np.where(images.places < 0, -1, images.places + first * images.vectors).astype(np.int32)
        slots += [(int(row[number]), first + k) for k in range(len(images.pictures))]
        taken[row[number]] += len(images.pictures)
    places = np.full(shape, -1, np.int32)
    places[at] = np.concatenate([*flat, np.zeros(0, np.int32)])
    pixels = np.zeros((shape[0], *room), np.float32)
    if some:
        read = some[0][1].read
        read.into(pixels, slots, [picture for _, images in some for picture in images.pictures])
    return RowImages(pixels, places)
