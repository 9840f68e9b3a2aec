"""Calibration texts, and their images or sounds, in rows without padding, which would count as an input."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from instructrec_jax.backbones.row_images import RowImages
from instructrec_jax.data.batch import Batch, Rows, Text
from instructrec_jax.data.media.media_reader import MediaReader
from instructrec_jax.data.media.picture import Picture
from instructrec_jax.data.media.text_images import TextImages

TOKENS = 1024  # of a batch, per data-parallel device


@dataclass(frozen=True)
class _Row:
    """A row's tokens, segments, positions, types and places of images; those of its target; its images."""

    columns: Sequence[np.ndarray]
    target: Sequence[np.ndarray] = ()
    pictures: Sequence[Picture] = ()


def full_rows(texts: Sequence[Text], length: int, shards: int, *, apart: bool = False) -> list[Batch]:
    """Batches of full rows.

    Texts follow each other; one that does not fit ends at the end of its row. With targets a row has one text and its
    target, both cut, or repeated, to fill it. Texts are repeated to fill the last batch.

    Of images (or sounds) without words a row has one. Where they stand between words, rows hold the longest text, and
    a row with fewer images than another gets some of its batch again, which none of its tokens stands for.

    Args:
      length: tokens of a row.
      shards: the number of rows of a batch is a multiple of this.
      apart: words and images are read by two networks, so they have batches of their own (CLIP).
    """
    if apart:
        parts = ([*_words(texts)], [text for each in texts for text in _singly(each)])
        return [batch for part in parts if part for batch in full_rows(part, length, shards)]
    alone = all(text.images is not None and (text.images.places >= 0).all() for text in texts)
    read = next((text.images.read for text in texts if text.images is not None), None)
    size, target = length, length
    if alone and read is not None:
        texts = [one for text in texts for one in _singly(text)]
        length, size = read.vectors, read.tokens
        target = max(0 if text.target is None else len(text.target) for text in texts)
    elif read is not None:
        length = size = max(length, *(len(text.tokens) for text in texts))
    single = alone or texts[0].target is not None
    total = len(texts) if single else -(-sum(len(text.tokens) for text in texts) // length)
    rows = shards * min(max(1, TOKENS // size), -(-total // shards))
    count = rows * -(-total // rows)
    several = (texts[i % len(texts)] for i in range(count))
    laid = [_row_of_one(text, length, target) for text in several] if single else _rows(texts, length, count)
    room = max(len(row.pictures) for row in laid)
    return [_batch(laid[i : i + rows], room, read) for i in range(0, count, rows)]


def _words(texts: Sequence[Text]) -> Iterator[Text]:
    """The words of texts with images."""
    for text in texts:
        words = text.tokens if text.images is None else text.tokens[text.images.places < 0]
        if len(words):
            yield Text(words)


def _singly(text: Text) -> Iterator[Text]:
    """A text without words for each image of one."""
    if (images := text.images) is None:
        return
    tokens = text.tokens[images.places >= 0][: images.vectors] if images.pictures else text.tokens[:0]
    for picture in images.pictures:
        yield replace(text, tokens=tokens, types=None, images=TextImages.alone([picture], images.read))


def _rows(texts: Sequence[Text], length: int, count: int) -> list[_Row]:
    laid, number = [], 0
    for _ in range(count):
        columns: list[list[int]] = [[], [], [], [], []]
        pictures: list[Picture] = []
        segment = 0
        while len(columns[0]) < length:
            text, segment = texts[number % len(texts)], segment + 1
            size = min(len(text.tokens), length - len(columns[0]))
            types = np.zeros(size, int) if text.types is None else text.types[:size]
            places = np.full(size, -1)
            if (images := text.images) is not None and images.pictures:
                places = np.where(images.places < 0, -1, images.places + len(pictures) * images.vectors)[:size]
                pictures += images.pictures
            new = (text.tokens[:size], np.full(size, segment), np.arange(size), types, places)
            for column, values in zip(columns, new, strict=True):
                column.extend(values.tolist())
            number += 1
        laid.append(_Row([np.array(column) for column in columns], pictures=pictures))
    return laid


def _row_of_one(text: Text, length: int, target: int) -> _Row:
    def side(tokens: np.ndarray, length: int) -> list[np.ndarray]:
        return [np.resize(tokens, length), np.ones(length), np.arange(length)]

    pictures = () if text.images is None else text.images.pictures
    places = np.full(length, -1) if text.images is None else text.images.places
    of_target = () if text.target is None else side(text.target, target)
    return _Row([*side(text.tokens, length), np.zeros(length), places], of_target, pictures)


def _batch(rows: Sequence[_Row], room: int, read: MediaReader | None) -> Batch:
    """room: images of a row."""

    def stacked(sides: Sequence[Sequence[np.ndarray]]) -> list[np.ndarray]:
        return [np.stack(column).astype(np.int32) for column in zip(*sides, strict=True)]

    tokens, segments, positions, types, places = stacked([row.columns for row in rows])
    targets = Rows(*stacked([row.target for row in rows])) if rows[0].target else None
    numbers = np.zeros((len(tokens), 1), np.int32)
    every = [picture for row in rows for picture in row.pictures]
    images = None
    if read is not None and every:
        pixels = np.zeros((len(rows), room, *read.shape), np.float32)
        slots = [(row, place) for row in range(len(rows)) for place in range(room)]
        own = [rows[row].pictures for row, _ in slots]
        again = [every[number % len(every)] for number in range(len(slots))]
        chosen = [
            mine[place] if place < len(mine) else other
            for (_, place), mine, other in zip(slots, own, again, strict=True)
        ]
        read.into(pixels, slots, chosen)
        images = RowImages(pixels, places)
    return Batch(Rows(tokens, segments, positions), types, numbers, targets, None, images)
