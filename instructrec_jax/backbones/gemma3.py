"""Gemma 3 with pictures (Gemma Team, 2025): SigLIP, average pooling, a norm and a linear layer, and Gemma 3.

The tokens of an image attend to each other in both directions.
"""

from math import isqrt

from instructrec_jax.backbones import gemma
from instructrec_jax.backbones.family import Rule
from instructrec_jax.backbones.image_reader import ReaderSpec
from instructrec_jax.backbones.vision import VisionSpec
from instructrec_jax.backbones.vision_language import family
from instructrec_jax.hf_types import PretrainedConfig


def reader_spec(config: PretrainedConfig, vision: VisionSpec) -> ReaderSpec:
    count, text = config.mm_tokens_per_image, config.text_config
    side = isqrt(count)
    if side**2 != count or vision.grid % side:
        raise ValueError(
            f"config.json: mm_tokens_per_image is {count}, but must be the square of a divisor of {vision.grid}, the "
            "patches along each side of an image."
        )
    if text.sliding_window is not None and text.sliding_window < count:
        # what a window does to the directions within an image then differs between versions of transformers
        raise ValueError(
            f"config.json: sliding_window is {text.sliding_window}, less than the {count} tokens of an image "
            "(mm_tokens_per_image), which is not implemented."
        )
    return ReaderSpec(
        vision,
        width=text.hidden_size,
        token_id=config.image_token_index,
        side=side,
        norm=True,
        bias=False,
        together="image",
        initializer_range=config.initializer_range,
    )


PROJECTOR = (Rule("mm_soft_emb_norm.weight", "norm.scale"), Rule("mm_input_projection_weight", "inner.kernel"))
FAMILY = family(reader_spec, PROJECTOR, gemma.GEMMA3_FAMILY, "Gemma3Model")
