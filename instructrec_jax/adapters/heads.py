"""Task heads, in the shape HuggingFace gives them per family (`backbones.family.HeadSpec`).

All outputs are fp32. A head's dropout keys are folded with numbers the backbone never uses.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from instructrec_jax.backbones.family import HeadSpec, LMHeadSpec
from instructrec_jax.backbones.folder import find_family
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

POOLING_MODES = ("cls", "mean", "max", "mean_sqrt_len", "weightedmean", "lasttoken")
HEAD_SITE = 1 << 20  # dropout sites of heads; a backbone uses 0 (embeddings) and 1 + layer number


def pool_segments(hidden: jax.Array, segment_ids: jax.Array, mode: str, max_segments: int) -> jax.Array:
    """One vector per (row, segment).

    Args:
        hidden: float [rows, length, hidden].
        segment_ids: int32 [rows, length], 1..S, 0 = padding.
        mode: "cls" the segment's first token, "lasttoken" its last one, "mean", "max", "mean_sqrt_len" (the
            sum over sqrt(number of tokens)), "weightedmean" (weights 1, 2, 3, … by place in the segment).
        max_segments: the static S; segments 1..S are pooled.

    Returns: [rows, S, hidden] in hidden's dtype, reduced in fp32; zeros for a segment that is not there.
    """
    if mode not in POOLING_MODES:
        raise ValueError(f"Unknown pooling mode {mode!r}. Choose one of: {', '.join(POOLING_MODES)}.")
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
        # one segment at a time: [rows, S, length, hidden] must never exist
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


def build_head(config: Any, kind: str, num_outputs: int, *, dtype: Any = jnp.float32, rngs: nnx.Rngs) -> Any:
    """The head that HuggingFace puts on this family, newly initialised.

    Args:
        config: the HuggingFace config of the backbone.
        kind: "sequence" | "token" | "span" | "mlm" | "lm".
        num_outputs: labels, numbers to regress, or the size of the vocabulary.
        dtype: of the activations.
    """
    heads = find_family(config.model_type).heads
    if kind not in heads:
        raise ValueError(f"model_type {config.model_type!r} has no {kind!r} head; it has: {', '.join(heads)}.")
    return HEADS[kind](heads[kind].spec(config), config.hidden_size, num_outputs, dtype=dtype, rngs=rngs)


def _init(spec: HeadSpec, std: float) -> Init:
    return normal(std) if spec.initializer_cutoff is None else truncated_normal(std, spec.initializer_cutoff)


class _Transform(nnx.Module):
    """The part heads share: dropout → dense → activation → norm → dropout, each where the spec has it."""

    def __init__(self, spec: HeadSpec, hidden_size: int, dtype: Any, rngs: nnx.Rngs):
        self.spec = spec
        init, width = _init(spec, spec.initializer_range), hidden_size
        self.dense = (
            Linear(
                width,
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
    def __init__(self, spec: HeadSpec, hidden_size: int, num_outputs: int, *, dtype: Any = jnp.float32, rngs: nnx.Rngs):
        super().__init__(spec, hidden_size, dtype, rngs)
        init = _init(spec, spec.initializer_range if spec.output_range is None else spec.output_range)
        self.output = Linear(
            hidden_size,
            num_outputs,
            axes=("embed", None),
            init=init,
            use_bias=spec.output_bias,
            dtype=dtype,
            rngs=rngs,
        )


class SequenceHead(_Classifier):
    """One vector of `num_outputs` per segment: class logits, one logit per label, or numbers to regress."""

    def __call__(
        self,
        backbone: Any,
        hidden: jax.Array,
        segment_ids: jax.Array,
        max_segments: int,
        *,
        dropout: DropoutKeys | None = None,
    ) -> jax.Array:
        """hidden [rows, length, hidden] → fp32 [rows, max_segments, num_outputs].

        The row of an absent segment means nothing. Of `backbone` only its pooler is used, by the families
        whose head goes through it (ValueError if it was built without).
        """
        pooled = pool_segments(hidden, segment_ids, self.spec.pooling, max_segments)
        if self.spec.use_pooler:
            pooled = backbone.pool(pooled)
        keys = None if dropout is None else segment_keys(dropout, segment_ids, max_segments)
        return self.output(self.transform(pooled, keys)).astype(jnp.float32)


class TokenHead(_Classifier):
    """`num_outputs` logits at every position."""

    def __call__(self, hidden: jax.Array, *, dropout: DropoutKeys | None = None) -> jax.Array:
        """hidden [rows, length, hidden] → fp32 [rows, length, num_outputs]."""
        return self.output(self.transform(hidden, dropout)).astype(jnp.float32)


class SpanHead(TokenHead):
    """Two logits at every position: how well an answer begins, and ends, there."""


class MaskedLMHead(_Transform):
    """Logits over the vocabulary, by the backbone's word embedding table (not a copy of it) and a bias."""

    def __init__(self, spec: HeadSpec, hidden_size: int, vocab_size: int, *, dtype: Any = jnp.float32, rngs: nnx.Rngs):
        super().__init__(spec, hidden_size, dtype, rngs)
        bias = jnp.zeros((vocab_size,), jnp.float32)
        self.bias = nnx.Param(bias, axes=("vocab",)) if spec.output_bias else None
        draw = _init(spec, spec.initializer_range)
        self.table = (
            None if spec.tied else nnx.Param(draw(rngs.params(), (vocab_size, hidden_size)), axes=("vocab", "embed"))
        )
        self.dtype = dtype

    def output(self, backbone: Any) -> tuple[jax.Array, jax.Array | None]:
        """What follows `transform`: the table [vocab_size, hidden_size], and the bias [vocab_size] or None."""
        table = backbone.word_embedding_table if self.table is None else self.table[...]
        return table, None if self.bias is None else self.bias[...]

    def __call__(self, backbone: Any, hidden: jax.Array) -> jax.Array:
        """hidden [..., hidden_size] -> fp32 logits [..., vocab_size]. A loss never needs them: see `losses`."""
        table, bias = self.output(backbone)
        x = self.transform(hidden, None)
        logits = jnp.einsum("...h,vh->...v", x, table.astype(self.dtype), preferred_element_type=jnp.float32)
        return logits if bias is None else logits + bias


