"""The components of all families: linear, embedding, norms, keyed dropout, and the scanned layer stack.

Parameters are fp32 `nnx.Param`s with `axes`, one logical axis name (or None) per dimension of a layer; activations are
computed in the module's `dtype`; norms and softmax are computed in fp32.
"""

import dataclasses
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Protocol, TypeVar, overload

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from instructrec_jax.arrays import Array
from instructrec_jax.backbones.activations import ACTIVATIONS as ACTIVATIONS
from instructrec_jax.backbones.activations import activation as activation
from instructrec_jax.backbones.blocks import Block, plan_blocks
from instructrec_jax.backbones.tables import Table
from instructrec_jax.distributed.mesh import constrain, is_split

Axes = tuple[str | None, ...]
Init = Callable[[jax.Array, tuple[int, ...]], jax.Array]


# ---------------------------------------------------------------- initializers


def normal(std: float) -> Init:
    """normal(0, std), HuggingFace's default for `initializer_range`."""
    return lambda key, shape: std * jax.random.normal(key, shape, jnp.float32)


def truncated_normal(std: float, cutoff: float) -> Init:
    """normal(0, std) truncated at ±cutoff·std, not rescaled (torch.nn.init.trunc_normal_)."""
    return lambda key, shape: std * jax.random.truncated_normal(key, -cutoff, cutoff, shape, jnp.float32)


# ---------------------------------------------------------------- layers with parameters


class Kernel(Protocol):
    """A module in place of a `Linear`'s kernel, which computes the product with x [..., in] itself."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __call__(self, x: jax.Array) -> jax.Array: ...


class Update(Protocol):
    """A module whose output for x [..., in] is added to a `Linear`'s."""

    def __call__(self, x: jax.Array, keys: "DropoutKeys | None") -> jax.Array: ...


