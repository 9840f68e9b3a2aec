"""RoBERTa (Liu et al., 2019) and XLM-RoBERTa (Conneau et al., 2019): BERT with positions from padding + 1."""

from flax import nnx
from jax.typing import DTypeLike

from instructrec_jax.backbones.bert import (
    CLASSIFIER,
    MAPPING,
    SPAN,
    classifier_dropout,
    refuse_variants,
    token_head,
)
from instructrec_jax.backbones.encoder import Encoder, EncoderSpec
from instructrec_jax.backbones.family import Backbone, Family, Head, HeadSpec, Rule, linear, norm
from instructrec_jax.backbones.layers import StackOptions
from instructrec_jax.hf_types import PretrainedConfig


def build(config: PretrainedConfig, *, dtype: DTypeLike, stack: StackOptions, pooler: bool, rngs: nnx.Rngs) -> Backbone:
    refuse_variants(config)
    if config.pad_token_id is None:
        raise ValueError(
            f"config.json of this {config.model_type} model has no pad_token_id, which its positions depend on: set it."
        )
    spec = EncoderSpec(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        num_layers=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        mlp_size=config.intermediate_size,
        activation=config.hidden_act,
        eps=config.layer_norm_eps,
        num_positions=config.max_position_embeddings,
        position_offset=config.pad_token_id + 1,
        num_token_types=config.type_vocab_size,
        padding_id=config.pad_token_id,
        hidden_dropout=config.hidden_dropout_prob,
        attention_dropout=config.attention_probs_dropout_prob,
        attention_output_dropout=config.hidden_dropout_prob,
        initializer_range=config.initializer_range,
    )
    return Encoder(spec, pooler=pooler, dtype=dtype, stack=stack, rngs=rngs)


def sequence_head(config: PretrainedConfig) -> HeadSpec:
    rate = classifier_dropout(config)
    return HeadSpec(
        dropout=rate,
        input_dropout=rate,
        dense=True,
        activation="tanh",
        initializer_range=config.initializer_range,
    )


def mlm_head(config: PretrainedConfig) -> HeadSpec:
    return HeadSpec(
        dense=True,
        activation="gelu",  # for any hidden_act, as in transformers
        norm=True,
        norm_eps=config.layer_norm_eps,
        tied=config.tie_word_embeddings,
        initializer_range=config.initializer_range,
    )


HEADS = {
    "sequence": Head(
        "ForSequenceClassification",
        sequence_head,
        (*linear("classifier.dense", "dense"), *linear("classifier.out_proj", "output")),
    ),
    "token": Head("ForTokenClassification", token_head, CLASSIFIER),
    "span": SPAN,
    "mlm": Head(
        "ForMaskedLM",
        mlm_head,
        (
            *linear("lm_head.dense", "dense"),
            *norm("lm_head.layer_norm", "norm"),
            Rule("lm_head.decoder.weight", "table"),
            Rule("lm_head.bias", "bias", old_names=("lm_head.decoder.bias",)),
        ),
    ),
}

FAMILY = Family(build, "roberta.", MAPPING, HEADS, base_class="RobertaModel")
XLM_FAMILY = Family(build, "roberta.", MAPPING, HEADS, base_class="XLMRobertaModel")
