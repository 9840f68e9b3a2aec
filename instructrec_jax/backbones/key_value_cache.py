"""The keys and values that a decoder keeps of the tokens it has read: floats, or int8 codes with their scales.

A cache of codes has "key" and "value" in int8 and, beside each, float32 scales "key_scale", "value_scale" with one
feature: one for each token and head. What a call attends to is what the codes stand for, its own tokens included, so a
prompt that is read in pieces gives the keys and values of one that is read at once.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from instructrec_jax.backbones.layers import Cache, Stack

SCALE = "_scale"


def empty_layers(
    layers: Stack, rows: int, shapes: Mapping[str, tuple[int, ...]], dtype: DTypeLike, *, codes: bool
) -> Cache:
    """Zeros for the keys and values of a stack.

    Args:
      shapes: by name, (slots, heads, head_dim).
      dtype: of the activations.
      codes: whether the cache holds int8 codes and scales; else it has the dtype of the activations.
    """
    if not codes:
        return layers.empty_cache(rows, shapes, dtype)
    scales = {f"{name}{SCALE}": (*shape[:-1], 1) for name, shape in shapes.items()}
    numbers, factors = layers.empty_cache(rows, shapes, jnp.int8), layers.empty_cache(rows, scales, jnp.float32)
    return {block: numbers[block] | factors[block] for block in numbers}


def stored(cache: Mapping[str, jax.Array], new: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """The entries that a layer's cache holds of new keys and values [rows, tokens, heads, head_dim], by name."""
    entries = dict(new)
    for name, values in new.items():
        if f"{name}{SCALE}" in cache:
            entries[name], entries[f"{name}{SCALE}"] = round_last(values.astype(jnp.float32))
    return entries


def read(entries: Mapping[str, jax.Array], dtype: DTypeLike) -> list[jax.Array]:
    """The keys and values that entries stand for, in their order, codes in `dtype`."""
    return [
        (values.astype(jnp.float32) * entries[f"{name}{SCALE}"]).astype(dtype)
        if f"{name}{SCALE}" in entries
        else values
        for name, values in entries.items()
        if not name.endswith(SCALE)
    ]


def extended(
    cache: Mapping[str, jax.Array], new: Mapping[str, jax.Array], index: jax.Array | int, length: int
) -> tuple[dict[str, jax.Array], list[jax.Array]]:
    """(what is to be written of new keys and values, all keys and values to attend to).

    Args:
      cache: of a layer, [rows, slots, heads, ...] by name.
      index, length: see `append`.
    """
    entries = stored(cache, new)
    whole = {name: append(cache[name], entry, index, length) for name, entry in entries.items()}
    return entries, read(whole, next(iter(new.values())).dtype)


def append(cache: jax.Array, new: jax.Array, index: jax.Array | int, length: int | None = None) -> jax.Array:
    """The cache [rows, capacity, ...] with `new` [rows, tokens, ...] written from slot `index`.

    With `index` int32 [rows], each row's single new token goes to its own slot, and only the first `length` slots are
    returned.
    """
    if not isinstance(index, int) and index.ndim == 1:
        if new.shape[1] != 1:
            raise ValueError(f"a cache with a slot per row takes one token at a time, but there are {new.shape[1]}.")
        cache = cache[:, :length]
        here = jnp.arange(cache.shape[1]) == index[:, None]
        return jnp.where(here.reshape(*here.shape, *[1] * (cache.ndim - 2)), new.astype(cache.dtype), cache)
    return jax.lax.dynamic_update_slice_in_dim(cache, new.astype(cache.dtype), index, axis=1)


def round_last(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """fp32 [..., features] -> (int8 [..., features], their scales fp32 [..., 1] = max |x| / 127).

    NaN stays in the scale.
    """
    scales = jnp.abs(x).max(-1, keepdims=True) / 127
    return jnp.round(x * (1 / jnp.where(scales == 0, 1, scales))).astype(jnp.int8), scales
