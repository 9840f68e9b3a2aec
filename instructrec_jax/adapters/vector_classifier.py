"""A linear classifier on unit vectors of texts, for heads that are fitted on frozen vectors."""

import jax
import jax.numpy as jnp
from flax import nnx

from instructrec_jax.adapters.dual_encoder import unit_length
from instructrec_jax.adapters.heads import pool_segments
from instructrec_jax.arrays import Array
from instructrec_jax.backbones.layers import Linear, normal


class VectorClassifier(nnx.Module):
    """Pooling, unit length and a linear layer, in float32.

    Args:
      hidden_size: width of the backbone's hidden states.
      outputs: number of labels.
      pooling: pooling mode, see `pool_segments`.
    """

    def __init__(self, hidden_size: int, outputs: int, *, pooling: str, rngs: nnx.Rngs):
        self.output = Linear(hidden_size, outputs, axes=("embed", None), init=normal(0.02), rngs=rngs)
        self.pooling = pooling

    def vectors(self, hidden: jax.Array, segment_ids: Array, max_segments: int) -> jax.Array:
        """hidden [rows, length, hidden] -> float32 unit vectors [rows, segments, hidden]; zeros for absent segments."""
        pooled = pool_segments(hidden, segment_ids, self.pooling, max_segments)
        return unit_length(pooled.astype(jnp.float32))

    def __call__(self, hidden: jax.Array, segment_ids: Array, max_segments: int) -> jax.Array:
        """hidden [rows, length, hidden] -> float32 logits [rows, segments, labels]."""
        return self.output(self.vectors(hidden, segment_ids, max_segments))