class LMHead(nnx.Module):
    """Logits of the next token, by the backbone's embedding table or a table of its own."""

    def __init__(
        self, spec: LMHeadSpec, hidden_size: int, vocab_size: int, *, dtype: Any = jnp.float32, rngs: nnx.Rngs
    ):
        init = normal(spec.initializer_range)
        self.table = (
            None if spec.tied else nnx.Param(init(rngs.params(), (vocab_size, hidden_size)), axes=("vocab", "embed"))
        )
        self.bias = nnx.Param(jnp.zeros((vocab_size,), jnp.float32), axes=("vocab",)) if spec.bias else None
        self.spec = spec
        self.dtype = dtype

    def output(self, backbone: Any) -> tuple[jax.Array, jax.Array | None]:
        """The table [vocab_size, hidden_size] and the bias [vocab_size], or None."""
        table = backbone.word_embedding_table if self.table is None else self.table[...]
        return table, None if self.bias is None else self.bias[...]

    def __call__(self, backbone: Any, hidden: jax.Array) -> jax.Array:
        """hidden [..., hidden_size] -> fp32 logits [..., vocab_size]. A loss never needs them: see `losses`."""
        table, bias = self.output(backbone)
        x = (hidden * self.spec.scale).astype(self.dtype)
        logits = jnp.einsum("...h,vh->...v", x, table.astype(self.dtype), preferred_element_type=jnp.float32)
        logits = logits if bias is None else logits + bias
        cap = self.spec.soft_cap
        return logits if cap is None else cap * jnp.tanh(logits / cap)


HEADS: dict[str, Any] = {
    "sequence": SequenceHead,
    "token": TokenHead,
    "span": SpanHead,
    "mlm": MaskedLMHead,
    "lm": LMHead,
}


def head_kind(head: Any) -> str | None:
    """The kind of one of HuggingFace's heads; None for a head that is ours alone."""
    return next((kind for kind, cls in HEADS.items() if type(head) is cls), None)