class Linear(nnx.Module):
    """y = x W + b, with W stored [in, out].

    With `parts` > 1 the kernel is [in, parts, out] and the output [..., parts, out]: several projections that the
    checkpoint stores as one matrix (a fused QKV, the two halves of a GLU). They stay one parameter, so that LoRA finds
    HuggingFace's module, and each is sharded evenly over `out`.

    `adapters.lora` sets `lora` on a finished network; a call's `keys` are used only by LoRA's dropout. A module that
    computes the product itself may replace the kernel (`adapters.quantized`).
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        axes: Axes,
        init: Init,
        use_bias: bool = True,
        parts: int = 1,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        out = (out_features,) if parts == 1 else (parts, out_features)
        out_axes = axes[1:] if parts == 1 else (None, *axes[1:])
        kernel = nnx.Param(init(rngs.params(), (in_features, *out)), axes=(axes[0], *out_axes))
        self.kernel: nnx.Param[jax.Array] | Kernel = kernel
        self.bias = nnx.Param(jnp.zeros(out, jnp.float32), axes=out_axes) if use_bias else None
        self.lora: Update | None = nnx.data(None)
        self.dtype = dtype

    def __call__(self, x: jax.Array, keys: "DropoutKeys | None" = None) -> jax.Array:
        x = x.astype(self.dtype)
        if isinstance(self.kernel, nnx.Param):
            y = product(x, self.kernel[...].astype(self.dtype))
        else:
            y = self.kernel(x)
        if self.lora is not None:
            y = y + self.lora(x, keys)
        return y if self.bias is None else y + self.bias[...].astype(self.dtype)


def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """[..., in] times [in, ...out].

    Rows and length are merged, so that the kernel's gradient sums over one dimension: with two, XLA on CPU takes twice
    as long. They cannot be merged if devices split the length of rows.
    """
    if is_split("length"):
        return jnp.tensordot(x, kernel, axes=1)
    return jnp.tensordot(x.reshape(-1, x.shape[-1]), kernel, axes=1).reshape(*x.shape[:-1], *kernel.shape[1:])


class Embedding(nnx.Module):
    """A table [size, features]. An id outside the table gives NaN (instead of a clamped row).

    A call's `keys` are used only for their `shift`, which is added.
    """

    def __init__(
        self,
        size: int,
        features: int,
        *,
        init: Init,
        axes: Axes = ("vocab", "embed"),
        padding_id: int | None = None,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        table = init(rngs.params(), (size, features))
        if padding_id is not None:
            table = table.at[padding_id].set(0.0)
        self.table: nnx.Param[jax.Array] | Table = nnx.Param(table, axes=axes)
        self.dtype = dtype

    def __call__(self, ids: jax.Array, keys: "DropoutKeys | None" = None) -> jax.Array:
        if isinstance(self.table, nnx.Param):
            rows = jnp.take(self.table[...], ids, axis=0).astype(self.dtype)
        else:
            rows = self.table.rows(ids).astype(self.dtype)
        return rows if keys is None or keys.shift is None else rows + keys.shift.astype(self.dtype)


class LayerNorm(nnx.Module):
    """Layer normalization over the last axis, computed in fp32, returned in `dtype`."""

    def __init__(
        self,
        features: int,
        *,
        eps: float,
        use_bias: bool = True,
        use_scale: bool = True,
        axes: Axes = ("embed",),
        dtype: DTypeLike = jnp.float32,
    ):
        self.scale = nnx.Param(jnp.ones((features,), jnp.float32), axes=axes) if use_scale else None
        self.bias = nnx.Param(jnp.zeros((features,), jnp.float32), axes=axes) if use_bias else None
        self.eps = eps
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.astype(jnp.float32)
        x = x - x.mean(-1, keepdims=True)
        y = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + self.eps)
        y = y if self.scale is None else y * self.scale[...]
        return (y if self.bias is None else y + self.bias[...]).astype(self.dtype)


class RMSNorm(nnx.Module):
    """Root mean square normalization over the last axis (Zhang & Sennrich, 2019), in fp32, returned in `dtype`.

    The result's factor is `offset` + scale: with offset 1, weight decay pulls it to 1 (Gemma).
    """

    def __init__(
        self,
        features: int,
        *,
        eps: float,
        offset: float = 0.0,
        axes: Axes = ("embed",),
        dtype: DTypeLike = jnp.float32,
    ):
        self.scale = nnx.Param(jnp.full((features,), 1.0 - offset, jnp.float32), axes=axes)
        self.eps = eps
        self.offset = offset
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.astype(jnp.float32)
        y = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + self.eps)
        return (y * (self.offset + self.scale[...])).astype(self.dtype)


# ---------------------------------------------------------------- keyed dropout

_GOLDEN = np.uint32(0x9E3779B9)  # 2^32 / golden ratio, odd: the step of a Weyl sequence
_SITE = np.uint32(0x85EBCA6B)
_PARTS_SITE = 1 << 21  # of keys for parts of a token; no backbone, head or LoRA has this site


def _hash(x: jax.Array) -> jax.Array:
    """lowbias32, a bijection on uint32 (Chris Wellons, "Prospecting for Hash Functions", 2018)."""
    x = x ^ (x >> 16)
    x = x * np.uint32(0x7FEB352D)
    x = x ^ (x >> 15)
    x = x * np.uint32(0x846CA68B)
    return x ^ (x >> 16)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DropoutKeys:
    """uint32 keys [rows, length], one per token, made by `dropout_keys` from (seed, example, position).

    Random bits depend on these keys alone, so they do not change with the packing of examples into rows, with
    micro-batches or with devices. `target` has the keys of an encoder–decoder's target texts, `shift` float
    [rows, length, features] what is added to the word embeddings of the texts (`training.robust_training`).
    """

    tokens: jax.Array
    target: "DropoutKeys | None" = None
    shift: jax.Array | None = None

    def fold(self, site: int | jax.Array) -> "DropoutKeys":
        """Independent keys for one dropout site (first a layer number, then a site in the layer)."""
        return DropoutKeys(_hash(self.tokens + _SITE * (jnp.asarray(site).astype(jnp.uint32) + np.uint32(1))))

    def at(self, tokens: jax.Array) -> "DropoutKeys":
        """The dropout keys of some tokens of each row, int [rows, n]."""
        return DropoutKeys(jnp.take_along_axis(self.tokens, tokens, axis=1))

    def parts(self, count: int) -> "DropoutKeys":
        """Independent keys [rows * length, count] for parts of each token, such as the patches of an image."""
        own = self.fold(_PARTS_SITE).tokens.reshape(-1, 1)
        return DropoutKeys(_hash(own + _GOLDEN * jnp.arange(count, dtype=jnp.uint32)))


def dropout_keys(seed: jax.Array, example_numbers: Array, positions: Array) -> DropoutKeys:
    """Keys of a batch.

    Args:
        seed: uint32 scalar, different for each step.
        example_numbers: integer [rows, length], the global number of a token's example, modulo 2^32.
        positions: int32 [rows, length], the token's position in its example.
    """
    step = _hash(jnp.asarray(seed).astype(jnp.uint32) + _GOLDEN)
    example = _hash(step + _GOLDEN * example_numbers.astype(jnp.uint32))
    return DropoutKeys(_hash(example + _GOLDEN * positions.astype(jnp.uint32)))


def keep_mask(bits: jax.Array, rate: float) -> jax.Array:
    """bool mask, True with probability 1 - rate for values to keep, from uniform uint32 `bits`."""
    if not 0.0 <= rate < 1.0:
        raise ValueError(f"a dropout rate must be in [0, 1), but is {rate}.")
    return bits >= np.uint32(round(rate * 2**32))


def dropout(x: jax.Array, rate: float, keys: DropoutKeys | None) -> jax.Array:
    """Inverted dropout of x [rows, length, ...features]; the identity if `keys` is None or `rate` is 0."""
    if keys is None or rate == 0.0:
        return x
    keep = keep_mask(feature_bits(keys, x.shape[2:]), rate)
    return jnp.where(keep, x / (1.0 - rate), 0).astype(x.dtype)


def feature_bits(keys: DropoutKeys, shape: tuple[int, ...]) -> jax.Array:
    """uint32 bits [rows, length, *shape], one for each feature of each token."""
    features = jnp.arange(np.prod(shape, dtype=int), dtype=jnp.uint32).reshape(shape)
    tokens = keys.tokens.reshape(keys.tokens.shape + (1,) * features.ndim)
    return _hash(tokens + _GOLDEN * features)


def attention_dropout_bits(keys: DropoutKeys, heads: int, key_positions: jax.Array) -> jax.Array:
    """uint32 bits [rows, heads, queries, keys] from the query's dropout key, the head, and the key's position."""
    per_head = _hash(keys.tokens[:, None, :] + _SITE * jnp.arange(1, heads + 1, dtype=jnp.uint32)[:, None])
    return _hash(per_head[..., None] + _GOLDEN * key_positions.astype(jnp.uint32)[:, None, None, :])


def segment_keys(keys: DropoutKeys, segment_ids: jax.Array, max_segments: int) -> DropoutKeys:
    """Keys [rows, max_segments] for pooled vectors: the key of each segment's first token."""
    first = first_tokens(segment_ids, max_segments)
    return DropoutKeys(jnp.take_along_axis(keys.tokens, first, axis=1))


