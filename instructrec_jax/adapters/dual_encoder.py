"""The dual-encoder head: one vector per text, compared by cosine similarity."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from instructrec_jax.adapters.heads import pool_segments
from instructrec_jax.arrays import Array

MAX_SCALE = 100.0  # maximum scale of the logits, as in CLIP (Radford et al., 2021), so that training stays stable


class RetrievalHead(nnx.Module):
    """Pooling, linear projection and normalization to unit length; also holds the temperature of the softmax.

    A square projection is initialized as the identity, so that an untuned model equals the pretrained one.

    Args:
      hidden_size: width of the backbone's hidden states.
      projection_size: width of the vectors; None omits the projection.
      pooling: pooling mode, see `pool_segments`.
      temperature: initial temperature; it is trained.
      dtype: of the projection's product.

    Raises:
      ValueError: a temperature below 0.01.
    """

    def __init__(
        self,
        hidden_size: int,
        projection_size: int | None,
        *,
        pooling: str,
        temperature: float,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ):
        if projection_size is None:
            self.projection = None
        else:
            square = projection_size == hidden_size
            shape = (hidden_size, projection_size)
            start = nnx.initializers.orthogonal()(rngs.params(), shape)
            self.projection = nnx.Param(jnp.eye(hidden_size) if square else start, axes=("embed", None))
        self.log_temperature = log_temperature(temperature)
        self.pooling = pooling
        self.dtype = dtype

    def __call__(self, hidden: jax.Array, segment_ids: Array, max_segments: int) -> jax.Array:
        """hidden [rows, length, hidden] -> float32 unit vectors [rows, segments, vector]; zeros for absent segments."""
        pooled = pool_segments(hidden, segment_ids, self.pooling, max_segments)
        if self.projection is not None:
            pooled = pooled.astype(self.dtype) @ self.projection[...].astype(self.dtype)
        return unit_length(pooled.astype(jnp.float32))

    def scale(self) -> jax.Array:
        """Scale of the cosines: 1 / temperature, at most 100."""
        return capped_scale(-self.log_temperature[...])


def log_temperature(temperature: float) -> nnx.Param[jax.Array]:
    """The trained temperature of a softmax. Raises ValueError for one below 0.01."""
    if not 1 / MAX_SCALE <= temperature:
        raise ValueError(f"task.temperature must be at least {1 / MAX_SCALE}, but is {temperature}.")
    return nnx.Param(jnp.log(jnp.float32(temperature)), axes=())


def capped_scale(log_scale: jax.Array) -> jax.Array:
    """exp(log_scale), at most 100.

    Beyond the cap the gradient is that at the cap, so that the scale can return. (CLIP clips the parameter after each
    update for the same purpose.)
    """
    beyond = jax.lax.stop_gradient(jnp.maximum(log_scale - np.log(MAX_SCALE), 0.0))
    return jnp.exp(log_scale - beyond)


def unit_length(x: jax.Array) -> jax.Array:
    """x / |x| over the last axis; zero with a finite gradient where |x| is (almost) zero."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), -1, keepdims=True), 1e-12))
