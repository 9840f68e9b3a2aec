"""T5 (Raffel et al., 2020), its version 1.1 and Flan-T5, and mT5 (Xue et al., 2021).

Pre-norm with RMSNorm, no biases, unscaled attention, and a relative position bias shared by all layers of the encoder
and by all layers of the decoder.
"""

from dataclasses import dataclass, replace

import jax
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from instructrec_jax.backbones.encoder import relative_bias, relative_buckets
from instructrec_jax.backbones.family import Backbone, Family, Head, LMHeadSpec, Rule, embedding, linear, norm, refuse
from instructrec_jax.backbones.layers import (
    DropoutKeys,
    Embedding,
    Linear,
    RMSNorm,
    Stack,
    StackOptions,
    activation,
    dropout,
    normal,
)
from instructrec_jax.backbones.seq2seq import (
    AttentionSpec,
    Context,
    CrossAttention,
    EncoderDecoder,
    LayerCache,
    SelfAttention,
    encoder_options,
)
from instructrec_jax.hf_types import PretrainedConfig

UNLIMITED = 2**31 - 1  # positions are int32, without a position table


@dataclass(frozen=True)
class T5Spec:
    """Sizes and variants of a T5."""

    attention: AttentionSpec
    mlp_size: int
    activation: str
    gated: bool
    eps: float
    num_buckets: int
    max_distance: int  # this and larger distances share a bucket
    dropout: float
    factor: float  # factor of the initial standard deviations


def make_norm(spec: T5Spec, dtype: DTypeLike) -> RMSNorm:
    norm = RMSNorm(spec.attention.hidden_size, eps=spec.eps, dtype=dtype)
    norm.scale[...] = norm.scale[...] * spec.factor
    return norm


class MLP(nnx.Module):
    """output(act(gate(x)) · up(x)), or output(act(input(x)))."""

    def __init__(self, spec: T5Spec, dtype: DTypeLike, rngs: nnx.Rngs):
        width, mlp = spec.attention.hidden_size, spec.mlp_size

        def linear(rows: int, columns: int, axes: tuple[str, str]) -> Linear:
            init = normal(spec.factor * rows**-0.5)
            return Linear(rows, columns, axes=axes, init=init, use_bias=False, dtype=dtype, rngs=rngs)

        self.input = None if spec.gated else linear(width, mlp, ("embed", "mlp"))
        self.gate = linear(width, mlp, ("embed", "mlp")) if spec.gated else None
        self.up = linear(width, mlp, ("embed", "mlp")) if spec.gated else None
        self.output = linear(mlp, width, ("mlp", "embed"))
        self.spec = spec

    def __call__(self, x: jax.Array, keys: DropoutKeys | None) -> jax.Array:
        act = activation(self.spec.activation)
        if self.input is not None:
            y = act(self.input(x, keys))
        else:
            assert self.gate is not None and self.up is not None
            y = act(self.gate(x, keys)) * self.up(x, keys)
        return self.output(dropout(y, self.spec.dropout, keys), keys)


class Layer(nnx.Module):
    """x += attention(norm(x)); in a decoder x += cross_attention(norm(x)); x += mlp(norm(x))."""

    def __init__(self, spec: T5Spec, decoder: bool, dtype: DTypeLike, rngs: nnx.Rngs):
        def norm() -> RMSNorm:
            return make_norm(spec, dtype)

        self.attention_norm = norm()
        self.attention = SelfAttention(spec.attention, decoder, dtype, rngs)
        self.cross_norm = norm() if decoder else None
        self.cross_attention = CrossAttention(spec.attention, dtype, rngs) if decoder else None
        self.mlp_norm = norm()
        self.mlp = MLP(spec, dtype, rngs)
        self.rate = spec.dropout

    def __call__(
        self, x: jax.Array, context: Context, keys: DropoutKeys | None, cache: dict[str, jax.Array] | None = None
    ) -> jax.Array | tuple[jax.Array, dict[str, jax.Array]]:
        def site(number: int) -> DropoutKeys | None:
            return None if keys is None else keys.fold(number)

        y, entries = self.attention(self.attention_norm(x), context, site(0), cache)
        x = x + dropout(y, self.rate, site(1))
        if self.cross_attention is not None and self.cross_norm is not None:
            y, more = self.cross_attention(self.cross_norm(x), context, site(2), cache)
            x, entries = x + dropout(y, self.rate, site(3)), entries | more
        x = x + dropout(self.mlp(self.mlp_norm(x), site(4)), self.rate, site(5))
        return x if cache is None else (x, entries)


class Side(nnx.Module):
    """The encoder or the decoder: word embeddings -> hidden states."""

    def __init__(
        self, spec: T5Spec, num_layers: int, *, decoder: bool, dtype: DTypeLike, stack: StackOptions, rngs: nnx.Rngs
    ):
        width, heads = spec.attention.hidden_size, spec.attention.num_heads
        init = normal(spec.factor * width**-0.5)
        self.relative_bias = Embedding(spec.num_buckets, heads, init=init, axes=(None, "heads"), rngs=rngs)
        self.layers = Stack(
            ["layer"] * num_layers, lambda kind, rngs: Layer(spec, decoder, dtype, rngs), options=stack, rngs=rngs
        )
        self.final_norm = make_norm(spec, dtype)
        self.decoder = decoder
        self.spec = spec

    def __call__(
        self, x: jax.Array, context: Context, dropout: DropoutKeys | None, cache: LayerCache
    ) -> tuple[jax.Array, LayerCache]:
        spec = self.spec

        def drop(x: jax.Array, site: int) -> jax.Array:
            return _dropout(x, spec.dropout, None if dropout is None else dropout.fold(site))

        buckets = relative_buckets(
            np.arange(-spec.max_distance, spec.max_distance + 1),
            num_buckets=spec.num_buckets,
            max_distance=spec.max_distance,
            bidirectional=not self.decoder,
        )
        bias = relative_bias(self.relative_bias, buckets, context.positions, context.key_positions)
        context = replace(context, bias=bias)
        x = drop(x, 0)
        if cache is None:
            x = self.layers(x, context, dropout)
        else:
            x, cache = self.layers(x, context, dropout, cache, context.index)
        return drop(self.final_norm(x), self.layers.num_layers + 1), cache


