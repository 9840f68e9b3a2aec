"""Llama (Touvron et al., 2023), Mistral (Jiang et al., 2023), Qwen2 and Qwen3 (Yang et al., 2024 and 2025)."""

from collections.abc import Callable

from flax import nnx
from jax.typing import DTypeLike

from instructrec_jax.backbones.decoder import GLOBAL, LOCAL, Decoder, DecoderSpec, read_spec
from instructrec_jax.backbones.family import (
    Backbone,
    Family,
    Head,
    HeadSpec,
    LMHeadSpec,
    Rule,
    embedding,
    linear,
    refuse,
)
from instructrec_jax.backbones.layers import StackOptions
from instructrec_jax.backbones.rope import read_rope
from instructrec_jax.hf_types import PretrainedConfig


def llama_spec(config: PretrainedConfig) -> DecoderSpec:
    refuse(config, layer_types=([GLOBAL] * config.num_hidden_layers,))
    return read_spec(
        config,
        activation=config.hidden_act,
        ropes={GLOBAL: read_rope(config)},
        layer_types=(GLOBAL,) * config.num_hidden_layers,
        qkv_bias=config.attention_bias,
        output_bias=config.attention_bias,
        mlp_bias=config.mlp_bias,
    )


def mistral_spec(config: PretrainedConfig) -> DecoderSpec:
    kind = GLOBAL if config.sliding_window is None else LOCAL
    refuse(config, layer_types=([kind] * config.num_hidden_layers,))
    return read_spec(
        config,
        activation=config.hidden_act,
        ropes={kind: read_rope(config)},
        layer_types=(kind,) * config.num_hidden_layers,
    )


def qwen2_spec(config: PretrainedConfig) -> DecoderSpec:
    refuse(config, use_mrope=False)
    rope = read_rope(config)
    return read_spec(config, activation=config.hidden_act, ropes={GLOBAL: rope, LOCAL: rope}, qkv_bias=True)


def qwen3_spec(config: PretrainedConfig) -> DecoderSpec:
    rope = read_rope(config)
    return read_spec(
        config,
        activation=config.hidden_act,
        ropes={GLOBAL: rope, LOCAL: rope},
        qkv_bias=config.attention_bias,
        output_bias=config.attention_bias,
        query_key_norm=True,
    )


LAYER = "layers.{layer}"
PROJECTIONS = (
    *linear(f"{LAYER}.self_attn.q_proj", "layers.{layer}.attention.query"),
    *linear(f"{LAYER}.self_attn.k_proj", "layers.{layer}.attention.key"),
    *linear(f"{LAYER}.self_attn.v_proj", "layers.{layer}.attention.value"),
    *linear(f"{LAYER}.self_attn.o_proj", "layers.{layer}.attention.output"),
    Rule(f"{LAYER}.self_attn.q_norm.weight", "layers.{layer}.attention.query_norm.scale"),
    Rule(f"{LAYER}.self_attn.k_norm.weight", "layers.{layer}.attention.key_norm.scale"),
    *linear(f"{LAYER}.mlp.gate_proj", "layers.{layer}.mlp_gate"),
    *linear(f"{LAYER}.mlp.up_proj", "layers.{layer}.mlp_in"),
    *linear(f"{LAYER}.mlp.down_proj", "layers.{layer}.mlp_out"),
)
MAPPING = (
    *embedding("embed_tokens", "word_embeddings"),
    *PROJECTIONS,
    Rule(f"{LAYER}.input_layernorm.weight", "layers.{layer}.attention_norm.scale"),
    Rule(f"{LAYER}.post_attention_layernorm.weight", "layers.{layer}.mlp_norm.scale"),
    Rule("norm.weight", "final_norm.scale"),
)


def lm_head(config: PretrainedConfig) -> LMHeadSpec:
    return LMHeadSpec(
        tied=config.tie_word_embeddings,
        soft_cap=getattr(config, "final_logit_softcapping", None),
        initializer_range=config.initializer_range,
    )


def sequence_head(config: PretrainedConfig) -> HeadSpec:
    return HeadSpec(pooling="lasttoken", output_bias=False, initializer_range=config.initializer_range)


def token_head(config: PretrainedConfig) -> HeadSpec:
    return HeadSpec(
        dropout=token_dropout(config),
        output_bias=getattr(config, "token_classification_bias", True),
        initializer_range=config.initializer_range,
    )


def token_dropout(config: PretrainedConfig) -> float:
    values = (getattr(config, name, None) for name in ("classifier_dropout", "hidden_dropout"))
    return next((value for value in values if value is not None), 0.1)


LM_RULES = (Rule("lm_head.weight", "table"),)
HEADS = {
    "lm": Head("ForCausalLM", lm_head, LM_RULES),
    "sequence": Head("ForSequenceClassification", sequence_head, linear("score", "output")),
    "token": Head("ForTokenClassification", token_head, linear("score", "output")),
}


def family(read: Callable[[PretrainedConfig], DecoderSpec], base_class: str) -> Family:
    """A Llama-like family; `read(config)` returns its spec."""

    def build(
        config: PretrainedConfig, *, dtype: DTypeLike, stack: StackOptions, pooler: bool, rngs: nnx.Rngs
    ) -> Backbone:
        return Decoder(read(config), dtype=dtype, stack=stack, rngs=rngs)

    return Family(
        build=build,
        prefix="model.",
        mapping=MAPPING,
        heads=HEADS,
        pooling="lasttoken",
        base_class=base_class,
        kind="decoder",
    )


FAMILY = family(llama_spec, "LlamaModel")
MISTRAL_FAMILY = family(mistral_spec, "MistralModel")
QWEN2_FAMILY = family(qwen2_spec, "Qwen2Model")
QWEN3_FAMILY = family(qwen3_spec, "Qwen3Model")
