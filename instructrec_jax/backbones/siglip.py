"""SigLIP (Zhai et al., 2023), and SigLIP 2 of a fixed resolution, which is the same network."""

from flax import nnx
from jax.typing import DTypeLike

from instructrec_jax.backbones.family import Backbone, Family, Rule, linear, norm
from instructrec_jax.backbones.image_text import ImageText, ImageTextSpec, image_family, tower_of
from instructrec_jax.backbones.layers import StackOptions
from instructrec_jax.backbones.towers import TEXT_RULES, layer_rules, text_family
from instructrec_jax.backbones.vision import VisionSpec, patch_rules, side_of
from instructrec_jax.hf_types import PretrainedConfig


def vision_spec(config: PretrainedConfig) -> VisionSpec:
    return VisionSpec(
        tower_of(config, causal=False),
        image_size=side_of(config, "image_size"),
        patch_size=side_of(config, "patch_size"),
        channels=config.num_channels,
        class_token=False,
        pooling="attention" if config.vision_use_head else "none",
    )


def build(config: PretrainedConfig, *, dtype: DTypeLike, stack: StackOptions, pooler: bool, rngs: nnx.Rngs) -> Backbone:
    text = config.text_config
    spec = ImageTextSpec(
        text=tower_of(text, causal=False),
        vision=vision_spec(config.vision_config),
        vocab_size=text.vocab_size,
        num_positions=text.max_position_embeddings,
        end_id=-1,
        text_width=text.projection_size,
        projection_bias=True,
        logit_shape=(1,),
        logit_bias=True,
    )
    return ImageText(spec, dtype=dtype, stack=stack, rngs=rngs)


HEAD = "vision_model.head"
MAPPING = (
    *TEXT_RULES,
    *linear("text_model.head", "text_projection"),
    *patch_rules("vision_model.embeddings.patch_embedding", "vision.patches"),
    Rule("vision_model.embeddings.position_embedding.weight", "vision.positions"),
    *layer_rules("vision_model.encoder.layers.{layer}", "vision."),
    *norm("vision_model.post_layernorm", "vision.final_norm"),
    Rule(f"{HEAD}.probe", "vision.pooler.probe", "token"),
    Rule(f"{HEAD}.attention.in_proj_weight", "vision.pooler.qkv.kernel", "transpose"),
    Rule(f"{HEAD}.attention.in_proj_bias", "vision.pooler.qkv.bias", "split"),
    *linear(f"{HEAD}.attention.out_proj", "vision.pooler.output"),
    *norm(f"{HEAD}.layernorm", "vision.pooler.norm"),
    *linear(f"{HEAD}.mlp.fc1", "vision.pooler.mlp.inner"),
    *linear(f"{HEAD}.mlp.fc2", "vision.pooler.mlp.outer"),
    Rule("logit_scale", "log_factor"),
    Rule("logit_bias", "logit_bias"),
)
FAMILY = Family(
    build=build,
    prefix="",
    mapping=MAPPING,
    base_class="SiglipModel",
    kind="image_text",
    tower=lambda config: config.vision_config,
)
TEXT_FAMILY = text_family(
    lambda config: tower_of(config, causal=False),
    lambda config: int(config.projection_size),
    "SiglipTextModel",
    linear("head", "head"),
    padded=True,
)
VISION_FAMILY = image_family(MAPPING, vision_spec, "SiglipVisionModel")
