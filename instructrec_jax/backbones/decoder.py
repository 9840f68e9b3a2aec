"""The pre-norm decoder of Llama, Mistral, Qwen and Gemma, each described by a `DecoderSpec`."""

from dataclasses import dataclass
from typing import TypedDict, Unpack, overload

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from instructrec_jax.backbones.attention import attention
from instructrec_jax.backbones.encoder import check_positions
from instructrec_jax.backbones.family import Backbone, refuse
from instructrec_jax.backbones.image_reader import ImageReader
from instructrec_jax.backbones.key_value_cache import append, empty_layers, extended
from instructrec_jax.backbones.layers import (
    Cache,
    DropoutKeys,
    Embedding,
    Linear,
    RMSNorm,
    Stack,
    StackOptions,
    activation,
    normal,
)
from instructrec_jax.backbones.rope import Rope, rotate, rotation
from instructrec_jax.backbones.row_images import RowImages, RowVectors
from instructrec_jax.hf_types import PretrainedConfig

GLOBAL, LOCAL = "full_attention", "sliding_attention"


@dataclass(frozen=True)
class DecoderSpec:
    """Sizes and variants of a `Decoder`."""

    vocab_size: int
    hidden_size: int
    layer_types: tuple[str, ...]  # per layer: GLOBAL, or LOCAL for a sliding window
    num_heads: int
    num_key_heads: int
    head_dim: int
    mlp_size: int
    activation: str
    eps: float
    max_length: int
    ropes: tuple[tuple[str, Rope], ...]  # by layer type
    window: int | None = None  # sliding window of LOCAL layers, in tokens including the query's own
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    query_key_norm: bool = False  # RMSNorm of each head's query and key
    norm_offset: float = 0.0  # see `RMSNorm`
    post_norms: bool = False  # additional norms of the outputs of attention and MLP, before the residual sum
    embedding_scale: float | None = None
    attention_scale: float | None = None  # None: head_dim ** -0.5
    attention_soft_cap: float | None = None
    attention_dropout: float = 0.0
    padding_id: int | None = None
    initializer_range: float = 0.02


class SpecFields(TypedDict, total=False):
    """The fields of a `DecoderSpec` that differ between families."""

    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    query_key_norm: bool
    norm_offset: float
    post_norms: bool
    embedding_scale: float | None
    attention_scale: float | None
    attention_soft_cap: float | None


def read_spec(
    config: PretrainedConfig,
    *,
    activation: str,
    ropes: dict[str, Rope],
    layer_types: tuple[str, ...] | None = None,
    **fields: Unpack[SpecFields],
) -> DecoderSpec:
    """The spec of a HuggingFace config, from the fields common to these families; `fields` gives the others.

    `layer_types` are the config's own if None.

    Raises ValueError for an inconsistent config, and for variants that are not implemented.
    """
    refuse(config, is_causal=True, is_heterogeneous=False, use_bidirectional_attention=False)
    layer_types = layer_types or tuple(config.layer_types)
    window = getattr(config, "sliding_window", None)
    unknown = set(layer_types) - {GLOBAL, LOCAL}
    if unknown or len(layer_types) != config.num_hidden_layers:
        raise ValueError(
            f"config.json: layer_types is {list(layer_types)}, but must have {config.num_hidden_layers} values out of "
            f"{GLOBAL!r} and {LOCAL!r}."
        )
    if LOCAL in layer_types and (window is None or window < 1):
        raise ValueError(f"config.json: sliding_window is {window!r}, but must be at least 1 for {LOCAL!r} layers.")
    heads, key_heads = config.num_attention_heads, config.num_key_value_heads
    if heads % key_heads:
        raise ValueError(
            f"config.json has {heads} attention heads, but needs a multiple of its key-value heads, {key_heads}."
        )
    return DecoderSpec(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        layer_types=layer_types,
        num_heads=heads,
        num_key_heads=key_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        mlp_size=config.intermediate_size,
        activation=activation,
        eps=config.rms_norm_eps,
        max_length=config.max_position_embeddings,
        ropes=tuple((kind, ropes[kind]) for kind in sorted(set(layer_types))),
        window=window,
        attention_dropout=config.attention_dropout or 0.0,
        padding_id=config.pad_token_id,
        initializer_range=config.initializer_range,
        **fields,
    )


