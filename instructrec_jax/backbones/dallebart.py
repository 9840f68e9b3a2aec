"""DalleBart, the encoder–decoder of dalle-mini and dalle-mega: text tokens → the codes of a VQGAN.

BART with NormFormer's norms (Shleifer et al., 2021) around attention, gated linear units, no biases but those of norms,
and two vocabularies. Names and layouts of tensors are those of dalle-mini's Flax files, flattened with dots
(docs/images.md); these hold all layers of a side in one tensor.
"""

from dataclasses import replace

import jax
from flax import nnx
from jax.typing import DTypeLike

from instructrec_jax.backbones import bart
from instructrec_jax.backbones.bart import EPS, BartSpec
from instructrec_jax.backbones.family import Backbone, Family, Head, LMHeadSpec, Rule, refuse
from instructrec_jax.backbones.layers import (
    DropoutKeys,
    Embedding,
    LayerNorm,
    Linear,
    StackOptions,
    activation,
    dropout,
    normal,
)
from instructrec_jax.backbones.seq2seq import (
    Context,
    CrossAttention,
    EncoderDecoder,
    LayerCache,
    SelfAttention,
    encoder_options,
)
from instructrec_jax.hf_types import PretrainedConfig


class GatedUnit(nnx.Module):
    """output(norm(act(gate(x)) · up(x))) of a normalized x: a GLU (Shazeer, 2020), whose inside is normalized."""

    def __init__(self, spec: BartSpec, dtype: DTypeLike, rngs: nnx.Rngs):
        width, inner, init = spec.attention.hidden_size, spec.mlp_size, normal(spec.initializer_range)
        inside, outside = ("embed", "mlp"), ("mlp", "embed")
        self.input_norm = LayerNorm(width, eps=EPS, use_scale=False, dtype=dtype)
        self.gate = Linear(width, inner, axes=inside, init=init, use_bias=False, dtype=dtype, rngs=rngs)
        self.up = Linear(width, inner, axes=inside, init=init, use_bias=False, dtype=dtype, rngs=rngs)
        self.inner_norm = LayerNorm(inner, eps=EPS, use_scale=False, axes=("mlp",), dtype=dtype)
        self.output = Linear(inner, width, axes=outside, init=init, use_bias=False, dtype=dtype, rngs=rngs)
        self.spec = spec

    def __call__(self, x: jax.Array, keys: DropoutKeys | None, inner_keys: DropoutKeys | None) -> jax.Array:
        x = self.input_norm(x)
        y = self.inner_norm(activation(self.spec.activation)(self.gate(x, keys)) * self.up(x, keys))
        return self.output(dropout(y, self.spec.activation_dropout, inner_keys), keys)


class Layer(nnx.Module):
    """x = x + after(attention(before(x))), in a decoder the same with cross-attention, then x = x + mlp(x)."""

    def __init__(self, spec: BartSpec, dtype: DTypeLike, rngs: nnx.Rngs):
        width = spec.attention.hidden_size

        def before() -> LayerNorm:  # a factor would be one of the linear layers behind it
            return LayerNorm(width, eps=EPS, use_scale=False, dtype=dtype)

        def after() -> LayerNorm:
            return LayerNorm(width, eps=EPS, dtype=dtype)

        self.attention = SelfAttention(spec.attention, spec.decoder, dtype, rngs)
        self.attention_norm, self.attention_output_norm = before(), after()
        self.cross_attention = CrossAttention(spec.attention, dtype, rngs) if spec.decoder else None
        self.cross_norm = before() if spec.decoder else None
        self.cross_output_norm = after() if spec.decoder else None
        self.mlp = GatedUnit(spec, dtype, rngs)
        self.spec = spec

    def __call__(
        self, x: jax.Array, context: Context, keys: DropoutKeys | None, cache: dict[str, jax.Array] | None = None
    ) -> jax.Array | tuple[jax.Array, dict[str, jax.Array]]:
        rate = self.spec.dropout

        def site(number: int) -> DropoutKeys | None:
            return None if keys is None else keys.fold(number)

        y, entries = self.attention(self.attention_norm(x), context, site(0), cache)
        x = x + dropout(self.attention_output_norm(y), rate, site(1))
        if self.cross_attention is not None:
            assert self.cross_norm is not None and self.cross_output_norm is not None
            y, more = self.cross_attention(self.cross_norm(x), context, site(2), cache)
            x, entries = x + dropout(self.cross_output_norm(y), rate, site(3)), entries | more
        x = x + dropout(self.mlp(x, keys, site(4)), rate, site(5))
        return x if cache is None else (x, entries)


class Side(bart.Side):
    """BART's encoder or decoder with these layers and a norm at the end."""

    def __init__(self, spec: BartSpec, *, dtype: DTypeLike, stack: StackOptions, rngs: nnx.Rngs):
        super().__init__(spec, dtype=dtype, stack=stack, rngs=rngs, layer=Layer)
        self.final_norm = LayerNorm(spec.attention.hidden_size, eps=EPS, use_scale=False, dtype=dtype)

    def __call__(
        self, x: jax.Array, context: Context, dropout: DropoutKeys | None, cache: LayerCache
    ) -> tuple[jax.Array, LayerCache]:
        x, cache = super().__call__(x, context, dropout, cache)
        return self.final_norm(x), cache


