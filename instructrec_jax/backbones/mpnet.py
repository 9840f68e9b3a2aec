"""MPNet (Song et al., 2020): BERT's layers with a shared relative position bias, no token types."""

from flax import nnx
from jax.typing import DTypeLike

from instructrec_jax.backbones.bert import CLASSIFIER, SPAN, refuse_variants
from instructrec_jax.backbones.encoder import NUM_BUCKETS, Encoder, EncoderSpec
from instructrec_jax.backbones.family import Backbone, Family, Head, HeadSpec, embedding, linear, norm
from instructrec_jax.backbones.layers import StackOptions
from instructrec_jax.backbones.roberta import HEADS as ROBERTA_HEADS
from instructrec_jax.hf_types import PretrainedConfig

PADDING_ID = 1  # fixed by the architecture: positions start at 2 for any pad_token_id


def build(config: PretrainedConfig, *, dtype: DTypeLike, stack: StackOptions, pooler: bool, rngs: nnx.Rngs) -> Backbone:
    refuse_variants(config)
    if config.relative_attention_num_buckets < NUM_BUCKETS:
        raise ValueError(
            f"config.json: relative_attention_num_buckets is {config.relative_attention_num_buckets}, but must be at "
            f"least {NUM_BUCKETS}, the fixed number of buckets in MPNet (and in transformers)."
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
        position_offset=PADDING_ID + 1,
        relative_buckets=config.relative_attention_num_buckets,
        padding_id=PADDING_ID,
        hidden_dropout=config.hidden_dropout_prob,
        attention_dropout=config.attention_probs_dropout_prob,
        attention_output_dropout=config.hidden_dropout_prob,
        initializer_range=config.initializer_range,
    )
    return Encoder(spec, pooler=pooler, dtype=dtype, stack=stack, rngs=rngs)


LAYER = "encoder.layer.{layer}"
MAPPING = (
    *embedding("embeddings.word_embeddings", "word_embeddings"),
    *embedding("embeddings.position_embeddings", "position_embeddings"),
    *norm("embeddings.LayerNorm", "embedding_norm"),
    *embedding("encoder.relative_attention_bias", "relative_bias"),
    *linear(f"{LAYER}.attention.attn.q", "layers.{layer}.attention.query"),
    *linear(f"{LAYER}.attention.attn.k", "layers.{layer}.attention.key"),
    *linear(f"{LAYER}.attention.attn.v", "layers.{layer}.attention.value"),
    *linear(f"{LAYER}.attention.attn.o", "layers.{layer}.attention.output"),
    *norm(f"{LAYER}.attention.LayerNorm", "layers.{layer}.attention_norm"),
    *linear(f"{LAYER}.intermediate.dense", "layers.{layer}.mlp_in"),
    *linear(f"{LAYER}.output.dense", "layers.{layer}.mlp_out"),
    *norm(f"{LAYER}.output.LayerNorm", "layers.{layer}.mlp_norm"),
    *linear("pooler.dense", "pooler"),
)


def sequence_head(config: PretrainedConfig) -> HeadSpec:
    rate = config.hidden_dropout_prob
    return HeadSpec(
        dropout=rate,
        input_dropout=rate,
        dense=True,
        activation="tanh",
        initializer_range=config.initializer_range,
    )


def token_head(config: PretrainedConfig) -> HeadSpec:
    return HeadSpec(dropout=config.hidden_dropout_prob, initializer_range=config.initializer_range)


FAMILY = Family(
    build=build,
    prefix="mpnet.",
    mapping=MAPPING,
    heads={
        "sequence": Head("ForSequenceClassification", sequence_head, ROBERTA_HEADS["sequence"].mapping),
        "token": Head("ForTokenClassification", token_head, CLASSIFIER),
        "span": SPAN,
        "mlm": ROBERTA_HEADS["mlm"],
    },
    base_class="MPNetModel",
)