# ---------------------------------------------------------------- the cache, also used by GPT-2


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Context:
    """The inputs of every layer besides the hidden states.

    `key_*` belong to the keys: the tokens of this call, or all slots of the cache, with this call's tokens starting at
    slot `index` (int32 [rows]: each row's token in its own slot). `rotations` are (cos, sin) by layer type. `groups`
    and `key_groups` are those of `attention`.
    """

    segment_ids: jax.Array
    positions: jax.Array
    key_segment_ids: jax.Array
    key_positions: jax.Array
    index: jax.Array | int
    rotations: dict[str, tuple[jax.Array, jax.Array]]
    groups: jax.Array | None = None
    key_groups: jax.Array | None = None


class DecoderCache(TypedDict):
    """The tokens that a decoder has read, see `Family`."""

    layers: Cache
    segment_ids: jax.Array  # int32 [rows, capacity]
    positions: jax.Array  # int32 [rows, capacity]
    index: jax.Array  # int32 scalar, the number of filled slots; or int32 [rows], see `run_layers`


def empty_cache(
    layers: Stack, rows: int, capacity: int, heads: int, head_dim: int, dtype: DTypeLike, *, codes: bool
) -> DecoderCache:
    """A cache (see `Family`) of keys and values for `capacity` tokens per row; see `key_value_cache.empty_layers`."""
    shape = (capacity, heads, head_dim)
    return {
        "layers": empty_layers(layers, rows, {"key": shape, "value": shape}, dtype, codes=codes),
        "segment_ids": jnp.zeros((rows, capacity), jnp.int32),
        "positions": jnp.zeros((rows, capacity), jnp.int32),
        "index": jnp.zeros((), jnp.int32),
    }


def run_layers(
    layers: Stack,
    x: jax.Array,
    segment_ids: jax.Array,
    positions: jax.Array,
    rotations: dict[str, tuple[jax.Array, jax.Array]],
    max_length: int,
    dropout: DropoutKeys | None,
    cache: DecoderCache | None,
    groups: jax.Array | None = None,
) -> tuple[jax.Array, DecoderCache | None]:
    """Runs the stack. Returns its output, and the cache including this call's tokens.

    Raises ValueError if a position exceeds `max_length` or the tokens do not fit into the cache. Inside jit, where
    these values are unknown, the output of such tokens is NaN instead.

    With a cache whose `index` is int32 [rows], each row's single token goes to its own slot, and to none if the slot is
    beyond the arrays in "layers". These may have more rows and slots than "segment_ids" and "positions" [rows, slots],
    which say what is attended to: the first rows and slots.

    `groups`: see `attention`. A cache does not keep them, so all tokens of a group belong into one call.
    """
    check_positions(positions, max_length)
    beyond = ((positions >= max_length) & (segment_ids != 0))[..., None]
    if cache is None:
        x = layers(x, Context(segment_ids, positions, segment_ids, positions, 0, rotations, groups, groups), dropout)
        return jnp.where(beyond, jnp.nan, x), None
    index, tokens, capacity = cache["index"], x.shape[1], cache["positions"].shape[1]
    # numpy, since inside jit jnp would make a tracer even of a constant
    filled = 0 if isinstance(index, jax.core.Tracer) else int(np.asarray(index).max())
    if filled + tokens > capacity:
        raise ValueError(
            f"{tokens} more tokens do not fit into a cache of {capacity} slots with {filled} filled: create the cache "
            "with a larger capacity."
        )
    key_segment_ids = append(cache["segment_ids"], segment_ids, index)
    key_positions = append(cache["positions"], positions, index)
    key_groups = None if groups is None else append(jnp.zeros_like(key_segment_ids), groups, index)
    context = Context(segment_ids, positions, key_segment_ids, key_positions, index, rotations, groups, key_groups)
    x, entries = layers(x, context, dropout, cache["layers"], index)
    full = jnp.reshape(index + tokens > capacity, (-1, 1, 1))
    return jnp.where(beyond | full, jnp.nan, x), {
        "layers": entries,
        "segment_ids": key_segment_ids,
        "positions": key_positions,
        "index": index + tokens,
    }


# ---------------------------------------------------------------- the network


