"""BERT (Devlin et al., 2018)."""

from flax import nnx
from jax.typing import DTypeLike

from instructrec_jax.backbones.encoder import Encoder, EncoderSpec
from instructrec_jax.backbones.family import Backbone, Family, Head, HeadSpec, Rule, embedding, linear, norm, refuse
from instructrec_jax.backbones.layers import StackOptions
from instructrec_jax.hf_types import PretrainedConfig


def build(config: PretrainedConfig, *, dtype: DTypeLike, stack: StackOptions, pooler: bool, rngs: nnx.Rngs) -> Backbone:
    refuse_variants(config)
    spec = EncoderSpec(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        num_layers=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        mlp_size=config.intermediate_size,
        activation=config.hidden_act,
        eps=config.layer_norm_eps,
        num_positions=config.max_position_embeddings,
        num_token_types=config.type_vocab_size,
        padding_id=config.pad_token_id,
        hidden_dropout=config.hidden_dropout_prob,
        attention_dropout=config.attention_probs_dropout_prob,
        attention_output_dropout=config.hidden_dropout_prob,
        initializer_range=config.initializer_range,
    )
    return Encoder(spec, pooler=pooler, dtype=dtype, stack=stack, rngs=rngs)


def refuse_variants(config: PretrainedConfig) -> None:
    """Raises ValueError for unsupported values of config fields that BERT-like networks share."""
    refuse(
        config,
        position_embedding_type="absolute",
        is_decoder=False,
        add_cross_attention=False,
        pruned_heads=({}, []),
    )


def layer_rules(name: str) -> tuple[Rule, ...]:
    """The tensor names of a BERT layer, also used by RoBERTa."""
    return (
        *linear(f"{name}.attention.self.query", "layers.{layer}.attention.query"),
        *linear(f"{name}.attention.self.key", "layers.{layer}.attention.key"),
        *linear(f"{name}.attention.self.value", "layers.{layer}.attention.value"),
        *linear(f"{name}.attention.output.dense", "layers.{layer}.attention.output"),
        *norm(f"{name}.attention.output.LayerNorm", "layers.{layer}.attention_norm"),
        *linear(f"{name}.intermediate.dense", "layers.{layer}.mlp_in"),
        *linear(f"{name}.output.dense", "layers.{layer}.mlp_out"),
        *norm(f"{name}.output.LayerNorm", "layers.{layer}.mlp_norm"),
    )


MAPPING = (
    *embedding("embeddings.word_embeddings", "word_embeddings"),
    *embedding("embeddings.position_embeddings", "position_embeddings"),
    *embedding("embeddings.token_type_embeddings", "token_type_embeddings"),
    *norm("embeddings.LayerNorm", "embedding_norm"),
    *layer_rules("encoder.layer.{layer}"),
    *linear("pooler.dense", "pooler"),
)


def classifier_dropout(config: PretrainedConfig) -> float:
    value = getattr(config, "classifier_dropout", None)
    return config.hidden_dropout_prob if value is None else value


def sequence_head(config: PretrainedConfig) -> HeadSpec:
    return HeadSpec(dropout=classifier_dropout(config), use_pooler=True, initializer_range=config.initializer_range)


def token_head(config: PretrainedConfig) -> HeadSpec:
    return HeadSpec(dropout=classifier_dropout(config), initializer_range=config.initializer_range)


def mlm_head(config: PretrainedConfig) -> HeadSpec:
    return HeadSpec(
        dense=True,
        activation=config.hidden_act,
        norm=True,
        norm_eps=config.layer_norm_eps,
        tied=config.tie_word_embeddings,
        initializer_range=config.initializer_range,
    )


def span_head(config: PretrainedConfig) -> HeadSpec:
    return HeadSpec(initializer_range=config.initializer_range)


CLASSIFIER = linear("classifier", "output")
SPAN = Head("ForQuestionAnswering", span_head, linear("qa_outputs", "output"))

FAMILY = Family(
    build=build,
    prefix="bert.",
    mapping=MAPPING,
    heads={
        "sequence": Head("ForSequenceClassification", sequence_head, CLASSIFIER),
        "token": Head("ForTokenClassification", token_head, CLASSIFIER),
        "span": SPAN,
        "mlm": Head(
            "ForMaskedLM",
            mlm_head,
            (
                *linear("cls.predictions.transform.dense", "dense"),
                *norm("cls.predictions.transform.LayerNorm", "norm"),
                Rule("cls.predictions.decoder.weight", "table"),
                Rule("cls.predictions.bias", "bias", old_names=("cls.predictions.decoder.bias",)),
            ),
        ),
    },
    base_class="BertModel",
)
