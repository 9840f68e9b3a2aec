"""Rows of calibration with pictures: nothing in them is padding, and statistics are those of the pictures."""

from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from tiny_pictures import png

from instructrec_jax.adapters.quantized import linears
from instructrec_jax.backbones.reading import load_backbone
from instructrec_jax.compression.calibration import gram, observe
from instructrec_jax.compression.calibration_rows import full_rows
from instructrec_jax.data.batch import Text
from instructrec_jax.data.media.picture import Picture
from instructrec_jax.data.media.pixels import PixelReader
from instructrec_jax.data.media.text_images import TextImages
from instructrec_jax.distributed.mesh import make_mesh
from instructrec_jax.distributed.mesh_config import MeshConfig
from instructrec_jax.runs.model import SplitModel
from instructrec_jax.tasks.base import Model

PICTURES = [Picture.of(png(number)) for number in range(5)]
WORD = 7


@pytest.fixture(scope="module")
def folder(image_networks: Any) -> Any:
    return image_networks["vit"]


def reader(folder: Any, vectors: int) -> PixelReader:
    return PixelReader.of(folder, 3, 5, vectors)


def between(pictures: list[Picture], words: int, read: PixelReader) -> Text:
    """A word, the tokens of the pictures, then the other words."""
    places = np.concatenate([[-1], np.arange(len(pictures) * read.vectors), np.full(words - 1, -1)]).astype(np.int32)
    return Text(np.where(places < 0, WORD, 1).astype(np.int32), images=TextImages(pictures, places, read))


def alone(pictures: list[Picture], read: PixelReader) -> Text:
    return Text(np.zeros(len(pictures) * read.vectors, np.int32), images=TextImages.alone(pictures, read))


def expected(pictures: list[Picture], read: PixelReader) -> set[bytes]:
    return {read(picture).tobytes() for picture in pictures}


def test_a_row_has_one_picture_without_words(folder: Any) -> None:
    read = reader(folder, 1)
    (batch,) = full_rows([alone(PICTURES[:2], read), alone(PICTURES[2:], read)], 16, 2)
    assert batch.images is not None
    assert batch.texts.tokens.shape == (6, 1) and (batch.texts.segment_ids == 1).all()
    assert batch.images.pixels.shape == (6, 1, 16, 16, 3) and (batch.images.places == 0).all()
    found = [each.tobytes() for each in np.asarray(batch.images.flat)]
    assert found == [read(PICTURES[n % 5]).tobytes() for n in range(6)], "the first one fills the last row"


def test_rows_with_words_are_full_and_so_is_their_room_for_pictures(folder: Any) -> None:
    read = reader(folder, 4)
    texts = [between(PICTURES[:2], 3, read), between(PICTURES[2:3], 2, read), Text(np.full(4, WORD, np.int32))]
    batches = full_rows(texts, 8, 1)
    for batch in batches:
        assert batch.images is not None
        assert batch.texts.tokens.shape[1] == 11, "the longest text"
        assert (batch.texts.segment_ids > 0).all()
        np.testing.assert_array_equal(batch.texts.tokens == WORD, batch.images.places < 0)
        for row, places in enumerate(batch.images.places):
            for place in np.unique(places[places >= 0] // 4):
                assert np.any(batch.images.pixels[row, place])
        assert {each.tobytes() for each in np.asarray(batch.images.flat)} <= expected(PICTURES[:3], read)
    first = batches[0].images
    assert first is not None
    np.testing.assert_array_equal(first.places[0], [-1, *range(8), -1, -1])
    np.testing.assert_array_equal(first.pixels[0, :2], [read(picture) for picture in PICTURES[:2]])


def test_words_and_pictures_of_two_networks_are_apart(folder: Any) -> None:
    read = reader(folder, 1)
    texts = [between(PICTURES[:1], 3, read), Text(np.full(5, WORD, np.int32)), alone(PICTURES[1:3], read)]
    words, pictures = full_rows(texts, 4, 1, apart=True)
    assert words.images is None and pictures.images is not None
    assert (words.texts.tokens == WORD).all() and words.texts.tokens.shape == (2, 4)
    assert {each.tobytes() for each in np.asarray(pictures.images.flat)} == expected(PICTURES[:3], read)


def test_sounds_keep_their_length_beside_their_targets(folder: Any) -> None:
    read = reader(folder, 4)
    texts = [
        Text(np.zeros(4, np.int32), target=np.arange(size), images=TextImages.alone([picture], read))
        for size, picture in ((2, PICTURES[0]), (3, PICTURES[1]))
    ]
    (batch,) = full_rows(texts, 16, 1)
    assert batch.targets is not None and batch.images is not None
    np.testing.assert_array_equal(batch.targets.tokens, [[0, 1, 0], [0, 1, 2]])
    assert batch.texts.tokens.shape == (2, 4) and batch.images.pixels.shape[:2] == (2, 1)


def test_statistics_are_those_of_the_pictures(folder: Any) -> None:
    """The Gram matrix of the first layer's inputs, against the normed patches of each picture, counted once."""
    backbone: Any = load_backbone(folder, rngs=nnx.Rngs(0), pooler=False, images=True).module
    graphdef, state = nnx.split(Model(backbone, nnx.Linear(1, 1, rngs=nnx.Rngs(0))))
    model = SplitModel(graphdef, nnx.to_pure_dict(state), {}, None, lambda path: False)  # type: ignore[arg-type]
    read = reader(folder, 1)
    batches = full_rows([alone(PICTURES[:2], read), alone(PICTURES[2:], read)], 16, 1)
    every = linears(backbone)
    place = next(n for n, each in enumerate(every) if each is backbone.layers.block0.attention.query)
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    found = observe(model, mesh, batches, {place: gram})[place]["gram"][0]
    (start,) = backbone.states(np.stack([read(picture) for picture in PICTURES]), [0])
    norm = backbone.layers.block0.attention_norm
    x = np.asarray(start, np.float64).reshape(-1, 32)
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + norm.eps)
    x = x * np.asarray(norm.scale[...][0]) + np.asarray(norm.bias[...][0])
    np.testing.assert_allclose(found, x.T @ x, rtol=1e-4, atol=1e-4)
