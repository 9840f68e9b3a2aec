"""Images lie in the row of their text, at its tokens."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from instructrec_jax.data.batch import BatchTexts, Text, lay_out
from instructrec_jax.data.loader import ImageCounts, Loader, OwnRows
from instructrec_jax.data.media.picture import picture
from instructrec_jax.data.media.text_images import TextImages, image_tokens, images_per_row
from instructrec_jax.data.packing import Plan, fit, unpacked


class Numbered:
    """Pixels that are the picture's number."""

    shape, tokens = (2, 3, 1), 7

    def into(self, pixels: np.ndarray, slots: Sequence[tuple[int, int]], pictures: Sequence[Any]) -> None:
        for slot, each in zip(slots, pictures, strict=True):
            pixels[slot] = int(each.data)


READ: Any = Numbered()


def text(length: int, numbers: Sequence[int], vectors: int = 1, first: int = 0) -> Text:
    """A text with images of some vectors each, one after another from token `first` on."""
    if not numbers:
        return Text(np.ones(length, np.int32))
    places = np.full(length, -1, np.int32)
    count = len(numbers) * vectors
    places[first : first + count] = np.arange(count)
    pictures = [picture(str(number).encode()) for number in numbers]
    return Text(np.ones(length, np.int32), images=TextImages(pictures, places, READ))


def seen(batch: Any, vectors: int) -> dict[tuple[int, int, int], tuple[int, int]]:
    """(text, position) -> (number of the image, vector) at every token that has one."""
    found, images = {}, batch.images
    for row, column in zip(*np.nonzero(images.places >= 0), strict=True):
        k, v = divmod(int(images.places[row, column]), vectors)
        segment = batch.texts.segment_ids[row, column]
        assert segment > 0
        key = (int(batch.text_numbers[row, segment - 1]), int(batch.texts.positions[row, column]))
        found[key] = (int(images.pixels[row, k, 0, 0, 0]), v)
    return found


@pytest.mark.parametrize("vectors", [1, 4])
def test_packed_as_unpacked(vectors: int) -> None:
    texts = [
        text(10, [5], vectors),
        text(5, []),
        text(14, [6, 7], vectors, 2),
        text(13, [8, 9, 10], vectors, 1),
    ]
    lengths = np.array([len(each.tokens) for each in texts])
    plain = lay_out(BatchTexts(texts, None), unpacked(lengths, 16))
    assert plain.images is not None and plain.images.pixels.shape == (4, 3, 2, 3, 1)
    packed = lay_out(BatchTexts(texts, None), fit(lengths, 64))
    assert packed.images is not None and packed.images.pixels.shape == (1, 6, 2, 3, 1)
    assert seen(packed, vectors) == seen(plain, vectors) and len(seen(plain, vectors)) == 6 * vectors
    assert packed.images.places.dtype == np.int32 and packed.images.pixels.dtype == np.float32


def test_a_batch_without_images_has_none() -> None:
    batch = lay_out(BatchTexts([text(3, []), text(4, [])], None), unpacked(np.array([3, 4]), 8))
    assert batch.images is None and batch.without_own.images is None


def test_few_sizes() -> None:
    counts = [images_per_row(np.zeros(1, int), np.array([count])) for count in range(14)]
    assert counts == [0, 1, 2, 3, 4, 6, 6, 8, 8, 12, 12, 12, 12, 16]
    assert images_per_row(np.array([0, 1, 0]), np.array([1, 2, 3])) == 4
    texts = [text(3, [1, 2]).images, None, text(3, [3, 4, 5]).images]
    assert image_tokens(texts, np.array([0, 0, 1])) == 3 * 7 and image_tokens([None], np.zeros(1, int)) == 0


def test_processes_agree_on_the_room_whatever_their_own_rows_hold() -> None:
    """Each makes the rows of its devices; together they are the batch of one process."""
    texts = [text(9, [1]), text(9, []), text(9, [2, 3, 4]), text(9, []), text(9, [5, 6])]
    images = ImageCounts(np.array([1, 0, 3, 0, 2]), READ.shape)

    def loader(rows: Any) -> Loader:
        own = OwnRows([np.full(5, 9)], lambda count: rows(np.arange(count)), images)
        gather = lambda indices, rng: BatchTexts([texts[i] for i in indices], None)  # noqa: E731
        return Loader(lambda epoch: np.arange(5), gather, 5, (16,), 1, 0, own=own)

    whole, first, second = (
        loader(rows).batch(0).batch.images for rows in (lambda r: r >= 0, lambda r: r % 2 == 0, lambda r: r % 2 == 1)
    )
    assert whole is not None and first is not None and second is not None
    for name, absent in (("pixels", 0), ("places", -1)):
        one, other = getattr(first, name), getattr(second, name)
        assert one.shape == other.shape == getattr(whole, name).shape
        assert np.array_equal(np.where(one == absent, other, one), getattr(whole, name))


def test_rows_without_an_image_have_room_where_the_plan_says_so() -> None:
    zeros = np.zeros(1, int)
    plan = Plan(2, 8, zeros, zeros + 1, zeros, images=(2, 2, 3, 1))
    batch = lay_out(BatchTexts([text(5, [])], None), plan)
    assert batch.images is not None and batch.images.pixels.shape == (2, 2, 2, 3, 1)
    assert not batch.images.pixels.any() and (batch.images.places == -1).all()
