"""CLIP (Radford et al., 2021)."""

from flax import nnx
from jax.typing import DTypeLike

from instructrec_jax.backbones.family import Backbone, Family, Rule, norm
from instructrec_jax.backbones.image_text import ImageText, ImageTextSpec, image_family, tower_of
from instructrec_jax.backbones.layers import StackOptions
from instructrec_jax.backbones.towers import TEXT_RULES, layer_rules, text_family
from instructrec_jax.backbones.vision import VisionSpec, patch_rules, side_of
from instructrec_jax.hf_types import PretrainedConfig

OLD_END = 2  # the eos_token_id of configs that were wrong: their texts end at the largest id


def vision_spec(config: PretrainedConfig) -> VisionSpec:
    return VisionSpec(
        tower_of(config, causal=False),
        image_size=side_of(config, "image_size"),
        patch_size=side_of(config, "patch_size"),
        channels=config.num_channels,
        patch_bias=False,
        pre_norm=True,
        norm_hidden=False,
    )


def build(config: PretrainedConfig, *, dtype: DTypeLike, stack: StackOptions, pooler: bool, rngs: nnx.Rngs) -> Backbone:
    text = config.text_config
    spec = ImageTextSpec(
        text=tower_of(text, causal=True),
        vision=vision_spec(config.vision_config),
        vocab_size=text.vocab_size,
        num_positions=text.max_position_embeddings,
        end_id=None if text.eos_token_id == OLD_END else text.eos_token_id,
        text_width=config.projection_dim,
        image_width=config.projection_dim,
        log_factor=config.logit_scale_init_value,
    )
    return ImageText(spec, dtype=dtype, stack=stack, rngs=rngs)


MAPPING = (
    *TEXT_RULES,
    Rule("vision_model.embeddings.class_embedding", "vision.class_token"),
    *patch_rules("vision_model.embeddings.patch_embedding", "vision.patches", bias=False),
    Rule("vision_model.embeddings.position_embedding.weight", "vision.positions"),
    *norm("vision_model.pre_layrnorm", "vision.pre_norm"),
    *layer_rules("vision_model.encoder.layers.{layer}", "vision."),
    *norm("vision_model.post_layernorm", "vision.final_norm"),
    Rule("text_projection.weight", "text_projection.kernel", "transpose"),
    Rule("visual_projection.weight", "image_projection.kernel", "transpose"),
    Rule("logit_scale", "log_factor"),
)
FAMILY = Family(
    build=build,
    prefix="",
    mapping=MAPPING,
    base_class="CLIPModel",
    kind="image_text",
    tower=lambda config: config.vision_config,
)
TEXT_FAMILY = text_family(lambda config: tower_of(config, causal=True), lambda config: 0, "CLIPTextModel")
VISION_FAMILY = image_family(MAPPING, vision_spec, "CLIPVisionModel")
