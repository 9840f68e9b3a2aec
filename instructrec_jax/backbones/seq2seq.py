"""The common part of encoder–decoders: attention, encode, decode and the cache. Families add the layers."""

from dataclasses import dataclass, replace
from typing import Protocol, TypeVar, overload

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from instructrec_jax.backbones.attention import attention
from instructrec_jax.backbones.decoder import DecoderCache
from instructrec_jax.backbones.encoder import check_positions
from instructrec_jax.backbones.family import Backbone
from instructrec_jax.backbones.key_value_cache import append, empty_layers, extended, read, stored
from instructrec_jax.backbones.layers import Cache, DropoutKeys, Embedding, Linear, Stack, StackOptions, normal
from instructrec_jax.backbones.row_images import RowImages


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Context:
    """The inputs of every layer besides the hidden states.

    Attributes:
        segment_ids, positions: int32 [rows, length], of the call's tokens.
        key_segment_ids, key_positions: int32 [rows, keys], of self-attention's keys: the call's tokens, or the cache's.
        index: int32 scalar, the slot of the cache where the call's tokens start; or int32 [rows], each row's.
        bias: [rows, heads, length, keys] added to the scores of self-attention, or None.
        encoded: [rows, encoded length, hidden], the keys' text of cross-attention; None in an encoder, and if its keys
            and values are in the cache.
        encoded_segment_ids, encoded_positions: int32 [rows, encoded length]; None in an encoder.
        encoded_partners: int32 [rows, encoded length], the index of the call's first token in the same segment; None in
            an encoder.
    """

    segment_ids: jax.Array
    positions: jax.Array
    key_segment_ids: jax.Array
    key_positions: jax.Array
    index: jax.Array | int = 0
    bias: jax.Array | None = None
    encoded: jax.Array | None = None
    encoded_segment_ids: jax.Array | None = None
    encoded_positions: jax.Array | None = None
    encoded_partners: jax.Array | None = None


@dataclass(frozen=True)
class AttentionSpec:
    """Sizes of an `Attention`."""

    hidden_size: int
    num_heads: int
    head_dim: int
    scale: float  # factor of the scores
    use_bias: bool
    dropout: float  # of the attention weights
    query_range: float  # initial standard deviation of the query kernel
    key_range: float  # of the key and value kernels
    output_range: float  # of the output kernel
    key_bias: bool = True  # of keys, where the others have one


class Attention(nnx.Module):
    """The common projections of self-attention and cross-attention."""

    def __init__(self, spec: AttentionSpec, dtype: DTypeLike, rngs: nnx.Rngs):
        width, inner = spec.hidden_size, spec.num_heads * spec.head_dim

        def projection(std: float, use_bias: bool = spec.use_bias) -> Linear:
            axes = ("embed", "heads")
            return Linear(width, inner, axes=axes, init=normal(std), use_bias=use_bias, dtype=dtype, rngs=rngs)

        self.query = projection(spec.query_range)
        self.key = projection(spec.key_range, spec.use_bias and spec.key_bias)
        self.value = projection(spec.key_range)
        self.output = Linear(
            inner,
            width,
            axes=("heads", "embed"),
            init=normal(spec.output_range),
            use_bias=spec.use_bias,
            dtype=dtype,
            rngs=rngs,
        )
        self.weights: nnx.Param[jax.Array] | None = nnx.data(None)  # see `attention`
        self.spec = spec

    def heads(self, x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:-1], self.spec.num_heads, self.spec.head_dim)

    def attend(
        self,
        x: jax.Array,
        k: jax.Array,
        v: jax.Array,
        context: Context,
        keys: DropoutKeys | None,
        *,
        key_segment_ids: jax.Array | None,
        key_positions: jax.Array | None,
        bias: jax.Array | None = None,
        causal: bool = False,
    ) -> jax.Array:
        out = attention(
            self.heads(self.query(x, keys)),
            k,
            v,
            segment_ids=context.segment_ids,
            positions=context.positions,
            scale=self.spec.scale,
            key_segment_ids=key_segment_ids,
            key_positions=key_positions,
            bias=bias,
            causal=causal,
            dropout_rate=self.spec.dropout,
            dropout_keys=keys,
            weights=self.weights,
        )
        return self.output(out.reshape(*x.shape[:-1], -1), keys)


