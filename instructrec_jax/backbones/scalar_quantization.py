"""Finite scalar quantization (Mentzer et al., 2023, arXiv:2309.15505): a few numbers, each rounded to a few levels.

A code is a vector of whole numbers; there is no codebook to learn. Its index counts codes in mixed radix, the first
number fastest.
"""

from collections.abc import Sequence
from math import prod

import jax
import jax.numpy as jnp
import numpy as np

MARGIN = 1e-3  # keeps bounded numbers inside the outermost levels: rounding never leaves them


def bounded(x: jax.Array, levels: Sequence[int]) -> jax.Array:
    """x float [..., d] into the range of each number's levels, at least 3, before rounding; 0 stays 0.

    tanh(x + s) · h − o, with h = (L − 1)(1 − `MARGIN`) / 2, o = 1/2 for an even number L of levels and 0 for an odd
    one, and s = artanh(o / h): the paper's section 3 (the code in its appendix takes tan for artanh).
    """
    counts = np.asarray(levels)
    half = (counts - 1) * (1 - MARGIN) / 2
    offset = np.where(counts % 2 == 0, 0.5, 0.0)
    shift = np.arctanh(offset / half).astype(np.float32)
    return jnp.tanh(x + shift) * half.astype(np.float32) - offset.astype(np.float32)


def quantized(x: jax.Array, levels: Sequence[int]) -> jax.Array:
    """The code of x float [..., d], float of whole numbers from −⌊L / 2⌋; gradients pass the rounding unchanged."""
    within = bounded(x, levels)
    return within + jax.lax.stop_gradient(jnp.round(within) - within)


def scaled(code: jax.Array, levels: Sequence[int]) -> jax.Array:
    """A code's numbers from −1 to at most 1, as a network reads them."""
    return code / (np.asarray(levels) // 2).astype(np.float32)


def indices_of(code: jax.Array, levels: Sequence[int]) -> jax.Array:
    """int32 [...]: the index of each code [..., d], from 0 to the product of the levels less 1."""
    digits = jnp.round(code).astype(jnp.int32) + np.asarray(levels, np.int32) // 2
    return (digits * _places(levels)).sum(-1)


def codes_of(indices: jax.Array, levels: Sequence[int]) -> jax.Array:
    """float32 [..., d]: the code of each index, int [...]: the inverse of `indices_of`."""
    counts = np.asarray(levels, np.int32)
    digits = (jnp.asarray(indices)[..., None] // _places(levels)) % counts
    return (digits - counts // 2).astype(jnp.float32)


def _places(levels: Sequence[int]) -> np.ndarray:
    """int32 [d]: what each number counts for in an index."""
    return np.array([prod(levels[:number]) for number in range(len(levels))], np.int32)
