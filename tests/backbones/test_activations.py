"""Activations against transformers, in fp32 and bfloat16."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.activations import ACT2FN

from instructrec_jax.backbones import layers


@pytest.mark.parametrize("name", sorted(layers.ACTIVATIONS))
def test_activations_are_those_of_transformers(name):
    x = np.concatenate([np.linspace(-12, 12, 401), [0.0]]).astype(np.float32)
    expected = ACT2FN[name](torch.tensor(x)).numpy()
    np.testing.assert_allclose(layers.activation(name)(jnp.asarray(x)), expected, atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("name", sorted(layers.ACTIVATIONS))
def test_activations_and_their_slopes_in_bfloat16_are_rounded_once(name):
    """Against fp32 at the same (bfloat16) arguments: half a unit in the last of eight bits."""
    x = jnp.asarray(np.linspace(-6, 6, 601), jnp.bfloat16)
    x = x[(jnp.abs(x) % 3 != 0)]  # where some have two slopes

    def both(x):
        return jax.vmap(jax.value_and_grad(lambda one: layers.activation(name)(one)))(x)

    for found, expected in zip(both(x), both(x.astype(jnp.float32)), strict=True):
        assert found.dtype == jnp.bfloat16
        np.testing.assert_allclose(found.astype(jnp.float32), expected, rtol=2**-8, atol=1e-6)


def test_unknown_activation_is_named():
    with pytest.raises(ValueError, match="'xielu'"):
        layers.activation("xielu")
