"""The one door to attention: kernels for an accelerator are chosen behind it."""

import jax
import jax.numpy as jnp

from instructrec_jax.backbones.layers import DropoutKeys, attention_dropout_bits, keep_mask


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    segment_ids: jax.Array,
    positions: jax.Array,
    bias: jax.Array | None = None,
    window: int | None = None,
    causal: bool = False,
    dropout_rate: float = 0.0,
    dropout_keys: DropoutKeys | None = None,
    scale: float | None = None,
) -> jax.Array:
    """softmax(scale · q kᵀ + bias) v inside each segment, softmax in fp32.

    Args:
        q, k, v: [rows, length, heads, head_dim], any float dtype.
        segment_ids: int32 [rows, length]; a token sees the tokens of its own segment only; 0 is padding,
            which sees nothing and is seen by nothing (its output is zero).
        positions: int32 [rows, length], position inside the segment; used by `window`, `causal` and dropout.
        bias: float [rows or 1, heads or 1, length, length] added to the scores, or None.
        window: largest distance |position - position| that is seen (inclusive), or None for all.
        causal: a token sees itself and earlier positions only.
        dropout_rate, dropout_keys: dropout of the probabilities; off when the keys are None.
        scale: factor on the scores; head_dim ** -0.5 by default.

    Returns: [rows, length, heads, head_dim] in v's dtype.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    mask = _mask(segment_ids, positions, window, causal)[:, None]

    # heads before length: the batched products and their gradients run faster on CPU than in the given layout
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (q * scale, k, v))
    scores = jnp.einsum("bhld,bhmd->bhlm", q, k, preferred_element_type=jnp.float32)
    if bias is not None:
        scores = scores + bias.astype(jnp.float32)
    scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
    largest = jax.lax.stop_gradient(scores.max(-1, keepdims=True))
    weights = jnp.where(mask, jnp.exp(scores - largest), 0.0)  # rows of padding: all zero, no 0/0
    total = weights.sum(-1, keepdims=True)
    if dropout_keys is not None and dropout_rate > 0.0:
        bits = attention_dropout_bits(dropout_keys, q.shape[1], positions)
        weights = jnp.where(keep_mask(bits, dropout_rate), weights / (1.0 - dropout_rate), 0.0)
    # dividing after the product touches head_dim numbers a query instead of length
    out = jnp.einsum("bhlm,bhmd->bhld", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    out = out / jnp.where(total == 0.0, 1.0, total)
    return out.transpose(0, 2, 1, 3).astype(v.dtype)


def _mask(segment_ids: jax.Array, positions: jax.Array, window: int | None, causal: bool) -> jax.Array:
    """bool [rows, queries, keys]: which key a query sees."""
    mask = (segment_ids[:, :, None] == segment_ids[:, None, :]) & (segment_ids != 0)[:, None, :]
    distance = positions[:, :, None] - positions[:, None, :]
    if window is not None:
        mask &= jnp.abs(distance) <= window
    if causal:
        mask &= distance >= 0
    return mask
