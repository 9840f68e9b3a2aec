"""Pairs of an image and a text network: texts, their ends, and packed rows."""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from flax import nnx

from instructrec_jax.backbones.image_text import ImageText
from instructrec_jax.backbones.reading import load_backbone

END = 60  # eos_token_id of the tiny CLIP


@pytest.fixture(scope="module")
def clip(make_checkpoint: Callable[..., Path]) -> ImageText:
    module = load_backbone(make_checkpoint("clip"), rngs=nnx.Rngs(0), images=True).module
    assert isinstance(module, ImageText)
    return module


def row(*tokens: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    ids = jnp.asarray([tokens])
    return ids, jnp.ones_like(ids), jnp.arange(len(tokens))[None]


def test_a_text_without_its_end_has_no_vector(clip: ImageText) -> None:
    with pytest.raises(ValueError, match=f"text 0 has no token {END}.*eos_token_id"):
        clip.embed_texts(*row(3, 4, 5))
    inside_jit = nnx.jit(lambda module, *inputs: module.embed_texts(*inputs))(clip, *row(3, 4, 5))
    assert np.isnan(inside_jit).all()


def test_what_follows_the_end_changes_nothing(clip: ImageText) -> None:
    one, more = clip.embed_texts(*row(3, 4, END)), clip.embed_texts(*row(3, 4, END, END, 7))
    np.testing.assert_allclose(one, more, rtol=0, atol=1e-6)


def test_texts_of_one_row_do_not_see_each_other(clip: ImageText) -> None:
    tokens, segments, positions = row(3, 4, END, 9, END)
    packed = clip.text(tokens, jnp.asarray([[1, 1, 1, 2, 2]]), jnp.asarray([[0, 1, 2, 0, 1]]))
    np.testing.assert_allclose(packed[:, 3:], clip.text(*row(9, END)), rtol=0, atol=1e-6)
    np.testing.assert_allclose(packed[:, :3], clip.text(*row(3, 4, END)), rtol=0, atol=1e-6)


def test_too_long_a_text_names_both_numbers(clip: ImageText) -> None:
    with pytest.raises(ValueError, match="12 .*11"):
        clip.embed_texts(*row(*range(12)))


def test_new_networks_start_with_the_scale_of_the_config() -> None:
    sizes = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    config = transformers.CLIPConfig(
        text_config=sizes | dict(vocab_size=9), vision_config=sizes | dict(image_size=6, patch_size=3)
    )
    from instructrec_jax.backbones.reading import build_backbone

    module = build_backbone(config, rngs=nnx.Rngs(0))
    assert isinstance(module, ImageText) and float(module.log_factor[...]) == pytest.approx(2.6592)