_dropout = dropout  # `dropout` names the keys in the call signature above


def build(config: PretrainedConfig, *, dtype: DTypeLike, stack: StackOptions, pooler: bool, rngs: nnx.Rngs) -> Backbone:
    refuse(config, is_encoder_decoder=True, is_decoder=False, tie_encoder_decoder=False, pruned_heads=({}, []))
    activation(config.dense_act_fn)
    exact = config.relative_attention_num_buckets // 4  # number of the encoder's distances with separate buckets
    if exact < 1 or config.relative_attention_max_distance <= config.relative_attention_num_buckets // 2:
        raise ValueError(
            f"config.json has relative_attention_num_buckets={config.relative_attention_num_buckets} and "
            f"relative_attention_max_distance={config.relative_attention_max_distance}, but needs at least 4 buckets "
            "and a distance greater than half their number."
        )
    width, factor = config.d_model, config.initializer_factor
    spec = T5Spec(
        attention=AttentionSpec(
            hidden_size=width,
            num_heads=config.num_heads,
            head_dim=config.d_kv,
            scale=1.0,
            use_bias=False,
            dropout=config.dropout_rate,
            query_range=factor * (width * config.d_kv) ** -0.5,
            key_range=factor * width**-0.5,
            output_range=factor * (config.num_heads * config.d_kv) ** -0.5,
        ),
        mlp_size=config.d_ff,
        activation=config.dense_act_fn,
        gated=config.is_gated_act,
        eps=config.layer_norm_epsilon,
        num_buckets=config.relative_attention_num_buckets,
        max_distance=config.relative_attention_max_distance,
        dropout=config.dropout_rate,
        factor=factor,
    )
    return EncoderDecoder(
        Embedding(config.vocab_size, width, init=normal(factor), dtype=dtype, rngs=rngs),
        Side(spec, config.num_layers, decoder=False, dtype=dtype, stack=encoder_options(stack), rngs=rngs),
        Side(spec, config.num_decoder_layers, decoder=True, dtype=dtype, stack=stack, rngs=rngs),
        cache_shape=(config.num_heads, config.d_kv),
        max_length=UNLIMITED,
        dtype=dtype,
    )


def attention_rules(name: str, path: str) -> tuple[Rule, ...]:
    names = {"q": "query", "k": "key", "v": "value", "o": "output"}
    return tuple(rule for theirs, ours in names.items() for rule in linear(f"{name}.{theirs}", f"{path}.{ours}"))


def side_rules(side: str) -> tuple[Rule, ...]:
    theirs, ours = f"{side}.block.{{layer}}.layer", f"{side}.layers.{{layer}}"
    cross, mlp = ("1", "2") if side == "decoder" else ("", "1")
    return (
        *embedding(f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias", f"{side}.relative_bias"),
        *norm(f"{theirs}.0.layer_norm", f"{ours}.attention_norm"),
        *attention_rules(f"{theirs}.0.SelfAttention", f"{ours}.attention"),
        *(norm(f"{theirs}.{cross}.layer_norm", f"{ours}.cross_norm") if cross else ()),
        *(attention_rules(f"{theirs}.{cross}.EncDecAttention", f"{ours}.cross_attention") if cross else ()),
        *norm(f"{theirs}.{mlp}.layer_norm", f"{ours}.mlp_norm"),
        *linear(f"{theirs}.{mlp}.DenseReluDense.wi", f"{ours}.mlp.input"),
        *linear(f"{theirs}.{mlp}.DenseReluDense.wi_0", f"{ours}.mlp.gate"),
        *linear(f"{theirs}.{mlp}.DenseReluDense.wi_1", f"{ours}.mlp.up"),
        *linear(f"{theirs}.{mlp}.DenseReluDense.wo", f"{ours}.mlp.output"),
        *norm(f"{side}.final_layer_norm", f"{side}.final_norm"),
    )


MAPPING = (
    Rule(
        "shared.weight",
        "word_embeddings.table",
        copies=("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"),
    ),
    *side_rules("encoder"),
    *side_rules("decoder"),
)


def lm_head(config: PretrainedConfig) -> LMHeadSpec:
    # T5 scales the input of a tied table; version 1.1 does not, and transformers 5 never does for mT5
    scaled = getattr(config, "scale_decoder_outputs", False)
    return LMHeadSpec(
        tied=config.tie_word_embeddings,
        scale=config.d_model**-0.5 if scaled else 1.0,
        initializer_range=config.initializer_factor,
    )


def family(base_class: str) -> Family:
    head = Head("ForConditionalGeneration", lm_head, (Rule("lm_head.weight", "table"),))
    return Family(
        build=build,
        prefix="",
        mapping=MAPPING,
        heads={"lm": head},
        base_class=base_class,
        kind="encoder_decoder",
        output_table="lm_head.weight",
    )


FAMILY = family("T5Model")
MT5_FAMILY = family("MT5Model")
