"""GPT-2 (Radford et al., 2019)."""

import math
from dataclasses import dataclass
from typing import overload

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from instructrec_jax.backbones.attention import attention
from instructrec_jax.backbones.decoder import Context, DecoderCache, empty_cache, run_layers
from instructrec_jax.backbones.family import Backbone, Family, Head, HeadSpec, Rule, embedding, linear, norm, refuse
from instructrec_jax.backbones.key_value_cache import extended
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
from instructrec_jax.backbones.llama import LM_RULES, lm_head, sequence_head, token_dropout
from instructrec_jax.hf_types import PretrainedConfig


@dataclass(frozen=True)
class GPT2Spec:
    """Sizes and variants of a `GPT2`."""

    vocab_size: int
    hidden_size: int
    attention_scales: tuple[float, ...]  # per layer: factor of its attention scores
    num_heads: int
    mlp_size: int
    activation: str
    eps: float
    max_length: int
    embedding_dropout: float
    attention_dropout: float
    residual_dropout: float
    initializer_range: float

    @property
    def output_range(self) -> float:
        """Initial standard deviation of layers that write to the residual stream; smaller for deeper networks."""
        return self.initializer_range / math.sqrt(2 * len(self.attention_scales))


class Layer(nnx.Module):
    """x = x + attention(norm(x)); x = x + mlp(norm(x))."""

    def __init__(self, attention_scale: float, spec: GPT2Spec, dtype: DTypeLike, rngs: nnx.Rngs):
        width, mlp = spec.hidden_size, spec.mlp_size
        init, init_out = normal(spec.initializer_range), normal(spec.output_range)
        self.attention_norm = LayerNorm(width, eps=spec.eps, dtype=dtype)
        self.qkv = Linear(width, width, parts=3, axes=("embed", "heads"), init=init, dtype=dtype, rngs=rngs)
        self.attention_output = Linear(width, width, axes=("heads", "embed"), init=init_out, dtype=dtype, rngs=rngs)
        self.mlp_norm = LayerNorm(width, eps=spec.eps, dtype=dtype)
        self.mlp_in = Linear(width, mlp, axes=("embed", "mlp"), init=init, dtype=dtype, rngs=rngs)
        self.mlp_out = Linear(mlp, width, axes=("mlp", "embed"), init=init_out, dtype=dtype, rngs=rngs)
        self.attention_scale = attention_scale
        self.spec = spec
        self.weights: nnx.Param[jax.Array] | None = nnx.data(None)  # see `attention`

    def __call__(
        self,
        x: jax.Array,
        context: Context,
        keys: DropoutKeys | None,
        cache: dict[str, jax.Array] | None = None,
    ) -> jax.Array | tuple[jax.Array, dict[str, jax.Array]]:
        def site(number: int) -> DropoutKeys | None:
            return None if keys is None else keys.fold(number)

        spec = self.spec
        y = self.qkv(self.attention_norm(x), keys).reshape(*x.shape[:2], 3, spec.num_heads, -1)
        q, k, v = y[:, :, 0], y[:, :, 1], y[:, :, 2]
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
            causal=True,
            scale=self.attention_scale,
            dropout_rate=spec.attention_dropout,
            dropout_keys=site(0),
            weights=self.weights,
        )
        x = x + dropout(self.attention_output(y.reshape(x.shape), keys), spec.residual_dropout, site(1))
        y = self.mlp_out(activation(spec.activation)(self.mlp_in(self.mlp_norm(x), keys)), keys)
        x = x + dropout(y, spec.residual_dropout, site(2))
        return x if cache is None else (x, entries)


