"""ModernBERT (Warner et al., 2024): pre-norm, rotary positions, GeGLU, local and global attention."""

import math
from dataclasses import dataclass

import jax
from flax import nnx
from jax.typing import DTypeLike

from instructrec_jax.backbones.attention import attention
from instructrec_jax.backbones.encoder import check_positions
from instructrec_jax.backbones.family import Backbone, Family, Head, HeadSpec, Rule, embedding, linear, norm, refuse
from instructrec_jax.backbones.layers import (
    DropoutKeys,
    Embedding,
    LayerNorm,
    Linear,
    Stack,
    StackOptions,
    activation,
    dropout,
    truncated_normal,
)
from instructrec_jax.backbones.rope import Rope, read_rope, rotate, rotation
from instructrec_jax.hf_types import PretrainedConfig

GLOBAL, LOCAL = "full_attention", "sliding_attention"


@dataclass(frozen=True)
class ModernBertSpec:
    """Sizes and variants of a `ModernBert`."""

    vocab_size: int
    hidden_size: int
    layer_types: tuple[str, ...]
    num_heads: int
    mlp_size: int
    activation: str
    eps: float
    norm_bias: bool
    attention_bias: bool
    mlp_bias: bool
    window: int  # maximum distance of keys in local layers, in each direction
    padding_id: int | None
    embedding_dropout: float
    attention_dropout: float
    mlp_dropout: float
    initializer_range: float
    output_range: float  # initializer_range of the layers that write to the residual stream
    initializer_cutoff: float


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Context:
    """The inputs of every layer besides the hidden states; rotations (cos, sin) are by attention type."""

    segment_ids: jax.Array
    positions: jax.Array
    rotations: dict[str, tuple[jax.Array, jax.Array]]


class Layer(nnx.Module):
    """x = x + attention(norm(x)); x = x + mlp(norm(x)). The first layer has no norm before attention."""

    def __init__(self, kind: tuple[str, bool], spec: ModernBertSpec, dtype: DTypeLike, rngs: nnx.Rngs):
        self.attention_type, is_first = kind
        self.spec = spec
        self.weights: nnx.Param[jax.Array] | None = nnx.data(None)  # see `attention`
        width, mlp = spec.hidden_size, spec.mlp_size
        init = truncated_normal(spec.initializer_range, spec.initializer_cutoff)
        init_out = truncated_normal(spec.output_range, spec.initializer_cutoff)

        def layer_norm() -> LayerNorm:
            return LayerNorm(width, eps=spec.eps, use_bias=spec.norm_bias, dtype=dtype)

        self.attention_norm = None if is_first else layer_norm()
        self.qkv = Linear(
            width,
            width,
            parts=3,
            axes=("embed", "heads"),
            init=init,
            use_bias=spec.attention_bias,
            dtype=dtype,
            rngs=rngs,
        )
        self.attention_output = Linear(
            width,
            width,
            axes=("heads", "embed"),
            init=init_out,
            use_bias=spec.attention_bias,
            dtype=dtype,
            rngs=rngs,
        )
        self.mlp_norm = layer_norm()
        self.mlp_in = Linear(
            width,
            mlp,
            parts=2,
            axes=("embed", "mlp"),
            init=init,
            use_bias=spec.mlp_bias,
            dtype=dtype,
            rngs=rngs,
        )
        self.mlp_out = Linear(
            mlp, width, axes=("mlp", "embed"), init=init_out, use_bias=spec.mlp_bias, dtype=dtype, rngs=rngs
        )

    def __call__(self, x: jax.Array, context: Context, keys: DropoutKeys | None) -> jax.Array:
        def site(number: int) -> DropoutKeys | None:
            return None if keys is None else keys.fold(number)

        spec = self.spec
        y = x if self.attention_norm is None else self.attention_norm(x)
        y = self.qkv(y, keys).reshape(*x.shape[:2], 3, spec.num_heads, -1)
        q, k, v = y[:, :, 0], y[:, :, 1], y[:, :, 2]
        rotation = context.rotations[self.attention_type]
        y = attention(
            rotate(q, rotation),
            rotate(k, rotation),
            v,
            segment_ids=context.segment_ids,
            positions=context.positions,
            window=spec.window if self.attention_type == LOCAL else None,
            dropout_rate=spec.attention_dropout,
            dropout_keys=site(0),
            weights=self.weights,
        )
        y = self.attention_output(y.reshape(x.shape), keys)
        x = x + dropout(y, spec.attention_dropout, site(1))
        y = self.mlp_in(self.mlp_norm(x), keys)
        y = activation(spec.activation)(y[:, :, 0]) * y[:, :, 1]
        return x + self.mlp_out(dropout(y, spec.mlp_dropout, site(2)), keys)


