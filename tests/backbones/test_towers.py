"""The layers of image and text towers."""

from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx

from instructrec_jax.backbones.layers import WHOLE_STACK, dropout_keys
from instructrec_jax.backbones.reading import load_backbone
from instructrec_jax.backbones.towers import TextTower, TowerSpec

SPEC = TowerSpec(hidden_size=8, num_layers=3, num_heads=2, mlp_size=12, activation="gelu", eps=1e-5)
ROW = (jnp.asarray([[1, 2, 3]]), jnp.ones((1, 3), int), jnp.arange(3)[None])


def tower(**changes: object) -> TextTower:
    spec = TowerSpec(**(SPEC.__dict__ | changes))
    return TextTower(spec, vocab_size=9, num_positions=5, dtype=jnp.float32, stack=WHOLE_STACK, rngs=nnx.Rngs(0))


def test_layers_are_stored_as_one() -> None:
    assert tower().layers.block0.attention.query.kernel.shape == (3, 8, 8)


def test_a_layer_scale_of_zero_leaves_the_embeddings() -> None:
    module = tower(layer_scale=0.0)
    x = module.word_embeddings(ROW[0]) + module.position_embeddings(ROW[2])
    np.testing.assert_allclose(module(*ROW), module.final_norm(x), atol=1e-6)


@pytest.mark.parametrize("causal", [False, True])
def test_only_causal_towers_hide_what_follows(causal: bool) -> None:
    module = tower(causal=causal)
    other = module(jnp.asarray([[1, 2, 4]]), *ROW[1:])
    assert np.allclose(module(*ROW)[:, :2], other[:, :2], atol=1e-6) == causal


@pytest.mark.parametrize("kind", ["clip_text_model", "siglip_text_model"])
def test_the_vector_of_a_text_is_that_of_transformers(kind: str, make_checkpoint: Callable[..., Path]) -> None:
    """CLIP's at the token that ends the text, SigLIP's at the last one, through its linear layer."""
    folder = make_checkpoint(kind)
    cls = {"clip_text_model": transformers.CLIPTextModel, "siglip_text_model": transformers.SiglipTextModel}[kind]
    model = cls.from_pretrained(folder).eval()
    tokens = np.random.default_rng(0).integers(1, 59, (3, 11))
    tokens[:, -1] = 60
    with torch.no_grad():
        expected = model(torch.tensor(tokens)).pooler_output.numpy()
    module = load_backbone(folder, rngs=nnx.Rngs(0)).module
    hidden = module(jnp.asarray(tokens), jnp.ones((3, 11), int), jnp.broadcast_to(jnp.arange(11), (3, 11)))
    np.testing.assert_allclose(module.pool(hidden[:, -1]), expected, atol=2e-6)


def test_a_projection_alone_is_refused(make_checkpoint: Callable[..., Path]) -> None:
    folder = make_checkpoint("clip_text_model", "ModelWithProjection", projection_dim=20)
    with pytest.raises(ValueError, match="CLIPTextModelWithProjection.*folder of the pair"):
        load_backbone(folder, rngs=nnx.Rngs(0))


def test_dropout_needs_keys() -> None:
    module = tower(hidden_dropout=0.5)
    keys = dropout_keys(jnp.uint32(1), jnp.zeros((1, 3), jnp.uint32), ROW[2])
    assert not np.allclose(module(*ROW), module(*ROW, dropout=keys))


def test_heads_that_do_not_divide_the_width() -> None:
    with pytest.raises(ValueError, match="8.*attention heads, 3"):
        tower(num_heads=3)