class Attention(nnx.Module):
    """Causal grouped-query attention with rotary positions."""

    def __init__(self, kind: str, spec: DecoderSpec, dtype: DTypeLike, rngs: nnx.Rngs):
        width, dim, init = spec.hidden_size, spec.head_dim, normal(spec.initializer_range)

        def projection(heads: int) -> Linear:
            return Linear(
                width,
                heads * dim,
                axes=("embed", "heads"),
                init=init,
                use_bias=spec.qkv_bias,
                dtype=dtype,
                rngs=rngs,
            )

        def head_norm() -> RMSNorm | None:
            if not spec.query_key_norm:
                return None
            return RMSNorm(dim, eps=spec.eps, offset=spec.norm_offset, axes=(None,), dtype=dtype)

        self.query = projection(spec.num_heads)
        self.key = projection(spec.num_key_heads)
        self.value = projection(spec.num_key_heads)
        self.output = Linear(
            spec.num_heads * dim,
            width,
            axes=("heads", "embed"),
            init=init,
            use_bias=spec.output_bias,
            dtype=dtype,
            rngs=rngs,
        )
        self.query_norm = head_norm()
        self.key_norm = head_norm()
        self.kind = kind
        self.spec = spec
        self.weights: nnx.Param[jax.Array] | None = nnx.data(None)  # see `attention`

    def __call__(
        self, x: jax.Array, context: Context, keys: DropoutKeys | None, cache: dict[str, jax.Array] | None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        spec = self.spec

        def heads(y: jax.Array, norm: RMSNorm | None = None) -> jax.Array:
            y = y.reshape(*y.shape[:-1], -1, spec.head_dim)
            return y if norm is None else norm(y)

        rope = context.rotations[self.kind]
        q = rotate(heads(self.query(x, keys), self.query_norm), rope)
        k = rotate(heads(self.key(x, keys), self.key_norm), rope)
        v = heads(self.value(x, keys))
        entries = {"key": k, "value": v}
        if cache is not None:
            entries, (k, v) = extended(cache, entries, context.index, context.key_positions.shape[1])
        y = attention(
            q,
            k,
            v,
            segment_ids=context.segment_ids,
            positions=context.positions,
            key_segment_ids=context.key_segment_ids,
            key_positions=context.key_positions,
            groups=context.groups,
            key_groups=context.key_groups,
            causal=True,
            window=spec.window - 1 if self.kind == LOCAL and spec.window is not None else None,
            soft_cap=spec.attention_soft_cap,
            scale=spec.attention_scale,
            dropout_rate=spec.attention_dropout,
            dropout_keys=None if keys is None else keys.fold(0),
            weights=self.weights,
        )
        return self.output(y.reshape(*x.shape[:2], -1), keys), entries


class Layer(nnx.Module):
    """x = x + attention(norm(x)); x = x + mlp(norm(x)), with a gated MLP (Shazeer, 2020)."""

    def __init__(self, kind: str, spec: DecoderSpec, dtype: DTypeLike, rngs: nnx.Rngs):
        width, init = spec.hidden_size, normal(spec.initializer_range)

        def norm() -> RMSNorm:
            return RMSNorm(width, eps=spec.eps, offset=spec.norm_offset, dtype=dtype)

        def linear(out: int, width: int, axes: tuple[str, str]) -> Linear:
            return Linear(width, out, axes=axes, init=init, use_bias=spec.mlp_bias, dtype=dtype, rngs=rngs)

        self.attention_norm = norm()
        self.attention = Attention(kind, spec, dtype, rngs)
        self.attention_post_norm = norm() if spec.post_norms else None
        self.mlp_norm = norm()
        self.mlp_gate = linear(spec.mlp_size, width, ("embed", "mlp"))
        self.mlp_in = linear(spec.mlp_size, width, ("embed", "mlp"))
        self.mlp_out = linear(width, spec.mlp_size, ("mlp", "embed"))
        self.mlp_post_norm = norm() if spec.post_norms else None
        self.activation = spec.activation

    def __call__(
        self,
        x: jax.Array,
        context: Context,
        keys: DropoutKeys | None,
        cache: dict[str, jax.Array] | None = None,
    ) -> jax.Array | tuple[jax.Array, dict[str, jax.Array]]:
        y, entries = self.attention(self.attention_norm(x), context, keys, cache)
        x = x + (y if self.attention_post_norm is None else self.attention_post_norm(y))
        y = self.mlp_norm(x)
        y = self.mlp_out(activation(self.activation)(self.mlp_gate(y, keys)) * self.mlp_in(y, keys), keys)
        x = x + (y if self.mlp_post_norm is None else self.mlp_post_norm(y))
        return x if cache is None else (x, entries)


class Decoder(Backbone):
    """Embeddings, pre-norm layers and a final norm. For the arguments of a call see `Family`.

    With a `reader`, `images` may come with the tokens: their vectors take the place of the embedded tokens at
    `images.places`. Token types are ignored by all decoders but those whose reader says `"prompt"` (see `ReaderSpec`).

    Tokens beyond `max_length` or the cache's capacity raise an error or give NaN, see `run_layers`.
    """

    def __init__(self, spec: DecoderSpec, *, dtype: DTypeLike, stack: StackOptions, rngs: nnx.Rngs):
        activation(spec.activation)
        self.word_embeddings = Embedding(
            spec.vocab_size,
            spec.hidden_size,
            init=normal(spec.initializer_range),
            padding_id=spec.padding_id,
            dtype=dtype,
            rngs=rngs,
        )
        self.layers = Stack(
            spec.layer_types,
            lambda kind, rngs: Layer(kind, spec, dtype, rngs),
            options=stack,
            rngs=rngs,
        )
        self.final_norm = RMSNorm(spec.hidden_size, eps=spec.eps, offset=spec.norm_offset, dtype=dtype)
        self.reader: ImageReader | None = nnx.data(None)
        self.spec = spec
        self.dtype = dtype
        self.hidden_size = spec.hidden_size
        self.vocab_size = spec.vocab_size
        self.max_length = spec.max_length

    def read_images(self, reader: ImageReader) -> None:
        """Adds a reader, after which calls may have images."""
        self.reader = reader
        self.prompt_type = int(reader.spec.together == "prompt")
        self.image_vectors = reader.spec.image_vectors
        self.image_size = reader.spec.vision.image_size
        self.image_token_id = reader.spec.token_id

    def empty_cache(self, rows: int, capacity: int) -> DecoderCache:
        """A cache for `capacity` tokens per row, in the dtype of the activations, or in int8."""
        heads, dim = self.spec.num_key_heads, self.spec.head_dim
        return empty_cache(self.layers, rows, capacity, heads, dim, self.dtype, codes=self.cache_codes)

    @overload
    def __call__(
        self,
        tokens: jax.Array,
        segment_ids: jax.Array,
        positions: jax.Array,
        token_types: jax.Array,
        *,
        dropout: DropoutKeys | None = None,
        cache: None = None,
        images: RowImages | RowVectors | None = None,
    ) -> jax.Array: ...
    @overload
    def __call__(
        self,
        tokens: jax.Array,
        segment_ids: jax.Array,
        positions: jax.Array,
        token_types: jax.Array,
        *,
        dropout: DropoutKeys | None = None,
        cache: DecoderCache,
        images: RowImages | RowVectors | None = None,
    ) -> tuple[jax.Array, DecoderCache]: ...
    def __call__(
        self,
        tokens: jax.Array,
        segment_ids: jax.Array,
        positions: jax.Array,
        token_types: jax.Array,
        *,
        dropout: DropoutKeys | None = None,
        cache: DecoderCache | None = None,
        images: RowImages | RowVectors | None = None,
    ) -> jax.Array | tuple[jax.Array, DecoderCache]:
        if images is not None and self.reader is None:
            raise ValueError("the network reads no images: its config.json has no vision_config.")
        # the id of an image's tokens may lie beyond the table
        x = self.word_embeddings(tokens if images is None else jnp.where(images.places < 0, tokens, 0), dropout)
        if self.spec.embedding_scale is not None:
            x = x * jnp.asarray(self.spec.embedding_scale, x.dtype)  # rounded, as Gemma was trained
        groups = None
        if self.reader is not None:
            x, groups = self.reader.place(x, images, dropout), self.reader.groups(token_types, images)
        rotations = {kind: rotation(positions, rope) for kind, rope in self.spec.ropes}
        limit = self.max_length
        x, updated = run_layers(self.layers, x, segment_ids, positions, rotations, limit, dropout, cache, groups)
        x = self.final_norm(x)
        return x if updated is None else (x, updated)