def first_tokens(segment_ids: Array, max_segments: int) -> jax.Array:
    """int32 [rows, max_segments]: index in the row of each segment's first token (0 for an absent segment)."""
    numbers = jnp.arange(1, max_segments + 1, dtype=segment_ids.dtype)
    return jnp.argmax(segment_ids[:, None, :] == numbers[:, None], axis=-1).astype(jnp.int32)


# ---------------------------------------------------------------- the stack of layers


def _all_but_attention(_: object, *inputs: object, **__: object) -> bool:
    """Policy that saves all but attention, where alone heads are a separate dimension: [rows, heads, length, ...]."""
    return all(getattr(x, "ndim", 0) < 4 for x in inputs)


REMAT_POLICIES: dict[str, Callable[..., bool] | None] = {
    "none": None,
    "attention": _all_but_attention,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "offload": jax.checkpoint_policies.offload_dot_with_no_batch_dims("device", "pinned_host"),
    "full": jax.checkpoint_policies.nothing_saveable,
}


@dataclasses.dataclass(frozen=True)
class StackOptions:
    """How the layers of a network are stored and run.

    Attributes:
        remat: gradient checkpointing policy, the activations that the backward pass recomputes. "none": no activations;
            "attention": those in attention (scores, probabilities); "dots": all but the outputs of matrix products;
            "offload": like "dots", with the saved activations in host memory; "full": all, from each layer's input.
        train_last: store the last N layers separately, so that the others can be frozen without gradients and moments.
            None: store all layers together.
    """

    remat: str = "none"
    train_last: int | None = None


