"""Attention: the entry point, which chooses a kernel for the device; and attention without a softmax."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from instructrec_jax.backbones import attention_kernels as kernels
from instructrec_jax.backbones.layers import DropoutKeys, attention_dropout_bits, keep_mask
from instructrec_jax.backbones.noted import noted

BRANCH = 1 << 16  # segment n · BRANCH + b is branch b of segment n · BRANCH: it also attends to that segment


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    segment_ids: jax.Array,
    positions: jax.Array,
    key_segment_ids: jax.Array | None = None,
    key_positions: jax.Array | None = None,
    groups: jax.Array | None = None,
    key_groups: jax.Array | None = None,
    bias: jax.Array | None = None,
    window: int | None = None,
    causal: bool = False,
    soft_cap: float | None = None,
    dropout_rate: float = 0.0,
    dropout_keys: DropoutKeys | None = None,
    scale: float | None = None,
    weights: nnx.Param[jax.Array] | None = None,
) -> jax.Array:
    """softmax(scale · q kᵀ + bias) v inside each segment, softmax in fp32.

    Args:
        q: [rows, queries, heads, head_dim], any float dtype.
        k, v: [rows, keys, key_heads, head_dim]; each key head serves heads / key_heads consecutive query heads
            (grouped-query attention, Ainslie et al., 2023).
        segment_ids: int32 [rows, queries]; a token attends only to its own segment (and to the segment of which it is a
            branch, see `BRANCH`); 0 is padding, which neither attends nor is attended to (its output is zero).
        positions: int32 [rows, queries], position in the segment; used by `window`, `causal` and dropout.
        key_segment_ids, key_positions: int32 [rows, keys], of keys other than the queries' own tokens (a cache or
            another text). With another text, `causal` and `window` must not be used.
        groups, key_groups: int32 [rows, queries] and [rows, keys], or None: tokens of one segment with the same number
            above 0 attend to each other whatever `causal` and `window` say (an image, a prompt). `key_groups` are the
            queries' own by default.
        bias: float [rows or 1, heads or 1, queries, keys] added to the scores, or None.
        window: maximum distance |query position - key position| (inclusive), or None for no limit.
        causal: a token attends to itself and earlier positions only.
        soft_cap: scores become soft_cap · tanh(scores / soft_cap) before the bias (Gemma 2).
        dropout_rate, dropout_keys: dropout of the probabilities; none if the keys are None.
        scale: factor on the scores; head_dim ** -0.5 by default.
        weights: zeros float32 [rows, queries, keys], or None: their gradient is the mean over heads of the softmax, see
            `noted`; then no other gradient passes.

    Returns: [rows, queries, heads, head_dim] in v's dtype.

    `attention_kernels.choose` chooses the kernel by devices and arguments; all kernels agree up to rounding.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    own = all(x is None or x is y for x, y in ((key_segment_ids, segment_ids), (key_positions, positions)))
    drops = dropout_keys is not None and dropout_rate > 0.0
    kernel = (
        "plain"
        if weights is not None
        else kernels.choose(q, own=own, bias=bias, dropout=drops, soft_cap=soft_cap, groups=groups is not None)
    )
    if kernel == "splash":
        return kernels.splash_attention(
            q, k, v, segment_ids, causal=causal, window=window, soft_cap=soft_cap, scale=scale
        )
    key_segment_ids = segment_ids if key_segment_ids is None else key_segment_ids
    key_positions = positions if key_positions is None else key_positions
    key_groups = groups if key_groups is None else key_groups
    if kernel == "cudnn":
        mask = _mask(segment_ids, positions, key_segment_ids, key_positions, groups, key_groups, window, causal)
        return kernels.cudnn_attention(q, k, v, mask[:, None], scale=scale)
    scoring = _Scoring(scale, window, causal, soft_cap, dropout_rate if drops else 0.0, weights)
    run: Callable[..., jax.Array] = functools.partial(_plain, scoring)
    keys = dropout_keys.tokens if drops and dropout_keys is not None else None
    by_query = None if bias is None else bias.transpose(0, 2, 1, 3)
    own_numbers = {"segment_ids": segment_ids, "positions": positions, "groups": groups}
    key_numbers = {"key_segment_ids": key_segment_ids, "key_positions": key_positions, "key_groups": key_groups}
    queries, rest = {"q": q, "keys": keys, "bias": by_query} | own_numbers, {"k": k, "v": v} | key_numbers
    return kernels.by_query_blocks(run, queries, rest) if kernel == "blocked" else run(**queries, **rest)


