"""Gemma, Gemma 2 and the text network of Gemma 3 (Gemma Team, 2024, 2024 and 2025)."""

import dataclasses

from flax import nnx
from jax.typing import DTypeLike

from instructrec_jax.backbones.decoder import GLOBAL, LOCAL, Decoder, DecoderSpec, read_spec
from instructrec_jax.backbones.family import Backbone, Family, Rule, embedding, refuse
from instructrec_jax.backbones.layers import StackOptions
from instructrec_jax.backbones.llama import HEADS, LAYER, PROJECTIONS, family
from instructrec_jax.backbones.rope import Rope, read_rope
from instructrec_jax.hf_types import PretrainedConfig


def gemma1_spec(config: PretrainedConfig) -> DecoderSpec:
    return read_spec(
        config,
        activation=config.hidden_act,
        ropes={GLOBAL: read_rope(config)},
        layer_types=(GLOBAL,) * config.num_hidden_layers,
        qkv_bias=config.attention_bias,
        output_bias=config.attention_bias,
        norm_offset=1.0,
        embedding_scale=config.hidden_size**0.5,
    )


def gemma_spec(
    config: PretrainedConfig,
    ropes: dict[str, Rope],
    *,
    query_key_norm: bool = False,
    attention_soft_cap: float | None = None,
) -> DecoderSpec:
    return read_spec(
        config,
        activation=config.hidden_activation,
        ropes=ropes,
        qkv_bias=config.attention_bias,
        output_bias=config.attention_bias,
        norm_offset=1.0,
        post_norms=True,
        embedding_scale=config.hidden_size**0.5,
        attention_scale=config.query_pre_attn_scalar**-0.5,
        query_key_norm=query_key_norm,
        attention_soft_cap=attention_soft_cap,
    )


def build_gemma2(
    config: PretrainedConfig, *, dtype: DTypeLike, stack: StackOptions, pooler: bool, rngs: nnx.Rngs
) -> Backbone:
    rope = read_rope(config)
    spec = gemma_spec(config, {GLOBAL: rope, LOCAL: rope}, attention_soft_cap=config.attn_logit_softcapping)
    return Decoder(spec, dtype=dtype, stack=stack, rngs=rngs)


def build_gemma3(
    config: PretrainedConfig, *, dtype: DTypeLike, stack: StackOptions, pooler: bool, rngs: nnx.Rngs
) -> Backbone:
    # transformers reads the field without using it, so its meaning in a checkpoint is unknown
    refuse(config, attn_logit_softcapping=None)
    ropes = {kind: read_rope(config, kind) for kind in (GLOBAL, LOCAL)}
    return Decoder(gemma_spec(config, ropes, query_key_norm=True), dtype=dtype, stack=stack, rngs=rngs)


MAPPING = (
    *embedding("embed_tokens", "word_embeddings"),
    *PROJECTIONS,
    Rule(f"{LAYER}.input_layernorm.weight", "layers.{layer}.attention_norm.scale"),
    Rule(f"{LAYER}.post_attention_layernorm.weight", "layers.{layer}.attention_post_norm.scale"),
    Rule(f"{LAYER}.pre_feedforward_layernorm.weight", "layers.{layer}.mlp_norm.scale"),
    Rule(f"{LAYER}.post_feedforward_layernorm.weight", "layers.{layer}.mlp_post_norm.scale"),
    Rule("norm.weight", "final_norm.scale"),
)

GEMMA_FAMILY = family(gemma1_spec, "GemmaModel")  # its tensors have Llama's names
GEMMA2_FAMILY = Family(
    build=build_gemma2,
    prefix="model.",
    mapping=MAPPING,
    heads=HEADS,
    pooling="lasttoken",
    base_class="Gemma2Model",
    kind="decoder",
)
# The classes are Gemma3TextModel and Gemma3TextForSequenceClassification, but Gemma3ForCausalLM.
GEMMA3_FAMILY = Family(
    build=build_gemma3,
    prefix="model.",
    mapping=MAPPING,
    heads={
        "lm": dataclasses.replace(HEADS["lm"], architecture="Gemma3ForCausalLM"),
        "sequence": HEADS["sequence"],
    },
    pooling="lasttoken",
    base_class="Gemma3TextModel",
    kind="decoder",
)
