"""The post-norm encoder of BERT, RoBERTa, DistilBERT and MPNet, each described by an `EncoderSpec`."""

import math
from dataclasses import dataclass
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from instructrec_jax.backbones.attention import attention
from instructrec_jax.backbones.family import Backbone
from instructrec_jax.backbones.layers import (
    DropoutKeys,
    Embedding,
    LayerNorm,
    Linear,
    Stack,
    StackOptions,
    activation,
    dropout,
    normal,
)


@dataclass(frozen=True)
class EncoderSpec:
    """Sizes and variants of an `Encoder`."""

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    mlp_size: int
    activation: str
    eps: float
    num_positions: int  # rows of the position table
    position_offset: int = 0  # the first token's row in it
    num_token_types: int = 0  # 0: the family has no token types
    sinusoidal_positions: bool = False  # initialization of a new position table
    relative_buckets: int = 0  # rows of the relative position bias table (MPNet); 0: none
    padding_id: int | None = None
    hidden_dropout: float = 0.0
    attention_dropout: float = 0.0
    attention_output_dropout: float = 0.0
    initializer_range: float = 0.02
    qkv_bias: bool = True
    causal: bool = False


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Context:
    """The inputs of every layer besides the hidden states."""

    segment_ids: jax.Array
    positions: jax.Array
    bias: jax.Array | None


class AttentionSpec(Protocol):
    """What `Attention` needs to know of its network."""

    @property
    def hidden_size(self) -> int: ...
    @property
    def num_heads(self) -> int: ...
    @property
    def qkv_bias(self) -> bool: ...
    @property
    def causal(self) -> bool: ...
    @property
    def attention_dropout(self) -> float: ...
    @property
    def initializer_range(self) -> float: ...


class Attention(nnx.Module):
    def __init__(self, spec: AttentionSpec, dtype: DTypeLike, rngs: nnx.Rngs):
        def projection(axes: tuple[str, str], use_bias: bool = spec.qkv_bias) -> Linear:
            init, width = normal(spec.initializer_range), spec.hidden_size
            return Linear(width, width, axes=axes, init=init, use_bias=use_bias, dtype=dtype, rngs=rngs)

        self.query = projection(("embed", "heads"))
        self.key = projection(("embed", "heads"))
        self.value = projection(("embed", "heads"))
        self.output = projection(("heads", "embed"), True)
        self.causal = spec.causal
        self.num_heads = spec.num_heads
        self.dropout_rate = spec.attention_dropout
        self.weights: nnx.Param[jax.Array] | None = nnx.data(None)  # see `attention`

    def __call__(self, x: jax.Array, context: Context, keys: DropoutKeys | None) -> jax.Array:
        def heads(y: jax.Array) -> jax.Array:
            return y.reshape(*y.shape[:-1], self.num_heads, -1)

        out = attention(
            heads(self.query(x, keys)),
            heads(self.key(x, keys)),
            heads(self.value(x, keys)),
            segment_ids=context.segment_ids,
            positions=context.positions,
            bias=context.bias,
            causal=self.causal,
            dropout_rate=self.dropout_rate,
            dropout_keys=keys,
            weights=self.weights,
        )
        return self.output(out.reshape(x.shape), keys)


class PostNormLayer(nnx.Module):
    """x = norm(x + attention(x)); x = norm(x + mlp(x)) (Vaswani et al., 2017)."""

    def __init__(self, spec: EncoderSpec, dtype: DTypeLike, rngs: nnx.Rngs):
        init = normal(spec.initializer_range)
        self.attention = Attention(spec, dtype, rngs)
        self.attention_norm = LayerNorm(spec.hidden_size, eps=spec.eps, dtype=dtype)
        self.mlp_in = Linear(spec.hidden_size, spec.mlp_size, axes=("embed", "mlp"), init=init, dtype=dtype, rngs=rngs)
        self.mlp_out = Linear(spec.mlp_size, spec.hidden_size, axes=("mlp", "embed"), init=init, dtype=dtype, rngs=rngs)
        self.mlp_norm = LayerNorm(spec.hidden_size, eps=spec.eps, dtype=dtype)
        self.spec = spec

    def __call__(self, x: jax.Array, context: Context, keys: DropoutKeys | None) -> jax.Array:
        def site(number: int) -> DropoutKeys | None:
            return None if keys is None else keys.fold(number)

        y = dropout(self.attention(x, context, site(0)), self.spec.attention_output_dropout, site(1))
        x = self.attention_norm(x + y)
        y = self.mlp_out(activation(self.spec.activation)(self.mlp_in(x, keys)), keys)
        return self.mlp_norm(x + dropout(y, self.spec.hidden_dropout, site(2)))