class GPT2(Backbone):
    """GPT-2's network. For the arguments of a call see `Family`; token types are ignored.

    Tokens beyond `max_length` or the cache's capacity raise an error or give NaN, see `run_layers`.
    """

    def __init__(self, spec: GPT2Spec, *, dtype: DTypeLike, stack: StackOptions, rngs: nnx.Rngs):
        activation(spec.activation)
        if spec.hidden_size % spec.num_heads:
            raise ValueError(
                f"config.json: the hidden size, {spec.hidden_size}, must be a multiple of the number of attention "
                f"heads, {spec.num_heads}."
            )
        init = normal(spec.initializer_range)
        self.word_embeddings = Embedding(spec.vocab_size, spec.hidden_size, init=init, dtype=dtype, rngs=rngs)
        self.position_embeddings = Embedding(
            spec.max_length, spec.hidden_size, init=init, axes=(None, "embed"), dtype=dtype, rngs=rngs
        )
        self.layers = Stack(
            spec.attention_scales,
            lambda scale, rngs: Layer(scale, spec, dtype, rngs),
            options=stack,
            rngs=rngs,
        )
        self.final_norm = LayerNorm(spec.hidden_size, eps=spec.eps, dtype=dtype)
        self.spec = spec
        self.dtype = dtype
        self.hidden_size = spec.hidden_size
        self.vocab_size = spec.vocab_size
        self.max_length = spec.max_length

    def empty_cache(self, rows: int, capacity: int) -> DecoderCache:
        """A cache for `capacity` tokens per row, in the dtype of the activations, or in int8."""
        heads = self.spec.num_heads
        dim = self.hidden_size // heads
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
    ) -> jax.Array | tuple[jax.Array, DecoderCache]:
        # `run_layers` sets outputs beyond the table to NaN; NaN inputs would spread over their row
        rows = jnp.minimum(positions, self.max_length - 1)
        x = self.word_embeddings(tokens, dropout) + self.position_embeddings(rows)
        x = _dropout(x, self.spec.embedding_dropout, None if dropout is None else dropout.fold(0))
        x, updated = run_layers(self.layers, x, segment_ids, positions, {}, self.max_length, dropout, cache)
        x = self.final_norm(x)
        return x if updated is None else (x, updated)


_dropout = dropout  # `dropout` names the keys in the call signature above


def build(config: PretrainedConfig, *, dtype: DTypeLike, stack: StackOptions, pooler: bool, rngs: nnx.Rngs) -> Backbone:
    # reorder_and_upcast_attn affects only rounding below fp32; scores are always computed in fp32 here
    refuse(config, add_cross_attention=False, is_causal=True, is_heterogeneous=False, pruned_heads=({}, []))
    scale = (config.n_embd // config.n_head) ** -0.5 if config.scale_attn_weights else 1.0
    layers = range(1, config.n_layer + 1)
    spec = GPT2Spec(
        vocab_size=config.vocab_size,
        hidden_size=config.n_embd,
        attention_scales=tuple(scale / n if config.scale_attn_by_inverse_layer_idx else scale for n in layers),
        num_heads=config.n_head,
        mlp_size=config.n_inner or 4 * config.n_embd,
        activation=config.activation_function,
        eps=config.layer_norm_epsilon,
        max_length=config.n_positions,
        embedding_dropout=config.embd_pdrop,
        attention_dropout=config.attn_pdrop,
        residual_dropout=config.resid_pdrop,
        initializer_range=config.initializer_range,
    )
    return GPT2(spec, dtype=dtype, stack=stack, rngs=rngs)


def conv1d(name: str, path: str, *, parts: int = 1) -> tuple[Rule, ...]:
    """The rules of a transformers Conv1D ↔ `layers.Linear`; the file's weight is [in, out] too."""
    transform = "none" if parts == 1 else "split"
    return Rule(f"{name}.weight", f"{path}.kernel", transform), Rule(f"{name}.bias", f"{path}.bias", transform)


LAYER = "h.{layer}"
MAPPING = (
    *embedding("wte", "word_embeddings"),
    *embedding("wpe", "position_embeddings"),
    *norm(f"{LAYER}.ln_1", "layers.{layer}.attention_norm"),
    *conv1d(f"{LAYER}.attn.c_attn", "layers.{layer}.qkv", parts=3),
    *conv1d(f"{LAYER}.attn.c_proj", "layers.{layer}.attention_output"),
    *norm(f"{LAYER}.ln_2", "layers.{layer}.mlp_norm"),
    *conv1d(f"{LAYER}.mlp.c_fc", "layers.{layer}.mlp_in"),
    *conv1d(f"{LAYER}.mlp.c_proj", "layers.{layer}.mlp_out"),
    *norm("ln_f", "final_norm"),
)


def token_head(config: PretrainedConfig) -> HeadSpec:
    return HeadSpec(dropout=token_dropout(config), initializer_range=config.initializer_range)


FAMILY = Family(
    build=build,
    prefix="transformer.",
    mapping=MAPPING,
    heads={
        "lm": Head("LMHeadModel", lm_head, LM_RULES),
        "sequence": Head("ForSequenceClassification", sequence_head, linear("score", "output")),
        "token": Head("ForTokenClassification", token_head, linear("classifier", "output")),
    },
    pooling="lasttoken",
    base_class="GPT2Model",
    kind="decoder",
)