class SelfAttention(Attention):
    """Attention within a segment; in a decoder (`causal`) only to the token itself and earlier ones."""

    def __init__(self, spec: AttentionSpec, causal: bool, dtype: DTypeLike, rngs: nnx.Rngs):
        super().__init__(spec, dtype, rngs)
        self.causal = causal

    def __call__(
        self, x: jax.Array, context: Context, keys: DropoutKeys | None, cache: dict[str, jax.Array] | None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The output, and what is to be written into the cache."""
        k, v = self.heads(self.key(x, keys)), self.heads(self.value(x, keys))
        entries = {"key": k, "value": v}
        if cache is not None:
            entries, (k, v) = extended(cache, entries, context.index, context.key_positions.shape[1])
        out = self.attend(
            x,
            k,
            v,
            context,
            keys,
            key_segment_ids=context.key_segment_ids,
            key_positions=context.key_positions,
            bias=context.bias,
            causal=self.causal,
        )
        return out, entries


class CrossAttention(Attention):
    """Attention to the encoded tokens with the same segment number."""

    def __call__(
        self, x: jax.Array, context: Context, keys: DropoutKeys | None, cache: dict[str, jax.Array] | None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The output, and what is to be written into the cache."""
        entries = {}
        if context.encoded is not None:
            encoded_keys = self.encoded_keys(context, keys)
            k = self.heads(self.key(context.encoded, encoded_keys))
            v = self.heads(self.value(context.encoded, encoded_keys))
            entries = {"encoded_key": k, "encoded_value": v}
            if cache is not None:
                entries = stored(cache, entries)
                k, v = read(entries, x.dtype)
        else:
            assert cache is not None
            assert context.encoded_segment_ids is not None
            length = context.encoded_segment_ids.shape[1]
            encoded = {name: each[:, :length] for name, each in cache.items() if name.startswith("encoded")}
            k, v = read(encoded, x.dtype)
        out = self.attend(
            x,
            k,
            v,
            context,
            keys,
            key_segment_ids=context.encoded_segment_ids,
            key_positions=context.encoded_positions,
        )
        return out, entries

    def encoded_keys(self, context: Context, keys: DropoutKeys | None) -> DropoutKeys | None:
        """Dropout keys of encoded tokens, derived from the key of their segment's first target token and position."""
        if keys is None:
            return None
        assert context.encoded_partners is not None and context.encoded_positions is not None
        return DropoutKeys(jnp.take_along_axis(keys.tokens, context.encoded_partners, axis=1)).fold(
            context.encoded_positions
        )


class EncoderDecoderCache(DecoderCache):
    """The target tokens that the decoder has read, and the encoded text, see `Family`."""

    encoded_segment_ids: jax.Array  # int32 [rows, encoded length]


LayerCache = TypeVar("LayerCache", Cache, None)


class Side(Protocol):
    """The encoder or the decoder, from word embeddings to the last hidden states."""

    layers: Stack

    def __call__(
        self, x: jax.Array, context: Context, dropout: DropoutKeys | None, cache: LayerCache
    ) -> tuple[jax.Array, LayerCache]: ...


class EncoderDecoder(Backbone):
    """A network of the kind "encoder_decoder"; see `Family` for its calls.

    Args:
        word_embeddings: the table shared by encoder and decoder.
        decoder_embeddings: the decoder's own table, of another vocabulary; None: they share one.
        encoder, decoder: see `Side`.
        cache_shape: (heads, head_dim) of the decoder.
        max_length: maximum length of source and target.
        max_target_length: of the target, where it is another one.
        dtype: of the activations.
    """

    def __init__(
        self,
        word_embeddings: Embedding,
        encoder: Side,
        decoder: Side,
        *,
        cache_shape: tuple[int, int],
        max_length: int,
        max_target_length: int | None = None,
        dtype: DTypeLike,
        decoder_embeddings: Embedding | None = None,
    ):
        self.word_embeddings = word_embeddings
        self.decoder_embeddings = decoder_embeddings
        self.encoder = encoder
        self.decoder = decoder
        self.cache_shape = cache_shape
        self.vocab_size, self.hidden_size = word_embeddings.table.shape
        self.max_length = max_length
        self.max_target_length = max_length if max_target_length is None else max_target_length
        self.dtype = dtype

    def encode(
        self,
        tokens: jax.Array,
        segment_ids: jax.Array,
        positions: jax.Array,
        *,
        dropout: DropoutKeys | None = None,
        images: RowImages | None = None,
    ) -> jax.Array:
        """int32 [rows, length] each -> [rows, length, hidden_size].

        Args:
            images: the rows' sounds, of a network that reads sounds (`whisper.Whisper`).

        Raises ValueError if a position exceeds `max_length` (inside jit the token's hidden state is NaN instead), and
        for images.
        """
        if images is not None:
            raise ValueError(f"a {type(self).__name__} reads words alone, but the batch has images or sounds.")
        check_positions(positions, self.max_length)
        context = Context(segment_ids, positions, segment_ids, positions)
        return self.encoder(self.word_embeddings(tokens, dropout), context, dropout, None)[0]

    @overload
    def decode(
        self,
        tokens: jax.Array,
        segment_ids: jax.Array,
        positions: jax.Array,
        encoded: jax.Array | None = None,
        encoded_segment_ids: jax.Array | None = None,
        *,
        dropout: DropoutKeys | None = None,
        cache: None = None,
    ) -> jax.Array: ...
    @overload
    def decode(
        self,
        tokens: jax.Array,
        segment_ids: jax.Array,
        positions: jax.Array,
        encoded: jax.Array | None = None,
        encoded_segment_ids: jax.Array | None = None,
        *,
        dropout: DropoutKeys | None = None,
        cache: EncoderDecoderCache,
    ) -> tuple[jax.Array, EncoderDecoderCache]: ...
    def decode(
        self,
        tokens: jax.Array,
        segment_ids: jax.Array,
        positions: jax.Array,
        encoded: jax.Array | None = None,
        encoded_segment_ids: jax.Array | None = None,
        *,
        dropout: DropoutKeys | None = None,
        cache: EncoderDecoderCache | None = None,
    ) -> jax.Array | tuple[jax.Array, EncoderDecoderCache]:
        """int32 [rows, target length] each -> [rows, target length, hidden_size], or (that, cache).

        Args:
            encoded: [rows, encoded length, hidden_size]; None after the first call with a cache, which has its keys and
                values.
            encoded_segment_ids: int32 [rows, encoded length]; a target token attends to encoded tokens of the same
                number. A segment's tokens are contiguous. None after the first call with a cache, which keeps them.
            dropout: keys of the target tokens.
            cache: from `empty_cache` or an earlier call; with an index per row (see `decoder.run_layers`) it has the
                encoded text.

        Raises ValueError for a position beyond `max_length`, a full cache, and `encoded` missing or of another length
        than the cache's. Inside jit, where values are unknown, the hidden states are NaN instead.
        """
        check_positions(positions, self.max_target_length)
        if encoded is not None and encoded_segment_ids is None:
            raise ValueError("decode() needs `encoded_segment_ids` with `encoded`.")
        x = (self.word_embeddings if self.decoder_embeddings is None else self.decoder_embeddings)(tokens)
        if cache is None:
            if encoded is None or encoded_segment_ids is None:
                raise ValueError("decode() needs `encoded`, the result of encode(), or a cache that has it.")
            own = (segment_ids, positions)
            return self.decoder(x, _context(own, own, 0, encoded, encoded_segment_ids), dropout, None)[0]
        usable = _check_cache(cache, tokens, encoded)
        index = cache["index"]
        keys = append(cache["segment_ids"], segment_ids, index), append(cache["positions"], positions, index)
        if encoded_segment_ids is None:
            encoded_segment_ids = cache["encoded_segment_ids"]
        context = _context((segment_ids, positions), keys, index, encoded, encoded_segment_ids)
        x, layers = self.decoder(x, context, dropout, cache["layers"])
        return jnp.where(jnp.reshape(usable, (-1, 1, 1)), x, jnp.nan), {
            "layers": layers,
            "segment_ids": keys[0],
            "positions": keys[1],
            "index": index + tokens.shape[1],
            "encoded_segment_ids": encoded_segment_ids,
        }

    def empty_cache(self, rows: int, capacity: int, encoded_length: int) -> EncoderDecoderCache:
        """A cache for `decode`, for `capacity` target tokens per row.

        As in `Family`, with "encoded_segment_ids" int32 [rows, encoded_length], and with each layer's keys and values
        of the encoded text in "layers".
        """
        own, encoded = (capacity, *self.cache_shape), (encoded_length, *self.cache_shape)
        shapes = {"key": own, "value": own, "encoded_key": encoded, "encoded_value": encoded}
        layers = empty_layers(self.decoder.layers, rows, shapes, self.dtype, codes=self.cache_codes)
        return {
            "layers": layers,
            "segment_ids": jnp.zeros((rows, capacity), jnp.int32),
            "positions": jnp.zeros((rows, capacity), jnp.int32),
            "index": jnp.zeros((), jnp.int32),
            "encoded_segment_ids": jnp.zeros((rows, encoded_length), jnp.int32),
        }


def encoder_options(stack: StackOptions) -> StackOptions:
    """The encoder's options: with `train_last`, only layers of the decoder are trained."""
    return stack if stack.train_last is None else replace(stack, train_last=0)


def positions_of(segment_ids: jax.Array) -> jax.Array:
    """int32 [rows, length]: each token's position in its segment, whose tokens are contiguous."""
    place = jnp.arange(segment_ids.shape[1], dtype=jnp.int32)
    begins = segment_ids != jnp.pad(segment_ids, ((0, 0), (1, 0)), constant_values=-1)[:, :-1]
    return place - jax.lax.cummax(jnp.where(begins, place, 0), axis=1)


def _context(
    queries: tuple[jax.Array, jax.Array],
    keys: tuple[jax.Array, jax.Array],
    index: jax.Array | int,
    encoded: jax.Array | None,
    encoded_segment_ids: jax.Array,
) -> Context:
    """The decoder's context; `queries` and `keys` are (segment_ids, positions)."""
    partners = encoded_segment_ids[:, :, None] == queries[0][:, None, :]
    return Context(
        *queries,
        *keys,
        index,
        encoded=encoded,
        encoded_segment_ids=encoded_segment_ids,
        encoded_positions=positions_of(encoded_segment_ids),
        encoded_partners=jnp.argmax(partners, axis=-1).astype(jnp.int32),
    )


def _check_cache(cache: EncoderDecoderCache, tokens: jax.Array, encoded: jax.Array | None) -> jax.Array:
    """Whether the tokens fit into the cache and the encoded text is known: a bool, or [rows] with an index per row.

    Raises ValueError if not.
    """
    capacity, encoded_length = cache["segment_ids"].shape[1], cache["encoded_segment_ids"].shape[1]
    if encoded is not None and encoded.shape[1] != encoded_length:
        raise ValueError(f"the cache has room for {encoded_length} encoded tokens, but there are {encoded.shape[1]}.")
    index, more = cache["index"], tokens.shape[1]
    # numpy, since inside jit jnp would make a tracer even of a constant
    filled = None if isinstance(index, jax.core.Tracer) else int(np.asarray(index).max())
    if filled == 0 and encoded is None and jnp.ndim(index) == 0:
        raise ValueError("the first decode() with a cache needs `encoded`, the result of encode().")
    if (filled or 0) + more > capacity:
        raise ValueError(
            f"{more} more tokens do not fit into a cache of {capacity} slots with {filled or 0} filled: create the "
            "cache with a larger capacity."
        )
    known = (index > 0) | (encoded is not None or jnp.ndim(index) == 1)
    return (index + more <= capacity) & known