def _refuse_variants(config: PretrainedConfig) -> None:
    """What dalle-mini's code knows besides the published networks."""
    refuse(
        config,
        is_encoder_decoder=True,
        tie_word_embeddings=False,
        tie_encoder_decoder=False,
        ln_type="layernorm",
        ln_positions="normformer",
        force_ln_scale=False,
        use_final_ln_encoder=True,
        use_final_ln_decoder=True,
        use_glu=True,
        use_bias=False,
        use_scan=True,
        use_head_scale=False,
        head_scale=False,  # the same in older files
        use_cosine_attention=False,
        use_deepnet_scaling=False,
        use_alibi=False,
        use_absolute_position_embeddings=True,
        use_swin_position_embeddings=False,
        sinkhorn_iters=1,
        decoder_start_token_id=config.image_vocab_size,
    )


def _side_spec(config: PretrainedConfig, side: str) -> BartSpec:
    spec = bart.side_spec(config, side, config.max_text_length if side == "encoder" else config.image_length)
    return replace(spec, attention=replace(spec.attention, use_bias=False), position_offset=0)


def build(config: PretrainedConfig, *, dtype: DTypeLike, stack: StackOptions, pooler: bool, rngs: nnx.Rngs) -> Backbone:
    _refuse_variants(config)
    activation(config.activation_function)
    encoder, decoder = _side_spec(config, "encoder"), _side_spec(config, "decoder")

    def table(size: int) -> Embedding:
        return Embedding(size, config.d_model, init=normal(config.init_std), dtype=dtype, rngs=rngs)

    return EncoderDecoder(
        table(config.encoder_vocab_size),
        Side(encoder, dtype=dtype, stack=encoder_options(stack), rngs=rngs),
        Side(decoder, dtype=dtype, stack=stack, rngs=rngs),
        cache_shape=(decoder.attention.num_heads, decoder.attention.head_dim),
        max_length=config.max_text_length,
        max_target_length=config.image_length,
        dtype=dtype,
        decoder_embeddings=table(_outputs(config)),
    )


def _outputs(config: PretrainedConfig) -> int:
    """The codes, and the token that every image begins with."""
    return int(config.image_vocab_size) + 1


def lm_head(config: PretrainedConfig) -> LMHeadSpec:
    return LMHeadSpec(tied=False, initializer_range=config.init_std, size=_outputs(config))


# ---------------------------------------------------------------- tensor names


def _layers(side: str) -> str:
    """What the names of tensors of all layers begin with."""
    return f"{side}.layers.FlaxBart{side.title()}Layers."


def _norm(name: str, path: str, *, scale: bool) -> tuple[Rule, ...]:
    factor = (Rule(f"{name}.scale", f"{path}.scale"),) if scale else ()
    return (*factor, Rule(f"{name}.bias", f"{path}.bias"))


def _attention(name: str, path: str) -> tuple[Rule, ...]:
    names = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "out_proj": "output"}
    return tuple(Rule(f"{name}.{theirs}.kernel", f"{path}.{ours}.kernel") for theirs, ours in names.items())


def _side_rules(side: str) -> tuple[Rule, ...]:
    name, path = f"{_layers(side)}{{layer}}", f"{side}.layers.{{layer}}"
    words = "word_embeddings" if side == "encoder" else "decoder_embeddings"
    linears = {"Dense_0": "gate", "Dense_1": "up", "Dense_2": "output"}
    cross = (
        *_norm(f"{name}.LayerNorm_2", f"{path}.cross_norm", scale=False),
        *_attention(f"{name}.FlaxBartAttention_1", f"{path}.cross_attention"),
        *_norm(f"{name}.LayerNorm_3", f"{path}.cross_output_norm", scale=True),
    )
    return (
        Rule(f"{side}.embed_tokens.embedding", f"{words}.table"),
        Rule(f"{side}.embed_positions.embedding", f"{side}.position_embeddings.table"),
        *_norm(f"{side}.layernorm_embedding", f"{side}.embedding_norm", scale=True),
        *_norm(f"{name}.LayerNorm_0", f"{path}.attention_norm", scale=False),
        *_attention(f"{name}.FlaxBartAttention_0", f"{path}.attention"),
        *_norm(f"{name}.LayerNorm_1", f"{path}.attention_output_norm", scale=True),
        *(cross if side == "decoder" else ()),
        *_norm(f"{name}.GLU_0.LayerNorm_0", f"{path}.mlp.input_norm", scale=False),
        *(Rule(f"{name}.GLU_0.{theirs}.kernel", f"{path}.mlp.{ours}.kernel") for theirs, ours in linears.items()),
        *_norm(f"{name}.GLU_0.LayerNorm_1", f"{path}.mlp.inner_norm", scale=False),
        *_norm(f"{side}.final_ln", f"{side}.final_norm", scale=False),
    )


PREFIX = "model."
ARCHITECTURE = "DalleBart"
FAMILY = Family(
    build=build,
    prefix=PREFIX,
    mapping=(*_side_rules("encoder"), *_side_rules("decoder")),
    heads={
        "lm": Head("Bart", lm_head, (Rule("lm_head.kernel", "table", "transpose"),), architecture=ARCHITECTURE),
    },
    base_class="DalleBartModel",
    kind="encoder_decoder",
    stacked=tuple(PREFIX + _layers(side) for side in ("encoder", "decoder")),
    draws=True,
)