class Encoder(Backbone):
    """Embeddings, post-norm layers and, if `pooler`, BERT's pooler.

    A call takes int32 [rows, length] arrays (see `Family`) and returns hidden states [rows, length, hidden_size] in
    `dtype`. Raises ValueError if a position exceeds the position table; inside jit, where positions are unknown, the
    token's hidden state is NaN instead.
    """

    def __init__(self, spec: EncoderSpec, *, pooler: bool, dtype: DTypeLike, stack: StackOptions, rngs: nnx.Rngs):
        activation(spec.activation)
        if spec.hidden_size % spec.num_heads:
            raise ValueError(
                f"config.json: the hidden size, {spec.hidden_size}, must be a multiple of the number of attention "
                f"heads, {spec.num_heads}."
            )
        init = normal(spec.initializer_range)

        def table(size: int, axes: tuple[str | None, str | None], padding_id: int | None = None) -> Embedding:
            return Embedding(
                size, spec.hidden_size, init=init, axes=axes, padding_id=padding_id, dtype=dtype, rngs=rngs
            )

        self.word_embeddings = table(spec.vocab_size, ("vocab", "embed"), spec.padding_id)
        self.position_embeddings = table(spec.num_positions, (None, "embed"))
        if spec.sinusoidal_positions:
            drawn = jnp.asarray(sinusoids(spec.num_positions, spec.hidden_size))
            self.position_embeddings.table = nnx.Param(drawn, axes=(None, "embed"))
        self.token_type_embeddings = table(spec.num_token_types, (None, "embed")) if spec.num_token_types else None
        self.embedding_norm = LayerNorm(spec.hidden_size, eps=spec.eps, dtype=dtype)
        self.relative_bias = (
            Embedding(spec.relative_buckets, spec.num_heads, init=init, axes=(None, "heads"), rngs=rngs)
            if spec.relative_buckets
            else None
        )
        self.layers = Stack(
            ["layer"] * spec.num_layers,
            lambda kind, rngs: PostNormLayer(spec, dtype, rngs),
            options=stack,
            rngs=rngs,
        )
        self.pooler = (
            Linear(spec.hidden_size, spec.hidden_size, axes=("embed", None), init=init, dtype=dtype, rngs=rngs)
            if pooler
            else None
        )
        self.spec = spec
        self.hidden_size = spec.hidden_size
        self.vocab_size = spec.vocab_size
        self.max_length = spec.num_positions - spec.position_offset

    def __call__(
        self,
        tokens: jax.Array,
        segment_ids: jax.Array,
        positions: jax.Array,
        token_types: jax.Array,
        *,
        dropout: DropoutKeys | None = None,
    ) -> jax.Array:
        check_positions(positions, self.max_length)
        x = self.word_embeddings(tokens, dropout) + self.position_embeddings(positions + self.spec.position_offset)
        if self.token_type_embeddings is not None:
            x = x + self.token_type_embeddings(token_types)
        x = self.embedding_norm(x)
        x = _dropout(x, self.spec.hidden_dropout, None if dropout is None else dropout.fold(0))
        context = Context(segment_ids, positions, self._relative_bias(positions))
        return self.layers(x, context, dropout)

    def pool(self, first: jax.Array) -> jax.Array:
        """BERT's pooler, tanh(W · first token + b): [..., hidden_size] → [..., hidden_size]."""
        if self.pooler is None:
            raise ValueError("the network has no pooler: load it with pooler=True.")
        return jnp.tanh(self.pooler(first))

    def _relative_bias(self, positions: jax.Array) -> jax.Array | None:
        if self.relative_bias is None:
            return None
        reach = self.spec.num_positions
        buckets = relative_buckets(np.arange(-reach, reach + 1))
        return relative_bias(self.relative_bias, buckets, positions, positions)


_dropout = dropout  # `dropout` names the keys in the call signature above


def check_positions(positions: jax.Array, max_length: int) -> None:
    """Raises ValueError if a position is max_length or more; tracers, whose values are unknown, pass."""
    if isinstance(positions, jax.core.Tracer) or positions.size == 0:
        return
    # numpy, since inside jit jnp would make a tracer even of a constant
    longest = int(np.asarray(positions).max()) + 1
    if longest > max_length:
        raise ValueError(
            f"an input has {longest} tokens, but the network has {max_length} positions: shorten the input or choose a "
            "network with more positions."
        )


def sinusoids(num_positions: int, width: int) -> np.ndarray:
    """fp32 [num_positions, width]: sin on even and cos on odd columns (Vaswani et al., 2017)."""
    column = np.arange(width)
    angles = np.arange(num_positions)[:, None] / np.power(10000, 2 * (column // 2) / width)
    return np.where(column % 2 == 0, np.sin(angles), np.cos(angles)).astype(np.float32)


NUM_BUCKETS = 32


def relative_buckets(
    distance: np.ndarray, *, num_buckets: int = NUM_BUCKETS, max_distance: int = 128, bidirectional: bool = True
) -> np.ndarray:
    """Bucket of each signed distance key - query: exact for near keys, logarithmic up to `max_distance`.

    With `bidirectional`, half of the buckets are for keys after the query; otherwise those share the bucket of distance
    0. Source: Raffel et al., 2020 (T5). Computed in fp32 like PyTorch, because bucket boundaries depend on rounding.
    """
    half = num_buckets // 2 if bidirectional else num_buckets
    exact = half // 2
    n = np.abs(distance) if bidirectional else np.maximum(-distance, 0)
    log = np.log(np.maximum(n, 1) / exact).astype(np.float32)
    scaled = log / np.float32(math.log(max_distance / exact)) * np.float32(half - exact)
    far = exact + scaled.astype(np.int32)
    behind = np.where(distance > 0, half, 0) if bidirectional else 0
    return behind + np.where(n < exact, n, np.minimum(far, half - 1))


def relative_bias(table: Embedding, buckets: np.ndarray, positions: jax.Array, key_positions: jax.Array) -> jax.Array:
    """The bias [rows, heads, queries, keys] of each pair of tokens by the distance of their positions.

    It depends on positions alone, so every segment of a packed row has the same bias as unpacked.

    Args:
        table: [number of buckets, heads].
        buckets: the bucket of each distance key - query from -reach to reach; larger distances have the last bucket.
        positions, key_positions: int32 [rows, queries] and [rows, keys].
    """
    reach = len(buckets) // 2
    distance = key_positions[:, None, :] - positions[:, :, None]
    bias = table(jnp.asarray(buckets))  # [2·reach+1, heads]
    return jnp.take(bias.T, jnp.clip(distance + reach, 0, 2 * reach), axis=1).transpose(1, 0, 2, 3)
