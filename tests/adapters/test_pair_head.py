"""The head of a pair: where vectors are read, where a new bias starts, and how large the factor becomes."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from instructrec_jax.adapters.pair_head import PairHead, PairVectorHead, start_for_sigmoid
from instructrec_jax.backbones.image_text import ImageText
from instructrec_jax.backbones.reading import load_backbone
from instructrec_jax.backbones.row_images import RowImages


def network(folder: Path) -> ImageText:
    module = load_backbone(folder, rngs=nnx.Rngs(0), images=True).module
    assert isinstance(module, ImageText)
    return module


def test_a_caption_is_read_at_its_last_word_and_an_image_at_its_token() -> None:
    hidden = jnp.asarray(np.random.default_rng(0).normal(size=(1, 6, 4)), jnp.float32)
    segments, places = jnp.asarray([[1, 1, 1, 2, 3, 3]]), jnp.asarray([[-1, -1, 0, 1, -1, -1]])
    images = RowImages(jnp.zeros((1, 2, 2, 2, 3)), places)
    found = PairHead(capped=True)(hidden, segments, images, 4)
    unit = hidden[0] / jnp.linalg.norm(hidden[0], axis=-1, keepdims=True)
    zero = np.zeros(4)
    expected = [[unit[1], unit[2]], [zero, unit[3]], [unit[5], zero], [zero, zero]]
    np.testing.assert_allclose(found[0], np.array(expected), atol=1e-6)
    alone = PairHead(capped=True)(hidden, segments, None, 4)
    np.testing.assert_allclose(alone[0, :3, 0], [unit[2], unit[3], unit[5]], atol=1e-6)


def test_one_vector_is_the_normalized_sum_of_what_is_there() -> None:
    hidden = jnp.asarray(np.random.default_rng(0).normal(size=(1, 4, 4)), jnp.float32)
    segments, places = jnp.asarray([[1, 1, 2, 3]]), jnp.asarray([[-1, 0, 1, -1]])
    head = PairVectorHead(temperature=0.1)
    found = head(hidden, segments, RowImages(jnp.zeros((1, 2, 2, 2, 3)), places), 4)
    unit = np.asarray(hidden[0] / jnp.linalg.norm(hidden[0], axis=-1, keepdims=True), np.float64)
    both = unit[0] + unit[1]
    expected = [both / np.linalg.norm(both), unit[2], unit[3], np.zeros(4)]
    np.testing.assert_allclose(found[0], np.array(expected), atol=1e-6)
    assert float(head.scale()) == pytest.approx(10)
    with pytest.raises(ValueError, match="task.temperature"):
        PairVectorHead(temperature=0.001)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_a_new_bias_says_how_rare_a_pair_is(kind: str, pair_networks: dict[str, Path]) -> None:
    module = network(pair_networks[f"{kind} pair"])
    head = start_for_sigmoid(module, 33)
    logits = head.logits(module, jnp.zeros((1, 4)), jnp.zeros((1, 4)))
    assert float(logits[0, 0]) == pytest.approx(-np.log(32))
    assert (head.bias is None) == (kind == "siglip")
    if kind == "siglip":
        assert float(head.scale(module)) == pytest.approx(10)


def test_the_factor_is_capped_for_softmax_only(pair_networks: dict[str, Path]) -> None:
    module = network(pair_networks["clip pair"])
    module.log_factor[...] = jnp.log(jnp.float32(500))
    assert float(PairHead(capped=True).scale(module)) == pytest.approx(100)
    assert float(PairHead(capped=False).scale(module)) == pytest.approx(500, rel=1e-5)
