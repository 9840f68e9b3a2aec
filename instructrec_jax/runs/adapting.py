"""What a run's settings put onto its network: codes in place of kernels, LoRA matrices, rows of tokens."""

from dataclasses import fields

from instructrec_jax.adapters.checkpoint_heads import Source
from instructrec_jax.adapters.heads import head_kind
from instructrec_jax.adapters.lora import add_lora, check_lora, find_places
from instructrec_jax.adapters.peft import TRAINED_HEADS, read_peft
from instructrec_jax.adapters.quantized import Format, quantize_backbone, quantize_tables
from instructrec_jax.adapters.token_rows import add_token_rows, added_tokens
from instructrec_jax.backbones.backbone_config import BackboneConfig
from instructrec_jax.backbones.family import Backbone
from instructrec_jax.hf_types import PreTrainedTokenizerBase
from instructrec_jax.runs.config import Config
from instructrec_jax.tasks.base import Model

Tokenizer = PreTrainedTokenizerBase | None


def adapted(model: Model, config: Config, source: Source, tokenizer: Tokenizer) -> Model:
    """The network with quantized linear layers and LoRA matrices, as the settings say; changed in place."""
    lora = config.lora
    check_lora(lora)
    if config.backbone.cache_dtype == "int8":
        backbone = getattr(model, "backbone", None)
        if not isinstance(backbone, Backbone) or not hasattr(backbone, "empty_cache"):
            raise ValueError(
                "backbone.cache_dtype is int8, but this task's network has no cache of keys and values: leave it out."
            )
        backbone.cache_codes = True
    if not hasattr(model, "backbone") and (lora.on or config.backbone.quantize != "none"):
        name = "lora" if lora.on else "backbone.quantize"
        raise ValueError(f"{name} is set, but this task's network has no backbone: leave it out.")
    if (format := stored_format(config.backbone)) is not None:
        keep = config.backbone.quantize_keep
        name = "backbone.quantize_keep"
        kept = find_places(model.backbone, source.config, keep, name, modules=False) if keep else []
        quantize_backbone(model.backbone, format, keep=[place.linear for place in kept])
        if config.backbone.quantize_embeddings:
            quantize_tables(model, format.activations)
    if lora.adapter is not None:
        kind = head_kind(model.head)
        head = (model.head, kind) if kind in TRAINED_HEADS or kind == "lm" else ()
        source.lora = read_peft(lora.adapter, model.backbone, source.config, *head)
    elif lora.rank:
        add_lora(model.backbone, source.config, lora, source.rngs)
        if lora.token_rows == "added":
            add_token_rows(model, added_tokens(tokenizer))
        source.lora = lora
    return model


def check_trainable(config: Config) -> None:
    """Raises ValueError for a network that would have to be trained in codes."""
    if config.backbone.quantize != "none" and not config.lora.on:
        raise ValueError(
            "backbone.quantize freezes the backbone, so it needs LoRA: set lora.rank, such as 8. To quantize a network "
            "that is not to be trained, use `python -m instructrec_jax.compress`."
        )


def stored_format(config: BackboneConfig) -> Format | None:
    """How the kernels of linear layers are stored; None: as they are.

    Raises ValueError for settings that have no effect, or do not go together.
    """
    if config.quantize != "none":
        try:
            return Format(
                config.quantize, config.quantize_group, config.quantize_activations, smooth=config.quantize_smooth
            )
        except ValueError as error:
            raise ValueError(f"backbone.quantize: {error}") from None
    default = BackboneConfig()
    names = [field.name for field in fields(config) if field.name.startswith("quantize_")]
    given = [name for name in names if getattr(config, name) != getattr(default, name)]
    if given:
        raise ValueError(f"backbone.{given[0]} has no effect without backbone.quantize: set it, or leave this out.")
    return None
