"""DINOv2 (Oquab et al., 2023), also with registers (Darcet et al., 2024)."""

from flax import nnx
from jax.typing import DTypeLike

from instructrec_jax.backbones.family import Backbone, Family, Head, HeadSpec, Rule, linear, norm, refuse
from instructrec_jax.backbones.layers import StackOptions
from instructrec_jax.backbones.towers import TowerSpec
from instructrec_jax.backbones.vision import VisionEncoder, VisionSpec, side_of
from instructrec_jax.backbones.vit import EMBEDDINGS, LAYER, attention_rules
from instructrec_jax.hf_types import PretrainedConfig


def build(config: PretrainedConfig, *, dtype: DTypeLike, stack: StackOptions, pooler: bool, rngs: nnx.Rngs) -> Backbone:
    refuse(
        config,
        head_dim=config.hidden_size // config.num_attention_heads,
        drop_path_rate=0.0,
        apply_layernorm=True,
    )
    wide = int(config.hidden_size * config.mlp_ratio)
    gated = config.use_swiglu_ffn
    tower = TowerSpec(
        hidden_size=config.hidden_size,
        num_layers=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        mlp_size=(int(wide * 2 / 3) + 7) // 8 * 8 if gated else wide,
        activation="silu" if gated else config.hidden_act,
        eps=config.layer_norm_eps,
        qkv_bias=config.qkv_bias,
        gated=gated,
        layer_scale=config.layerscale_value,
        hidden_dropout=config.hidden_dropout_prob,
        attention_dropout=config.attention_probs_dropout_prob,
        initializer_range=config.initializer_range,
    )
    spec = VisionSpec(
        tower,
        image_size=side_of(config, "image_size"),
        patch_size=side_of(config, "patch_size"),
        channels=config.num_channels,
        mask_token=getattr(config, "use_mask_token", True),
        registers=getattr(config, "num_register_tokens", 0),
        antialias=config.model_type == "dinov2_with_registers",
        mean_beside=True,
    )
    return VisionEncoder(spec, dtype=dtype, stack=stack, rngs=rngs)


MAPPING = (
    *EMBEDDINGS,
    Rule("embeddings.mask_token", "mask_token", "row"),
    Rule("embeddings.register_tokens", "registers", "row"),
    *norm(f"{LAYER}.norm1", "layers.{layer}.attention_norm"),
    *attention_rules(LAYER, LAYER),
    Rule(f"{LAYER}.layer_scale1.lambda1", "layers.{layer}.attention_factor"),
    *norm(f"{LAYER}.norm2", "layers.{layer}.mlp_norm"),
    *linear(f"{LAYER}.mlp.fc1", "layers.{layer}.mlp.inner"),
    *linear(f"{LAYER}.mlp.fc2", "layers.{layer}.mlp.outer"),
    *linear(f"{LAYER}.mlp.weights_in", "layers.{layer}.gated_mlp.inner", parts=2),
    *linear(f"{LAYER}.mlp.weights_out", "layers.{layer}.gated_mlp.outer"),
    Rule(f"{LAYER}.layer_scale2.lambda1", "layers.{layer}.mlp_factor"),
    *norm("layernorm", "final_norm"),
)


def image_head(config: PretrainedConfig) -> HeadSpec:
    return HeadSpec(pooling="cls_mean", initializer_range=config.initializer_range)


def family(prefix: str, name: str) -> Family:
    return Family(
        build=build,
        prefix=prefix,
        mapping=MAPPING,
        heads={"image": Head("ForImageClassification", image_head, linear("classifier", "output"))},
        pooling="cls",
        base_class=f"{name}Model",
        kind="image",
    )


FAMILY = family("dinov2.", "Dinov2")
REGISTERS_FAMILY = family("dinov2_with_registers.", "Dinov2WithRegisters")