WHOLE_STACK = StackOptions()
Cache = dict[str, dict[str, jax.Array]]
Kind = TypeVar("Kind", bound=Hashable)


class Stack(nnx.Module):
    """The layers of a network, stored stacked and run with `jax.lax.scan` over their repeating pattern.

    Args:
        kinds: one hashable value per layer; layers of equal kind have the same parameter shapes and the same code.
        make: builds one layer: `make(kind, rngs) -> nnx.Module`, called as `layer(x, context, dropout) -> x`, or, with
            a cache, as `layer(x, context, dropout, cache) -> (x, entries)`; see `__call__`.

    Parameter paths are `<block name>.<path in the layer>`, always with a leading "layers" axis; `locate(layer)` returns
    the block and the index in it. `__call__` folds the dropout keys by layer number + 1 (0 is for embeddings).
    """

    def __init__(
        self,
        kinds: Sequence[Kind],
        make: Callable[[Kind, nnx.Rngs], nnx.Module],
        *,
        options: StackOptions = WHOLE_STACK,
        rngs: nnx.Rngs,
    ):
        if options.remat not in REMAT_POLICIES:
            raise ValueError(f"unknown remat policy {options.remat!r}; choose from {', '.join(REMAT_POLICIES)}.")
        kinds = tuple(kinds)
        if not kinds:
            raise ValueError("a network needs at least one layer.")
        trained = len(kinds) if options.train_last is None else options.train_last
        if not 0 <= trained <= len(kinds):
            raise ValueError(
                f"backbone.train_last is {trained}, but must be from 0 to the network's {len(kinds)} layers."
            )
        self.num_layers = len(kinds)
        self.first_trained = len(kinds) - trained
        self.groups = plan_blocks(kinds, 0, self.first_trained) + plan_blocks(kinds, self.first_trained, len(kinds))
        self.remat = options.remat
        keys = jax.random.split(rngs.params(), len(kinds))
        for block in self.blocks:

            def build(
                key: jax.Array, kind: Kind = kinds[block.first]
            ) -> tuple[nnx.GraphDef[nnx.Module], nnx.State[Hashable, object]]:
                return nnx.split(make(kind, nnx.Rngs(params=key)))

            graphdef, state = jax.vmap(build)(keys[np.array(block.layers)])
            setattr(self, block.name, nnx.merge(graphdef, state))

    @property
    def blocks(self) -> tuple[Block, ...]:
        return tuple(block for group in self.groups for block in group)

    def locate(self, layer: int) -> tuple[str, int]:
        """(block name, index along its "layers" axis) of layer number `layer`."""
        for block in self.blocks:
            if layer in block.layers:
                return block.name, block.layers.index(layer)
        raise ValueError(f"there is no layer {layer}: the network has {self.num_layers} layers.")

    def empty_cache(self, rows: int, shapes: Mapping[str, tuple[int, ...]], dtype: DTypeLike) -> Cache:
        """Zeros [layers, rows, *shape] by block and name; the first axis of each shape is the slot."""
        return {
            block.name: {name: jnp.zeros((block.count, rows, *shape), dtype) for name, shape in shapes.items()}
            for block in self.blocks
        }

    @overload
    def __call__(self, x: jax.Array, context: object, dropout: DropoutKeys | None = None) -> jax.Array: ...
    @overload
    def __call__(
        self, x: jax.Array, context: object, dropout: DropoutKeys | None, cache: Cache, index: jax.Array | int
    ) -> tuple[jax.Array, Cache]: ...
    def __call__(
        self,
        x: jax.Array,
        context: object,
        dropout: DropoutKeys | None = None,
        cache: Cache | None = None,
        index: jax.Array | int = 0,
    ) -> jax.Array | tuple[jax.Array, Cache]:
        """Runs the layers. Returns x, or (x, cache) if there is a cache.

        With a cache, a layer gets its own cache, name -> [rows, slots, ...], and returns the entries of the call's
        tokens, name -> [rows, tokens, ...], which are written from slot `index`. Entries as long as the cache (such as
        those of a whole encoded text) replace it; names without new entries keep theirs.

        With `index` int32 [rows], each row's single token is written into its own slot, and nowhere if the slot is
        beyond the cache. The cache may then have more rows than the call; the call's are the first.
        """
        x = constrain(x, "batch", "length", None)
        for group in self.groups:
            x, updated = self._run(group, x, context, dropout, cache, index)
            cache = None if cache is None else cache | updated
        return x if cache is None else (x, cache)

    def _run(
        self,
        group: tuple[Block, ...],
        x: jax.Array,
        context: object,
        dropout: DropoutKeys | None,
        cache: Cache | None,
        index: jax.Array | int,
    ) -> tuple[jax.Array, Cache]:
        split = [nnx.split(getattr(self, block.name)) for block in group]
        caches = {} if cache is None else {block.name: cache[block.name] for block in group}

        def body(
            carry: tuple[jax.Array, Cache], inputs: tuple[jax.Array, list[nnx.State[Hashable, object]]]
        ) -> tuple[tuple[jax.Array, Cache], None]:
            (x, caches), (repeat, states) = carry, inputs
            for offset, (block, (graphdef, _), state) in enumerate(zip(group, split, states, strict=True)):
                layer_number = group[0].first + repeat * len(group) + offset
                keys = None if dropout is None else dropout.fold(layer_number + 1)
                layer = nnx.merge(graphdef, state)
                if not caches:
                    x = constrain(layer(x, context, keys), "batch", "length", None)
                    continue
                own = {name: c[repeat][: len(x)] for name, c in caches[block.name].items()}
                x, entries = layer(x, context, keys, own)
                # write only the new entries, so that the loop's carry is updated in place
                entries = {name: _after(x, e) for name, e in entries.items()}
                written = {name: _write(caches[block.name][name], e, repeat, index) for name, e in entries.items()}
                caches = caches | {block.name: caches[block.name] | written}
            return (x, caches), None

        if self.remat != "none":
            body = jax.checkpoint(body, prevent_cse=False, policy=REMAT_POLICIES[self.remat])
        repeats = jnp.arange(group[0].count)
        return jax.lax.scan(body, (x, caches), (repeats, [state for _, state in split]))[0]


def _after(x: jax.Array, entries: jax.Array) -> jax.Array:
    """The entries, made dependent on a layer's output x, so that they are written after the layer has read its cache.

    Without this order, XLA on CPU copies the whole cache in every layer to preserve the values being read.
    """
    some = x[:, :1, :1].reshape(len(x), *[1] * (entries.ndim - 1)).astype(entries.dtype)
    return jax.lax.clamp(entries, jnp.broadcast_to(some, entries.shape), entries)


def _write(cache: jax.Array, entries: jax.Array, layer: jax.Array, index: jax.Array | int) -> jax.Array:
    """Writes entries [rows, tokens, ...] of one layer into a cache [layers, rows, slots, ...], see `Stack.__call__`."""
    if jnp.ndim(index) == 1:
        return cache.at[layer, jnp.arange(len(entries)), index].set(entries[:, 0].astype(cache.dtype), mode="drop")
    place = 0 if entries.shape[1] == cache.shape[2] else index
    start = (layer, 0, place, *(0 for _ in entries.shape[2:]))
    return jax.lax.dynamic_update_slice(cache, entries[None].astype(cache.dtype), start)
