"""The dual-encoder head: one vector a text, compared by cosine."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from instructrec_jax.adapters.heads import pool_segments

MAX_SCALE = 100.0  # of the logits, as in CLIP (Radford et al., 2021), so that training cannot run away


class RetrievalHead(nnx.Module):
    """Pooling, a linear projection, unit length; and the temperature of the softmax over candidates.

    A square projection starts as the identity, so that an untuned model is the pretrained one.

    Args:
      hidden_size: width of the backbone's hidden states.
      projection_size: width of the vectors; None leaves the projection out.
      pooling: how hidden states become one vector a text: see `pool_segments`.
      temperature: initial temperature; it is trained.
    """

    def __init__(
        self,
        hidden_size: int,
        projection_size: int | None,
        *,
        pooling: str,
        temperature: float,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
    ):
        if not 1 / MAX_SCALE <= temperature:
            raise ValueError(f"task.temperature must be at least {1 / MAX_SCALE}, but is {temperature}.")
        if projection_size is None:
            self.projection = None
        else:
            square = projection_size == hidden_size
            shape = (hidden_size, projection_size)
            start = nnx.initializers.orthogonal()(rngs.params(), shape)
            self.projection = nnx.Param(jnp.eye(hidden_size) if square else start, axes=("embed", None))
        self.log_temperature = nnx.Param(jnp.log(jnp.float32(temperature)), axes=())
        self.pooling = pooling
        self.dtype = dtype

    def __call__(self, hidden: jax.Array, segment_ids: jax.Array, max_segments: int) -> jax.Array:
        """[rows, length, hidden] -> float32 [rows, segments, vector] of unit length (absent segments: zeros)."""
        pooled = pool_segments(hidden, segment_ids, self.pooling, max_segments)
        if self.projection is not None:
            pooled = pooled.astype(self.dtype) @ self.projection[...].astype(self.dtype)
        return unit_length(pooled.astype(jnp.float32))

    def scale(self) -> jax.Array:
        """What cosines are multiplied by: 1 / temperature, at most 100.

        The gradient passes as if the temperature stood at the cap, so that one beyond it can come back. (CLIP clips the
        parameter after each update, to the same end.)
        """
        log_scale = -self.log_temperature[...]
        beyond = jax.lax.stop_gradient(jnp.maximum(log_scale - np.log(MAX_SCALE), 0.0))
        return jnp.exp(log_scale - beyond)


def unit_length(x: jax.Array) -> jax.Array:
    """x / |x| over the last axis; zero where |x| is (almost) zero, with a finite gradient there."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), -1, keepdims=True), 1e-12))
