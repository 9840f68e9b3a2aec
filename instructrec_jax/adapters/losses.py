"""Losses of one target each, in float32: the sums and weights over a batch are the task's business."""

import jax
import jax.numpy as jnp
import optax


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """−log softmax(logits)[label]. logits [..., classes], labels int32 [...] -> [...]."""
    return optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels)


def binary_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean over the last axis of the sigmoid cross-entropy. logits and labels (0 or 1) [..., classes] -> [...]."""
    return optax.sigmoid_binary_cross_entropy(logits.astype(jnp.float32), labels.astype(jnp.float32)).mean(-1)


def squared_error(predictions: jax.Array, targets: jax.Array) -> jax.Array:
    """(ŷ − y)², elementwise."""
    return jnp.square(predictions.astype(jnp.float32) - targets.astype(jnp.float32))
