"""Task heads in HuggingFace's shape for each family (`backbones.family.HeadSpec`).

All outputs are fp32. A head folds its dropout keys with numbers that backbones do not use.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from instructrec_jax.adapters import losses
from instructrec_jax.arrays import Array
from instructrec_jax.backbones.encoder import Encoder
from instructrec_jax.backbones.family import Backbone, HeadSpec, LMHeadSpec
from instructrec_jax.backbones.folder import family_of
from instructrec_jax.backbones.layers import (
    DropoutKeys,
    Init,
    LayerNorm,
    Linear,
    activation,
    dropout,
    first_tokens,
    normal,
    segment_keys,
    truncated_normal,
)
from instructrec_jax.backbones.tables import Table, dense_table, table_logits
from instructrec_jax.hf_types import PretrainedConfig

POOLING_MODES = ("cls", "mean", "max", "mean_sqrt_len", "weightedmean", "lasttoken")
HEAD_SITE = 1 << 20  # first dropout site of heads; a backbone uses 0 (embeddings) and 1 + layer number


def pool_segments(hidden: jax.Array, segment_ids: Array, mode: str, max_segments: int) -> jax.Array:
    """One vector per (row, segment).

    Args:
        hidden: float [rows, length, hidden].
        segment_ids: int32 [rows, length], 1..S, 0 = padding.
        mode: "cls" (the segment's first token), "lasttoken" (its last token), "mean", "max", "mean_sqrt_len" (sum
            divided by sqrt(number of tokens)) or "weightedmean" (weights 1, 2, 3, … by position in the segment).
        max_segments: S (static); segments 1..S are pooled.

    Returns: [rows, S, hidden] in hidden's dtype, reduced in fp32; zeros for absent segments.
    Raises ValueError for an unknown mode.
    """
    if mode not in POOLING_MODES:
        raise ValueError(f"unknown pooling mode {mode!r}; choose from {', '.join(POOLING_MODES)}.")
    numbers = jnp.arange(1, max_segments + 1, dtype=segment_ids.dtype)
    member = segment_ids[:, None, :] == numbers[:, None]  # [rows, S, length]
    present = member.any(-1, keepdims=True)
    if mode in ("cls", "lasttoken"):
        index = first_tokens(segment_ids, max_segments)
        if mode == "lasttoken":
            index = hidden.shape[1] - 1 - first_tokens(segment_ids[:, ::-1], max_segments)
        picked = jnp.take_along_axis(hidden, index[..., None], axis=1)
        return jnp.where(present, picked, 0)
    if mode == "max":
        # one segment at a time, to avoid an array [rows, S, length, hidden]
        def largest(number: jax.Array) -> jax.Array:
            return jnp.max(hidden, axis=1, initial=-jnp.inf, where=(segment_ids == number)[..., None])

        return jnp.where(present, jax.lax.map(largest, numbers).transpose(1, 0, 2), 0)
    weights = member.astype(jnp.float32)
    if mode == "weightedmean":
        weights = weights * jnp.cumsum(weights, axis=-1)
    total = jnp.maximum(weights.sum(-1, keepdims=True), 1.0)
    scaled = weights / (jnp.sqrt(total) if mode == "mean_sqrt_len" else total)
    pooled = jnp.einsum("rsl,rlh->rsh", scaled, hidden, preferred_element_type=jnp.float32)
    return pooled.astype(hidden.dtype)


def build_head(
    config: PretrainedConfig, kind: str, num_outputs: int, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs
) -> nnx.Module:
    """HuggingFace's head for the config's family, newly initialized.

    Args:
        config: the HuggingFace config of the backbone.
        kind: "sequence" | "token" | "span" | "mlm" | "lm" | "image".
        num_outputs: number of labels or of regressed numbers, or the size of the vocabulary.
        dtype: of the activations.

    Raises ValueError for a kind that the family lacks.
    """
    heads = family_of(config).heads
    if kind not in heads:
        raise ValueError(f"model_type {config.model_type!r} has no {kind!r} head; it has: {', '.join(heads)}.")
    hidden: int = config.get_text_config().hidden_size
    spec = heads[kind].spec(config)
    outputs = getattr(spec, "size", None) or num_outputs
    return HEADS[kind](spec, hidden, outputs, dtype=dtype, rngs=rngs)


def _init(spec: HeadSpec, std: float) -> Init:
    return normal(std) if spec.initializer_cutoff is None else truncated_normal(std, spec.initializer_cutoff)


class _Transform(nnx.Module):
    """The common part of heads: dropout → dense → activation → norm → dropout, each if the spec includes it."""

    def __init__(self, spec: HeadSpec, hidden_size: int, dtype: DTypeLike, rngs: nnx.Rngs):
        self.spec = spec
        init, width = _init(spec, spec.initializer_range), spec.dense_size or hidden_size
        self.dense = (
            Linear(
                hidden_size,
                width,
                axes=("embed", None),
                init=init,
                use_bias=spec.dense_bias,
                dtype=dtype,
                rngs=rngs,
            )
            if spec.dense
            else None
        )
        self.norm = LayerNorm(width, eps=spec.norm_eps, use_bias=spec.norm_bias, dtype=dtype) if spec.norm else None

    def transform(self, x: jax.Array, keys: DropoutKeys | None) -> jax.Array:
        spec = self.spec
        x = dropout(x, spec.input_dropout, None if keys is None else keys.fold(HEAD_SITE))
        if self.dense is not None:
            x = activation(spec.activation)(self.dense(x))
        if self.norm is not None:
            x = self.norm(x)
        return dropout(x, spec.dropout, None if keys is None else keys.fold(HEAD_SITE + 1))


class _Classifier(_Transform):
    def __init__(
        self, spec: HeadSpec, hidden_size: int, num_outputs: int, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs
    ):
        super().__init__(spec, hidden_size, dtype, rngs)
        init = _init(spec, spec.initializer_range if spec.output_range is None else spec.output_range)
        self.output = Linear(
            spec.dense_size or hidden_size,
            num_outputs,
            axes=("embed", None),
            init=init,
            use_bias=spec.output_bias,
            dtype=dtype,
            rngs=rngs,
        )


class SequenceHead(_Classifier):
    """`num_outputs` numbers per segment: class logits, one logit per label, or regressed numbers."""

    def __call__(
        self,
        backbone: Backbone,
        hidden: jax.Array,
        segment_ids: jax.Array,
        max_segments: int,
        *,
        dropout: DropoutKeys | None = None,
    ) -> jax.Array:
        """hidden [rows, length, hidden] → fp32 [rows, max_segments, num_outputs].

        Rows of absent segments are undefined. Only families whose head includes the backbone's pooler use `backbone`
        (ValueError if it was built without a pooler).
        """
        keys = None if dropout is None else segment_keys(dropout, segment_ids, max_segments)
        pooled = self.pooled(backbone, hidden, segment_ids, max_segments)
        return self.output(self.transform(pooled, keys)).astype(jnp.float32)

    def pooled(self, backbone: Backbone, hidden: jax.Array, segment_ids: jax.Array, max_segments: int) -> jax.Array:
        """What the head reads of each segment, [rows, max_segments, hidden]; arguments as of the call."""
        pooled = pool_segments(hidden, segment_ids, self.spec.pooling, max_segments)
        if not self.spec.use_pooler:
            return pooled
        if not isinstance(backbone, Encoder):
            raise TypeError(f"a {type(backbone).__name__} has no pooler, but this head needs one.")
        return backbone.pool(pooled)


class TokenHead(_Classifier):
    """`num_outputs` logits at every position."""

    def __call__(self, hidden: jax.Array, *, dropout: DropoutKeys | None = None) -> jax.Array:
        """hidden [rows, length, hidden] → fp32 [rows, length, num_outputs]."""
        return self.output(self.transform(hidden, dropout)).astype(jnp.float32)


class SpanHead(TokenHead):
    """Two logits at every position: for the start and the end of the answer."""


class ImageHead(_Classifier):
    """`num_outputs` numbers per segment, from the mean of the vectors of its images (`VisionEncoder.read_rows`).

    A vector is the class token's, or that beside the mean of the patches ("cls_mean").
    """

    def __init__(
        self, spec: HeadSpec, hidden_size: int, num_outputs: int, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs
    ):
        width = 2 * hidden_size if spec.pooling == "cls_mean" else hidden_size
        super().__init__(spec, width, num_outputs, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        backbone: Backbone,
        vectors: jax.Array,
        segment_ids: jax.Array,
        max_segments: int,
        *,
        dropout: DropoutKeys | None = None,
    ) -> jax.Array:
        """vectors [rows, length, width] → fp32 [rows, max_segments, num_outputs], as a `SequenceHead`."""
        keys = None if dropout is None else segment_keys(dropout, segment_ids, max_segments)
        pooled = self.pooled(backbone, vectors, segment_ids, max_segments)
        return self.output(self.transform(pooled, keys)).astype(jnp.float32)

    def pooled(self, backbone: Backbone, vectors: jax.Array, segment_ids: jax.Array, max_segments: int) -> jax.Array:
        """What the head reads of each segment, [rows, max_segments, width]; arguments as of the call."""
        return pool_segments(vectors, segment_ids, "mean", max_segments)


class MaskedLMHead(_Transform):
    """Logits over the vocabulary, from the backbone's word embedding table (shared, not copied) and a bias."""

    def __init__(
        self, spec: HeadSpec, hidden_size: int, vocab_size: int, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs
    ):
        super().__init__(spec, hidden_size, dtype, rngs)
        bias = jnp.zeros((vocab_size,), jnp.float32)
        self.bias = nnx.Param(bias, axes=("vocab",)) if spec.output_bias else None
        draw = _init(spec, spec.initializer_range)
        self.table: nnx.Param[jax.Array] | Table | None = (
            None if spec.tied else nnx.Param(draw(rngs.params(), (vocab_size, hidden_size)), axes=("vocab", "embed"))
        )
        self.dtype = dtype

    def output(self, backbone: Backbone) -> tuple[jax.Array, jax.Array | None]:
        """The layer after `transform`: the table [vocab_size, hidden_size], and the bias [vocab_size] or None."""
        table = backbone.word_embedding_table if self.table is None else dense_table(self.table)
        return table, None if self.bias is None else self.bias[...]

    def __call__(self, backbone: Backbone, hidden: jax.Array) -> jax.Array:
        """hidden [..., hidden_size] -> fp32 logits [..., vocab_size]. A loss never needs them: see `losses`."""
        table = backbone.word_embeddings.table if self.table is None else self.table
        logits = table_logits(table, self.transform(hidden, None).astype(self.dtype))
        return logits if self.bias is None else logits + self.bias[...]


