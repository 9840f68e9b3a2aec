"""LLaVA (Liu et al., 2023): CLIP or SigLIP, a projector of two layers, and any decoder."""

from instructrec_jax.backbones import llama
from instructrec_jax.backbones.family import linear, refuse
from instructrec_jax.backbones.image_reader import ReaderSpec
from instructrec_jax.backbones.vision import VisionSpec
from instructrec_jax.backbones.vision_language import family
from instructrec_jax.hf_types import PretrainedConfig


def reader_spec(config: PretrainedConfig, vision: VisionSpec) -> ReaderSpec:
    refuse(config, vision_feature_select_strategy=("default", "full"))
    chosen, count = config.vision_feature_layer, vision.tower.num_layers
    layers = [chosen] if isinstance(chosen, int) else list(chosen)
    if not layers or not all(type(layer) is int and -count - 1 <= layer <= count for layer in layers):
        raise ValueError(
            f"config.json: vision_feature_layer is {chosen!r}, but must be a number from {-count - 1} to {count}, or a "
            f"list of them: the image network has {count} layers."
        )
    width = config.text_config.hidden_size
    return ReaderSpec(
        vision,
        width=width,
        token_id=config.image_token_index,
        after=tuple(layer % (count + 1) for layer in layers),
        # of SigLIP, which has no class token, transformers leaves out the first patch
        skip=1 if config.vision_feature_select_strategy == "default" else 0,
        hidden=width,
        activation=config.projector_hidden_act,
        bias=config.multimodal_projector_bias,
        initializer_range=config.text_config.initializer_range,
    )


PROJECTOR = (*linear("linear_1", "inner"), *linear("linear_2", "outer"))
FAMILY = family(reader_spec, PROJECTOR, llama.FAMILY, "LlavaModel")
