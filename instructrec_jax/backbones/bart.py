"""BART (Lewis et al., 2020): post-norm layers, learned positions, biases everywhere.

Its layers, with the norms in front, are also Whisper's.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
from flax import nnx
from jax.typing import DTypeLike

from instructrec_jax.backbones.family import Backbone, Family, Head, LMHeadSpec, Rule, embedding, linear, norm, refuse
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

POSITION_OFFSET = 2  # the first token's row in the position table
EPS = 1e-5


@dataclass(frozen=True)
class BartSpec:
    """Sizes of the encoder or of the decoder."""

    attention: AttentionSpec
    decoder: bool
    num_layers: int
    mlp_size: int
    activation: str
    max_length: int
    embedding_scale: float
    dropout: float
    activation_dropout: float
    initializer_range: float
    pre_norm: bool = False  # x + f(norm(x)) in place of norm(x + f(x))
    position_offset: int = POSITION_OFFSET


class Layer(nnx.Module):
    """x = norm(x + attention(x)); in a decoder x = norm(x + cross_attention(x)); x = norm(x + mlp(x)).

    Or, with `BartSpec.pre_norm`, x + attention(norm(x)), and so on.
    """

    def __init__(self, spec: BartSpec, dtype: DTypeLike, rngs: nnx.Rngs):
        width, init = spec.attention.hidden_size, normal(spec.initializer_range)

        def norm() -> LayerNorm:
            return LayerNorm(width, eps=EPS, dtype=dtype)

        self.attention = SelfAttention(spec.attention, spec.decoder, dtype, rngs)
        self.attention_norm = norm()
        self.cross_attention = CrossAttention(spec.attention, dtype, rngs) if spec.decoder else None
        self.cross_norm = norm() if spec.decoder else None
        self.mlp_in = Linear(width, spec.mlp_size, axes=("embed", "mlp"), init=init, dtype=dtype, rngs=rngs)
        self.mlp_out = Linear(spec.mlp_size, width, axes=("mlp", "embed"), init=init, dtype=dtype, rngs=rngs)
        self.mlp_norm = norm()
        self.spec = spec

    def __call__(
        self, x: jax.Array, context: Context, keys: DropoutKeys | None, cache: dict[str, jax.Array] | None = None
    ) -> jax.Array | tuple[jax.Array, dict[str, jax.Array]]:
        rate, pre = self.spec.dropout, self.spec.pre_norm

        def site(number: int) -> DropoutKeys | None:
            return None if keys is None else keys.fold(number)

        def read(x: jax.Array, norm: LayerNorm) -> jax.Array:
            return norm(x) if pre else x

        def added(x: jax.Array, y: jax.Array, norm: LayerNorm) -> jax.Array:
            return x + y if pre else norm(x + y)

        y, entries = self.attention(read(x, self.attention_norm), context, site(0), cache)
        x = added(x, dropout(y, rate, site(1)), self.attention_norm)
        if self.cross_attention is not None and self.cross_norm is not None:
            y, more = self.cross_attention(read(x, self.cross_norm), context, site(2), cache)
            x, entries = added(x, dropout(y, rate, site(3)), self.cross_norm), entries | more
        y = activation(self.spec.activation)(self.mlp_in(read(x, self.mlp_norm), keys))
        y = self.mlp_out(dropout(y, self.spec.activation_dropout, site(4)), keys)
        x = added(x, dropout(y, rate, site(5)), self.mlp_norm)
        return x if cache is None else (x, entries)


class Side(nnx.Module):
    """The encoder or the decoder: word embeddings -> hidden states.

    Args:
        layer: makes a layer of a spec, called as a `Layer`.
    """

    def __init__(
        self,
        spec: BartSpec,
        *,
        dtype: DTypeLike,
        stack: StackOptions,
        rngs: nnx.Rngs,
        layer: Callable[[BartSpec, DTypeLike, nnx.Rngs], nnx.Module] = Layer,
    ):
        width = spec.attention.hidden_size
        self.position_embeddings = Embedding(
            spec.max_length + spec.position_offset,
            width,
            init=normal(spec.initializer_range),
            axes=(None, "embed"),
            dtype=dtype,
            rngs=rngs,
        )
        self.embedding_norm = LayerNorm(width, eps=EPS, dtype=dtype)
        self.layers = Stack(
            ["layer"] * spec.num_layers, lambda kind, rngs: layer(spec, dtype, rngs), options=stack, rngs=rngs
        )
        self.spec = spec

    def __call__(
        self, x: jax.Array, context: Context, dropout: DropoutKeys | None, cache: LayerCache
    ) -> tuple[jax.Array, LayerCache]:
        x = x * self.spec.embedding_scale + self.position_embeddings(context.positions + self.spec.position_offset)
        x = self.embedding_norm(x)
        x = _dropout(x, self.spec.dropout, None if dropout is None else dropout.fold(0))
        if cache is None:
            return self.layers(x, context, dropout), cache
        return self.layers(x, context, dropout, cache, context.index)


_dropout = dropout  # `dropout` names the keys in the call signature above


def _refuse_variants(config: PretrainedConfig) -> None:
    refuse(
        config,
        is_encoder_decoder=True,
        is_decoder=False,
        tie_word_embeddings=True,
        tie_encoder_decoder=False,
        pruned_heads=({}, []),
        # fields of old files that transformers no longer reads
        normalize_before=False,
        normalize_embedding=True,
        add_final_layer_norm=False,
        static_position_embeddings=False,
        extra_pos_embeddings=POSITION_OFFSET,
    )
    for name in ("encoder_layerdrop", "decoder_layerdrop"):
        if getattr(config, name):
            raise ValueError(
                f"config.json has {name}={getattr(config, name)}, but layer dropout is not implemented: set {name} to "
                "0.0 to train without it (nothing else depends on it)."
            )


def side_spec(config: PretrainedConfig, side: str, max_length: int) -> BartSpec:
    """The spec of the "encoder" or "decoder", for texts of at most `max_length` tokens."""
    width, std = config.d_model, config.init_std
    heads = getattr(config, f"{side}_attention_heads")
    if width % heads:
        raise ValueError(f"config.json: d_model is {width}, but must be a multiple of {side}_attention_heads, {heads}.")
    return BartSpec(
        attention=AttentionSpec(
            hidden_size=width,
            num_heads=heads,
            head_dim=width // heads,
            scale=(width // heads) ** -0.5,
            use_bias=True,
            dropout=config.attention_dropout,
            query_range=std,
            key_range=std,
            output_range=std,
        ),
        decoder=side == "decoder",
        num_layers=getattr(config, f"{side}_layers"),
        mlp_size=getattr(config, f"{side}_ffn_dim"),
        activation=config.activation_function,
        max_length=max_length,
        embedding_scale=math.sqrt(width) if config.scale_embedding else 1.0,
        dropout=config.dropout,
        activation_dropout=config.activation_dropout,
        initializer_range=std,
    )


def build(config: PretrainedConfig, *, dtype: DTypeLike, stack: StackOptions, pooler: bool, rngs: nnx.Rngs) -> Backbone:
    _refuse_variants(config)
    activation(config.activation_function)
    encoder, decoder = (side_spec(config, side, config.max_position_embeddings) for side in ("encoder", "decoder"))
    init, padding_id = normal(config.init_std), config.pad_token_id
    table = Embedding(config.vocab_size, config.d_model, init=init, padding_id=padding_id, dtype=dtype, rngs=rngs)
    return EncoderDecoder(
        table,
        Side(encoder, dtype=dtype, stack=encoder_options(stack), rngs=rngs),
        Side(decoder, dtype=dtype, stack=stack, rngs=rngs),
        cache_shape=(decoder.attention.num_heads, decoder.attention.head_dim),
        max_length=config.max_position_embeddings,
        dtype=dtype,
    )


def attention_rules(name: str, path: str) -> tuple[Rule, ...]:
    names = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "out_proj": "output"}
    return tuple(rule for theirs, ours in names.items() for rule in linear(f"{name}.{theirs}", f"{path}.{ours}"))


def layer_rules(side: str) -> tuple[Rule, ...]:
    """The tensor names of a layer of the "encoder" or "decoder"."""
    layer = f"{side}.layers.{{layer}}"
    cross = (
        *attention_rules(f"{layer}.encoder_attn", f"{layer}.cross_attention"),
        *norm(f"{layer}.encoder_attn_layer_norm", f"{layer}.cross_norm"),
    )
    return (
        *attention_rules(f"{layer}.self_attn", f"{layer}.attention"),
        *norm(f"{layer}.self_attn_layer_norm", f"{layer}.attention_norm"),
        *(cross if side == "decoder" else ()),
        *linear(f"{layer}.fc1", f"{layer}.mlp_in"),
        *linear(f"{layer}.fc2", f"{layer}.mlp_out"),
        *norm(f"{layer}.final_layer_norm", f"{layer}.mlp_norm"),
    )


def side_rules(side: str) -> tuple[Rule, ...]:
    return (
        *embedding(f"{side}.embed_positions", f"{side}.position_embeddings"),
        *norm(f"{side}.layernorm_embedding", f"{side}.embedding_norm"),
        *layer_rules(side),
    )


def lm_head(config: PretrainedConfig) -> LMHeadSpec:
    return LMHeadSpec(bias=True, initializer_range=config.init_std)


FAMILY = Family(
    build=build,
    prefix="model.",
    mapping=(
        Rule(
            "shared.weight",
            "word_embeddings.table",
            copies=("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"),
        ),
        *side_rules("encoder"),
        *side_rules("decoder"),
    ),
    heads={
        "lm": Head(
            "ForConditionalGeneration",
            lm_head,
            (Rule("lm_head.weight", "table"), Rule("final_logits_bias", "bias", "row")),
        )
    },
    base_class="BartModel",
    kind="encoder_decoder",
)
