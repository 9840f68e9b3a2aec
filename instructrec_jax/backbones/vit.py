"""ViT (Dosovitskiy et al., 2021)."""

from flax import nnx
from jax.typing import DTypeLike

from instructrec_jax.backbones.family import Backbone, Family, Head, HeadSpec, Rule, linear, norm, refuse
from instructrec_jax.backbones.layers import StackOptions
from instructrec_jax.backbones.towers import TowerSpec
from instructrec_jax.backbones.vision import VisionEncoder, VisionSpec, patch_rules, side_of
from instructrec_jax.hf_types import PretrainedConfig


def build(config: PretrainedConfig, *, dtype: DTypeLike, stack: StackOptions, pooler: bool, rngs: nnx.Rngs) -> Backbone:
    refuse(config, head_dim=config.hidden_size // config.num_attention_heads)
    tower = TowerSpec(
        hidden_size=config.hidden_size,
        num_layers=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        mlp_size=config.intermediate_size,
        activation=config.hidden_act,
        eps=config.layer_norm_eps,
        qkv_bias=config.qkv_bias,
        hidden_dropout=config.hidden_dropout_prob,
        attention_dropout=config.attention_probs_dropout_prob,
        initializer_range=config.initializer_range,
    )
    spec = VisionSpec(
        tower,
        image_size=side_of(config, "image_size"),
        patch_size=side_of(config, "patch_size"),
        channels=config.num_channels,
        pooling="dense" if pooler else "first",
        pooled_size=config.pooler_output_size,
        pooled_activation=config.pooler_act,
    )
    return VisionEncoder(spec, dtype=dtype, stack=stack, rngs=rngs)


def attention_rules(name: str, modules: str) -> tuple[Rule, ...]:
    """The tensor names of a layer's attention, also used by DINOv2. `modules`: the name of the layer's module."""

    def one(tensor: str, module: str, path: str) -> tuple[Rule, ...]:
        return linear(
            f"{name}.attention.{tensor}", f"layers.{{layer}}.attention.{path}", module=f"{modules}.attention.{module}"
        )

    return (
        *one("attention.query", "q_proj", "query"),
        *one("attention.key", "k_proj", "key"),
        *one("attention.value", "v_proj", "value"),
        *one("output.dense", "o_proj", "output"),
    )


EMBEDDINGS = (
    Rule("embeddings.cls_token", "class_token", "token"),
    Rule("embeddings.position_embeddings", "positions", "row"),
    *patch_rules("embeddings.patch_embeddings.projection", "patches"),
)
LAYER = "encoder.layer.{layer}"
MAPPING = (
    *EMBEDDINGS,
    *attention_rules(LAYER, "layers.{layer}"),
    *norm(f"{LAYER}.layernorm_before", "layers.{layer}.attention_norm"),
    *norm(f"{LAYER}.layernorm_after", "layers.{layer}.mlp_norm"),
    *linear(f"{LAYER}.intermediate.dense", "layers.{layer}.mlp.inner", module="layers.{layer}.mlp.fc1"),
    *linear(f"{LAYER}.output.dense", "layers.{layer}.mlp.outer", module="layers.{layer}.mlp.fc2"),
    *norm("layernorm", "final_norm"),
    *linear("pooler.dense", "pooler"),
)


def image_head(config: PretrainedConfig) -> HeadSpec:
    return HeadSpec(initializer_range=config.initializer_range)


FAMILY = Family(
    build=build,
    prefix="vit.",
    mapping=MAPPING,
    heads={"image": Head("ForImageClassification", image_head, linear("classifier", "output"))},
    pooling="cls",
    base_class="ViTModel",
    kind="image",
)