def pointwise_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    segment_ids: jax.Array,
    positions: jax.Array,
    count: int,
    bias: jax.Array | None = None,
    causal: bool = False,
) -> jax.Array:
    """silu(q kᵀ + bias) v / count inside each segment (HSTU; Zhai et al., 2024, equation 2), scores in fp32.

    Arguments as in `attention`; q, k and v [rows, length, heads, head_dim] have the same heads. Returns the same shape,
    in v's dtype.
    """
    mask = _mask(segment_ids, positions, segment_ids, positions, None, None, None, causal)[:, None]
    scores = jnp.einsum("blhd,bmhd->bhlm", q, k, preferred_element_type=jnp.float32)
    scores = scores if bias is None else scores + bias
    weights = jnp.where(mask, jax.nn.silu(scores), 0).astype(v.dtype)
    out = jnp.einsum("bhlm,bmhd->blhd", weights, v, preferred_element_type=jnp.float32)
    return (out / count).astype(v.dtype)


@dataclass(frozen=True)
class _Scoring:
    """From products of queries and keys to probabilities; the fields are arguments of `attention`."""

    scale: float
    window: int | None
    causal: bool
    soft_cap: float | None
    dropout_rate: float
    weights: nnx.Param[jax.Array] | None


def _plain(
    scoring: _Scoring,
    *,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segment_ids: jax.Array,
    positions: jax.Array,
    key_segment_ids: jax.Array,
    key_positions: jax.Array,
    groups: jax.Array | None,
    key_groups: jax.Array | None,
    bias: jax.Array | None,
    keys: jax.Array | None,
) -> jax.Array:
    """Computes all scores at once. `bias`: [rows or 1, queries, heads or 1, keys]; `keys`: uint32 [rows, queries]."""
    numbers = (segment_ids, positions, key_segment_ids, key_positions, groups, key_groups)
    mask = _mask(*numbers, scoring.window, scoring.causal)[:, None]
    rows, queries, heads, head_dim = q.shape
    key_count, key_heads = k.shape[1:3]

    # heads before length: batched products and their gradients are faster on CPU than in the given layout
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (q * scoring.scale, k, v))
    q = q.reshape(rows, key_heads, heads // key_heads * queries, head_dim)  # a group's queries side by side
    scores = jnp.einsum("bhld,bhmd->bhlm", q, k, preferred_element_type=jnp.float32)
    scores = scores.reshape(rows, heads, queries, key_count)
    if scoring.soft_cap is not None:
        scores = scoring.soft_cap * jnp.tanh(scores / scoring.soft_cap)
    if bias is not None:
        scores = scores + bias.transpose(0, 2, 1, 3).astype(jnp.float32)
    scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
    largest = jax.lax.stop_gradient(scores.max(-1, keepdims=True))
    weights = jnp.where(mask, jnp.exp(scores - largest), 0.0)  # rows of padding: all zero, no 0/0
    total = weights.sum(-1, keepdims=True)
    found = None if scoring.weights is None else (weights / jnp.where(total == 0.0, 1.0, total)).mean(1)
    if keys is not None:
        bits = attention_dropout_bits(DropoutKeys(keys), heads, key_positions)
        weights = jnp.where(keep_mask(bits, scoring.dropout_rate), weights / (1.0 - scoring.dropout_rate), 0.0)
    # dividing after the product takes head_dim divisions per query instead of one per key
    weights = weights.astype(v.dtype).reshape(rows, key_heads, -1, key_count)
    out = jnp.einsum("bhlm,bhmd->bhld", weights, v, preferred_element_type=jnp.float32)
    out = out.reshape(rows, heads, queries, head_dim) / jnp.where(total == 0.0, 1.0, total)
    if found is not None and scoring.weights is not None:
        out = noted(out, scoring.weights[...], jax.lax.stop_gradient(found))
    return out.transpose(0, 2, 1, 3).astype(v.dtype)


def _mask(
    segment_ids: jax.Array,
    positions: jax.Array,
    key_segment_ids: jax.Array,
    key_positions: jax.Array,
    groups: jax.Array | None,
    key_groups: jax.Array | None,
    window: int | None,
    causal: bool,
) -> jax.Array:
    """bool [rows, queries, keys]: whether a query attends to a key."""
    queries, keys, trunk = segment_ids[:, :, None], key_segment_ids[:, None, :], segment_ids // BRANCH * BRANCH
    mask = ((queries == keys) | (trunk[:, :, None] == keys)) & (keys != 0)
    together = jnp.zeros((), bool)
    if groups is not None and key_groups is not None:
        own, other = groups[:, :, None], key_groups[:, None, :]
        together = (queries == keys) & (keys != 0) & (own == other) & (own > 0)
    distance = positions[:, :, None] - key_positions[:, None, :]
    if window is not None:
        mask &= jnp.abs(distance) <= window
    if causal:
        mask &= distance >= 0
    return mask | together
