"""Images of rows: the network's vector of each at its token, wherever it lies."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_pictures import image_network

from instructrec_jax.backbones.layers import dropout_keys
from instructrec_jax.backbones.reading import load_backbone
from instructrec_jax.backbones.row_images import RowImages

PIXELS = np.random.default_rng(0).normal(size=(3, 16, 16, 3)).astype(np.float32)


def in_rows(rows: list[list[int]]) -> RowImages:
    """Images by number, each at the token after a token without one."""
    pixels = np.zeros((len(rows), max(map(len, rows)), 16, 16, 3), np.float32)
    places = np.full((len(rows), 8), -1, np.int32)
    for row, numbers in enumerate(rows):
        for k, number in enumerate(numbers):
            pixels[row, k] = PIXELS[number]
            places[row, 1 + k] = k
    return RowImages(pixels, places)


def test_it_is_a_tree_of_arrays_along_the_rows() -> None:
    images = in_rows([[0], [1, 2]])
    assert [x.shape[0] for x in jax.tree.leaves(images)] == [2, 2]


@pytest.mark.parametrize("kind", ["vit", "dinov2", "clip", "siglip"])
def test_vectors_stand_at_the_tokens_of_their_images(kind: str, tmp_path: Path) -> None:
    folder = image_network(kind, tmp_path)
    module = load_backbone(folder, images=True, tower=True, rngs=nnx.Rngs(0)).module
    assert module.image_vectors == 1
    expected = module.vectors(module(jnp.asarray(PIXELS)))
    found = module.read_rows(in_rows([[2], [0, 1]]))
    assert found.shape == (2, 8, 64 if kind == "dinov2" else 32)
    assert np.allclose(found[0, 1], expected[2], atol=1e-5) and np.allclose(found[1, 1:3], expected[:2], atol=1e-5)
    assert not found[0, 2:].any() and not found[:, 0].any()


def test_dropout_belongs_to_the_image(tmp_path: Path) -> None:
    """Of one text it is the same beside others in its row; of another text it is another one."""
    module = load_backbone(image_network("vit", tmp_path), images=True, rngs=nnx.Rngs(0)).module

    def read(rows: list[list[int]], numbers: list[list[int]]) -> jax.Array:
        token_numbers = np.zeros((len(rows), 8), np.int32)
        for row, own in enumerate(numbers):
            token_numbers[row, 1 : 1 + len(own)] = own
        keys = dropout_keys(jnp.uint32(1), token_numbers, np.zeros((len(rows), 8), np.int32))
        return module.read_rows(in_rows(rows), dropout=keys)

    alone, beside = read([[0]], [[5]])[0, 1], read([[1, 0], [2]], [[4, 5], [6]])[0, 2]
    assert np.allclose(alone, beside, atol=1e-5)
    assert not np.allclose(alone, read([[0]], [[6]])[0, 1], atol=1e-2)