class ModernBert(Backbone):
    """ModernBERT's network. A call takes int32 [rows, length] arrays (see `Family`); token types are ignored."""

    def __init__(
        self,
        spec: ModernBertSpec,
        *,
        max_length: int,
        ropes: dict[str, Rope],
        dtype: DTypeLike,
        stack: StackOptions,
        rngs: nnx.Rngs,
    ):
        activation(spec.activation)
        if spec.hidden_size % spec.num_heads:
            raise ValueError(
                f"config.json: the hidden size, {spec.hidden_size}, must be a multiple of the number of attention "
                f"heads, {spec.num_heads}."
            )
        init = truncated_normal(spec.initializer_range, spec.initializer_cutoff)
        self.word_embeddings = Embedding(
            spec.vocab_size, spec.hidden_size, init=init, padding_id=spec.padding_id, dtype=dtype, rngs=rngs
        )
        self.embedding_norm = LayerNorm(spec.hidden_size, eps=spec.eps, use_bias=spec.norm_bias, dtype=dtype)
        self.layers = Stack(
            [(kind, i == 0) for i, kind in enumerate(spec.layer_types)],
            lambda kind, rngs: Layer(kind, spec, dtype, rngs),
            options=stack,
            rngs=rngs,
        )
        self.final_norm = LayerNorm(spec.hidden_size, eps=spec.eps, use_bias=spec.norm_bias, dtype=dtype)
        self.spec = spec
        self.ropes = tuple(sorted(ropes.items()))
        self.hidden_size = spec.hidden_size
        self.vocab_size = spec.vocab_size
        self.max_length = max_length

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
        x = self.embedding_norm(self.word_embeddings(tokens, dropout))
        x = _dropout(x, self.spec.embedding_dropout, None if dropout is None else dropout.fold(0))
        rotations = {kind: rotation(positions, rope) for kind, rope in self.ropes}
        return self.final_norm(self.layers(x, Context(segment_ids, positions, rotations), dropout))


_dropout = dropout  # `dropout` names the keys in the call signature above


def output_range(config: PretrainedConfig) -> float:
    """Initial standard deviation of layers that write to the residual stream; smaller for deeper networks."""
    return config.initializer_range / math.sqrt(2.0 * config.num_hidden_layers)


def build(config: PretrainedConfig, *, dtype: DTypeLike, stack: StackOptions, pooler: bool, rngs: nnx.Rngs) -> Backbone:
    head_dim = config.hidden_size // config.num_attention_heads
    refuse(
        config,
        position_embedding_type="absolute",
        is_decoder=False,
        add_cross_attention=False,
        head_dim=head_dim,
    )
    unknown = set(config.layer_types) - {GLOBAL, LOCAL}
    if unknown or len(config.layer_types) != config.num_hidden_layers:
        raise ValueError(
            f"config.json: layer_types is {config.layer_types}, but must have {config.num_hidden_layers} values out of "
            f"{GLOBAL!r} and {LOCAL!r}."
        )
    spec = ModernBertSpec(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        layer_types=tuple(config.layer_types),
        num_heads=config.num_attention_heads,
        mlp_size=int(config.intermediate_size),
        activation=config.hidden_activation,
        eps=config.norm_eps,
        norm_bias=config.norm_bias,
        attention_bias=config.attention_bias,
        mlp_bias=config.mlp_bias,
        window=config.local_attention // 2,
        padding_id=config.pad_token_id,
        embedding_dropout=config.embedding_dropout,
        attention_dropout=config.attention_dropout,
        mlp_dropout=config.mlp_dropout,
        initializer_range=config.initializer_range,
        output_range=output_range(config),
        initializer_cutoff=config.initializer_cutoff_factor or 3.0,
    )
    return ModernBert(
        spec,
        max_length=config.max_position_embeddings,
        ropes={kind: read_rope(config, kind) for kind in set(config.layer_types)},
        dtype=dtype,
        stack=stack,
        rngs=rngs,
    )


LAYER = "layers.{layer}"
MAPPING = (
    *embedding("embeddings.tok_embeddings", "word_embeddings"),
    *norm("embeddings.norm", "embedding_norm"),
    *norm(f"{LAYER}.attn_norm", "layers.{layer}.attention_norm"),
    *linear(f"{LAYER}.attn.Wqkv", "layers.{layer}.qkv", parts=3),
    *linear(f"{LAYER}.attn.Wo", "layers.{layer}.attention_output"),
    *norm(f"{LAYER}.mlp_norm", "layers.{layer}.mlp_norm"),
    *linear(f"{LAYER}.mlp.Wi", "layers.{layer}.mlp_in", parts=2),
    *linear(f"{LAYER}.mlp.Wo", "layers.{layer}.mlp_out"),
    *norm("final_norm", "final_norm"),
)


def classifier_head(config: PretrainedConfig) -> HeadSpec:
    return HeadSpec(
        dropout=config.classifier_dropout,
        pooling=config.classifier_pooling,
        dense=True,
        dense_bias=config.classifier_bias,
        activation=config.classifier_activation,
        norm=True,
        norm_eps=config.norm_eps,
        norm_bias=config.norm_bias,
        initializer_range=output_range(config),
        output_range=config.hidden_size**-0.5,
        initializer_cutoff=config.initializer_cutoff_factor or 3.0,
    )


def mlm_head(config: PretrainedConfig) -> HeadSpec:
    return HeadSpec(
        dense=True,
        dense_bias=config.classifier_bias,
        activation=config.classifier_activation,
        norm=True,
        norm_eps=config.norm_eps,
        norm_bias=config.norm_bias,
        output_bias=config.decoder_bias,
        tied=config.tie_word_embeddings,
        initializer_range=output_range(config),
        initializer_cutoff=config.initializer_cutoff_factor or 3.0,
    )


TRANSFORM = (*linear("head.dense", "dense"), *norm("head.norm", "norm"))

FAMILY = Family(
    build=build,
    prefix="model.",
    mapping=MAPPING,
    heads={
        "sequence": Head("ForSequenceClassification", classifier_head, (*TRANSFORM, *linear("classifier", "output"))),
        "token": Head("ForTokenClassification", classifier_head, (*TRANSFORM, *linear("classifier", "output"))),
        "span": Head("ForQuestionAnswering", classifier_head, (*TRANSFORM, *linear("classifier", "output"))),
        "mlm": Head(
            "ForMaskedLM",
            mlm_head,
            (*TRANSFORM, Rule("decoder.weight", "table"), Rule("decoder.bias", "bias")),
        ),
    },
    base_class="ModernBertModel",
)
