"""DistilBERT (Sanh et al., 2019): BERT's layers without token types and pooler."""

from flax import nnx
from jax.typing import DTypeLike

from instructrec_jax.backbones.bert import CLASSIFIER, refuse_variants
from instructrec_jax.backbones.encoder import Encoder, EncoderSpec
from instructrec_jax.backbones.family import Backbone, Family, Head, HeadSpec, Rule, embedding, linear, norm
from instructrec_jax.backbones.layers import StackOptions
from instructrec_jax.hf_types import PretrainedConfig

EPS = 1e-12  # fixed by the architecture, not a config field


def build(config: PretrainedConfig, *, dtype: DTypeLike, stack: StackOptions, pooler: bool, rngs: nnx.Rngs) -> Backbone:
    refuse_variants(config)
    spec = EncoderSpec(
        vocab_size=config.vocab_size,
        hidden_size=config.dim,
        num_layers=config.n_layers,
        num_heads=config.n_heads,
        mlp_size=config.hidden_dim,
        activation=config.activation,
        eps=EPS,
        num_positions=config.max_position_embeddings,
        sinusoidal_positions=config.sinusoidal_pos_embds,
        padding_id=config.pad_token_id,
        hidden_dropout=config.dropout,
        attention_dropout=config.attention_dropout,
        initializer_range=config.initializer_range,
    )
    return Encoder(spec, pooler=False, dtype=dtype, stack=stack, rngs=rngs)


LAYER = "transformer.layer.{layer}"
MAPPING = (
    *embedding("embeddings.word_embeddings", "word_embeddings"),
    *embedding("embeddings.position_embeddings", "position_embeddings"),
    *norm("embeddings.LayerNorm", "embedding_norm"),
    *linear(f"{LAYER}.attention.q_lin", "layers.{layer}.attention.query"),
    *linear(f"{LAYER}.attention.k_lin", "layers.{layer}.attention.key"),
    *linear(f"{LAYER}.attention.v_lin", "layers.{layer}.attention.value"),
    *linear(f"{LAYER}.attention.out_lin", "layers.{layer}.attention.output"),
    *norm(f"{LAYER}.sa_layer_norm", "layers.{layer}.attention_norm"),
    *linear(f"{LAYER}.ffn.lin1", "layers.{layer}.mlp_in"),
    *linear(f"{LAYER}.ffn.lin2", "layers.{layer}.mlp_out"),
    *norm(f"{LAYER}.output_layer_norm", "layers.{layer}.mlp_norm"),
)


def sequence_head(config: PretrainedConfig) -> HeadSpec:
    return HeadSpec(
        dropout=config.seq_classif_dropout,
        dense=True,
        activation="relu",
        initializer_range=config.initializer_range,
    )


def token_head(config: PretrainedConfig) -> HeadSpec:
    return HeadSpec(dropout=config.dropout, initializer_range=config.initializer_range)


def span_head(config: PretrainedConfig) -> HeadSpec:
    return HeadSpec(dropout=config.qa_dropout, initializer_range=config.initializer_range)


def mlm_head(config: PretrainedConfig) -> HeadSpec:
    return HeadSpec(
        dense=True,
        activation=config.activation,
        norm=True,
        norm_eps=EPS,
        tied=config.tie_word_embeddings,
        initializer_range=config.initializer_range,
    )


FAMILY = Family(
    build=build,
    prefix="distilbert.",
    mapping=MAPPING,
    heads={
        "sequence": Head(
            "ForSequenceClassification",
            sequence_head,
            (*linear("pre_classifier", "dense"), *linear("classifier", "output")),
        ),
        "token": Head("ForTokenClassification", token_head, CLASSIFIER),
        "span": Head("ForQuestionAnswering", span_head, linear("qa_outputs", "output")),
        "mlm": Head(
            "ForMaskedLM",
            mlm_head,
            (
                *linear("vocab_transform", "dense"),
                *norm("vocab_layer_norm", "norm"),
                Rule("vocab_projector.weight", "table"),
                Rule("vocab_projector.bias", "bias"),
            ),
        ),
    },
    base_class="DistilBertModel",
)
