"""config.json of a HuggingFace folder: checks of its fields, and the `transformers` config."""

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from instructrec_jax.backbones.json_fields import Fields, read_fields
from instructrec_jax.hf_types import PretrainedConfig

# Fields of config.json by their allowed values, for all families. transformers checks some types, but no ranges.
LAYERS = "num_hidden_layers num_layers n_layer n_layers encoder_layers decoder_layers".split()
SIZES = """
    vocab_size hidden_size d_model dim n_embd num_attention_heads num_heads n_head n_heads encoder_attention_heads
    decoder_attention_heads intermediate_size hidden_dim d_ff d_kv encoder_ffn_dim decoder_ffn_dim type_vocab_size
    max_position_embeddings n_positions relative_attention_num_buckets relative_attention_max_distance local_attention
    num_channels projection_dim projection_size pooler_output_size encoder_vocab_size image_vocab_size image_length
    max_text_length
""".split()
OPTIONAL_SIZES = "num_key_value_heads head_dim n_inner sliding_window sliding_window_pattern num_labels".split()
RATES = """
    hidden_dropout_prob attention_probs_dropout_prob dropout attention_dropout activation_dropout dropout_rate
    resid_pdrop embd_pdrop attn_pdrop embedding_dropout mlp_dropout classifier_dropout qa_dropout seq_classif_dropout
    encoder_layerdrop decoder_layerdrop summary_first_dropout drop_path_rate
""".split()
POSITIVE = """
    layer_norm_eps layer_norm_epsilon rms_norm_eps norm_eps query_pre_attn_scalar rope_theta rope_local_base_freq
    global_rope_theta local_rope_theta attn_logit_softcapping final_logit_softcapping initializer_cutoff_factor
    mlp_ratio
""".split()
NOT_NEGATIVE = "initializer_range init_std initializer_factor".split()
TEXTS = "model_type hidden_act hidden_activation activation activation_function feed_forward_proj".split()
TOKENS = "pad_token_id bos_token_id decoder_start_token_id cls_token_id sep_token_id".split()
NULL_MEANS_DEFAULT = {"classifier_dropout"}

# model types that transformers does not know -> names of their configs' classes
OWN_TYPES = {"dallebart": "DalleBartConfig", "fsq_tokenizer": "FsqTokenizerConfig", "vqgan": "VQGANConfig"}
# their usual field names -> those of their files
OTHER_NAMES = {
    "dallebart": {
        "hidden_size": "d_model",
        "vocab_size": "encoder_vocab_size",
        "num_attention_heads": "encoder_attention_heads",
        "num_hidden_layers": "encoder_layers",
    }
}
MOST_LAYERS = 512
DTYPE = re.compile(r"(torch\.)?(float(16|32|64)|bfloat16|half|float|double|auto|float8_\w+|u?int8)")
ROPE_NUMBERS = """
    rope_theta factor low_freq_factor high_freq_factor beta_fast beta_slow attention_factor mscale mscale_all_dim
    partial_rotary_factor
""".split()


def read_network_config(folder: Path) -> PretrainedConfig:
    """The `transformers` config of a folder of a supported model_type.

    Raises ValueError that names the file and, for a wrong type or range, the field and its value.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    file = folder / "config.json"
    fields = read_fields(file)
    check_fields(fields)
    try:
        if (own := fields.text("model_type")) in OWN_TYPES:
            return own_config_class(str(own)).from_pretrained(folder)
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except StrictDataclassError as error:  # names the field and its value
        raise ValueError(f"{file}: {' '.join(str(error).split())}") from error
    except Exception as error:  # transformers raises many kinds
        raise ValueError(
            f"{file} cannot be read by transformers ({type(error).__name__}: {' '.join(str(error).split())[:300]})."
        ) from error


@cache
def own_config_class(model_type: str) -> type[PretrainedConfig]:
    """The class of `transformers` configs of a model_type of this package; `transformers` itself is not told."""
    from transformers import PretrainedConfig

    own = {"model_type": model_type, "attribute_map": OTHER_NAMES.get(model_type, {})}
    return type(OWN_TYPES[model_type], (PretrainedConfig,), own)


def check_fields(fields: Fields) -> None:
    """Raises ValueError for a field of config.json of a wrong type or range."""
    values = fields.values
    for name in (*LAYERS, *SIZES):
        if name in values and fields.integer(name, 1, MOST_LAYERS if name in LAYERS else 2**31 - 1) is None:
            fields.refuse(name, "an integer")
    for name in OPTIONAL_SIZES:
        fields.integer(name, 1)
    for name in RATES:
        rate = fields.number(name, 0.0, 1.0)
        if rate == 1.0 or (rate is None and name in values and name not in NULL_MEANS_DEFAULT):
            fields.refuse(name, "a number from 0 to below 1")
    for name in (*POSITIVE, *NOT_NEGATIVE):
        number = fields.number(name, 0.0)
        if number == 0.0 and name in POSITIVE:
            fields.refuse(name, "a number above 0")
    for name in TEXTS:
        fields.text(name)
    for name in TOKENS:
        fields.integer(name, -1)
    fields.texts("layer_types")
    fields.texts("architectures")
    fields.flag("tie_word_embeddings")
    for name in ("dtype", "torch_dtype"):
        dtype = fields.text(name)
        if dtype is not None and DTYPE.fullmatch(dtype) is None:
            fields.refuse(name, "the name of a dtype, such as float32 or bfloat16")
    for name in ("rope_scaling", "rope_parameters"):
        rope = fields.object(name)
        if rope is not None:
            _check_rope(rope)
    for name in ("text_config", "vision_config"):
        tower = fields.object(name)
        if tower is not None:
            check_fields(tower)
    quantization_method(values, fields.where)


def _check_rope(rope: Fields) -> None:
    for name, value in rope.values.items():
        if isinstance(value, dict):  # by layer type
            _check_rope(Fields(f"{rope.where}, {name}", value))
    for name in ROPE_NUMBERS:
        if rope.number(name, 0.0) == 0.0 and name not in ("mscale", "mscale_all_dim"):
            rope.refuse(name, "a number above 0")
    rope.integer("original_max_position_embeddings", 1)
    rope.flag("truncate")
    rope.text("rope_type")
    rope.text("type")


def quantization_method(values: Mapping[str, object], where: str) -> str | None:
    """The quantization method declared in config.json, or None."""
    for name in ("quantization_config", "compression_config"):
        declared = Fields(where, values).object(name)
        if declared is not None:
            return declared.text("quant_method") or name
    return None