class LMHead(nnx.Module):
    """Logits of the next token, from the backbone's embedding table or the head's own."""

    def __init__(
        self, spec: LMHeadSpec, hidden_size: int, vocab_size: int, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs
    ):
        init = normal(spec.initializer_range)
        self.table: nnx.Param[jax.Array] | Table | None = (
            None if spec.tied else nnx.Param(init(rngs.params(), (vocab_size, hidden_size)), axes=("vocab", "embed"))
        )
        self.bias = nnx.Param(jnp.zeros((vocab_size,), jnp.float32), axes=("vocab",)) if spec.bias else None
        self.spec = spec
        self.dtype = dtype

    def output(self, backbone: Backbone) -> tuple[jax.Array, jax.Array | None]:
        """The table [vocab_size, hidden_size] and the bias [vocab_size], or None."""
        table = backbone.word_embedding_table if self.table is None else dense_table(self.table)
        return table, None if self.bias is None else self.bias[...]

    def vocab_size(self, backbone: Backbone) -> int:
        return self.output(backbone)[0].shape[0]

    def __call__(self, backbone: Backbone, hidden: jax.Array) -> jax.Array:
        """hidden [..., hidden_size] -> fp32 logits [..., vocab_size]. A loss never needs them: see `losses`."""
        table = backbone.word_embeddings.table if self.table is None else self.table
        logits = table_logits(table, (hidden * self.spec.scale).astype(self.dtype))
        logits = logits if self.bias is None else logits + self.bias[...]
        cap = self.spec.soft_cap
        return logits if cap is None else cap * jnp.tanh(logits / cap)

    def token_losses(
        self, backbone: Backbone, hidden: jax.Array, labels: Array, weights: Array
    ) -> tuple[jax.Array, jax.Array]:
        """See `losses.token_losses`."""
        table, bias = self.output(backbone)
        scale, soft_cap = self.spec.scale, self.spec.soft_cap
        return losses.token_losses(hidden, table, labels, weights, bias=bias, scale=scale, soft_cap=soft_cap)


HEADS: dict[str, Callable[..., nnx.Module]] = {
    "sequence": SequenceHead,
    "token": TokenHead,
    "span": SpanHead,
    "mlm": MaskedLMHead,
    "lm": LMHead,
    "image": ImageHead,
}


def head_kind(head: nnx.Module) -> str | None:
    """The kind of a HuggingFace head; None for a head of this package."""
    return next((kind for kind, cls in HEADS.items() if type(head) is cls), None)
