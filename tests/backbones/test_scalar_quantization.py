"""Finite scalar quantization, compared with a reference in NumPy's float64."""

from itertools import product
from math import prod

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from instructrec_jax.backbones.scalar_quantization import MARGIN, bounded, codes_of, indices_of, quantized, scaled

LEVELS = [[8, 5, 5, 5], [3, 3, 4], [3], [4, 7]]


def reference(x: np.ndarray, levels: list[int]) -> np.ndarray:
    """bounded(x), number by number."""
    found = np.empty_like(x)
    for n, count in enumerate(levels):
        half = (count - 1) * (1 - MARGIN) / 2
        offset = 0.5 if count % 2 == 0 else 0.0
        found[..., n] = np.tanh(x[..., n] + np.arctanh(offset / half)) * half - offset
    return found


@pytest.mark.parametrize("levels", LEVELS)
def test_numbers_are_rounded_as_in_the_reference(levels: list[int]) -> None:
    x = np.random.default_rng(0).normal(0, 2, (200, len(levels)))
    expected = reference(x, levels)
    assert np.allclose(bounded(jnp.asarray(x, jnp.float32), levels), expected, atol=1e-5)
    clear = np.abs(expected - np.floor(expected) - 0.5) > 1e-4  # float32 may round the others to the other side
    found = np.asarray(quantized(jnp.asarray(x, jnp.float32), levels))
    assert np.allclose(found[clear], np.round(expected)[clear], atol=1e-6)
    assert np.allclose(quantized(jnp.zeros((1, len(levels))), levels), 0, atol=1e-6)


@pytest.mark.parametrize("levels", LEVELS)
def test_every_number_reaches_its_levels_and_no_other(levels: list[int]) -> None:
    ends = np.stack(np.broadcast_arrays(*[np.linspace(-50, 50, 20_001)] * len(levels)), -1)
    found = np.round(np.asarray(quantized(jnp.asarray(ends, jnp.float32), levels)))
    for n, count in enumerate(levels):
        assert np.unique(found[:, n]).tolist() == [value - count // 2 for value in range(count)]


@pytest.mark.parametrize("levels", LEVELS)
def test_codes_and_indices_are_one_to_one(levels: list[int]) -> None:
    every = np.array(list(product(*(range(count) for count in levels))), np.float32) - np.array(levels) // 2
    indices = np.asarray(indices_of(jnp.asarray(every), levels))
    assert sorted(indices.tolist()) == list(range(prod(levels)))
    assert np.array_equal(codes_of(indices, levels), every)
    one = sum(
        int(digit + count // 2) * prod(levels[:n])
        for n, (digit, count) in enumerate(zip(every[7 % len(every)], levels, strict=True))
    )
    assert indices[7 % len(every)] == one
    assert np.abs(scaled(jnp.asarray(every), levels)).max() <= 1


def test_gradients_pass_the_rounding() -> None:
    levels, x = [8, 5], jnp.asarray(np.random.default_rng(1).normal(size=(9, 2)), jnp.float32)
    weights = jnp.asarray(np.random.default_rng(2).normal(size=(9, 2)), jnp.float32)
    found = jax.grad(lambda x: jnp.sum(weights * quantized(x, levels)))(x)
    expected = jax.grad(lambda x: jnp.sum(weights * bounded(x, levels)))(x)
    assert np.allclose(found, expected) and np.abs(found).min() > 0
