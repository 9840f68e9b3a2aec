"""Tables with one row for each token: of an `Embedding`, or of a head over the vocabulary."""

from typing import Protocol

import jax
import jax.numpy as jnp
from flax import nnx


class Table(Protocol):
    """A module in place of a table [size, features] (`adapters.quantized`)."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def dense(self) -> jax.Array:
        """The table as an array."""

    def rows(self, ids: jax.Array) -> jax.Array:
        """The rows [..., features] of int32 ids; NaN for an id outside the table."""

    def logits(self, x: jax.Array) -> jax.Array:
        """See `table_logits`."""


def dense_table(table: "nnx.Param[jax.Array] | Table") -> jax.Array:
    """The table as an array [size, features]."""
    return table[...] if isinstance(table, nnx.Param) else table.dense()


def table_logits(table: "nnx.Param[jax.Array] | Table", x: jax.Array) -> jax.Array:
    """x [..., features] times the table's transpose, in x's dtype: fp32 [..., size]."""
    if not isinstance(table, nnx.Param):
        return table.logits(x)
    return jnp.einsum("...h,vh->...v", x, table[...].astype(x.dtype), preferred_element_type=jnp.float32)
