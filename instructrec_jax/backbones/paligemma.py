"""PaliGemma (Beyer et al., 2024) and PaliGemma 2 (Steiner et al., 2024): SigLIP, a linear layer, and Gemma or Gemma 2.

Images and the prompt behind them attend to each other in both directions, the answer only to what is before it.
"""

from instructrec_jax.backbones import gemma
from instructrec_jax.backbones.family import linear
from instructrec_jax.backbones.image_reader import ReaderSpec
from instructrec_jax.backbones.vision import VisionSpec
from instructrec_jax.backbones.vision_language import family
from instructrec_jax.hf_types import PretrainedConfig


def reader_spec(config: PretrainedConfig, vision: VisionSpec) -> ReaderSpec:
    width = config.text_config.hidden_size
    if config.projection_dim != width:
        raise ValueError(
            f"config.json: projection_dim is {config.projection_dim}, but must be the hidden_size of text_config, "
            f"{width}."
        )
    return ReaderSpec(
        vision,
        width=width,
        token_id=config.image_token_index,
        together="prompt",
        initializer_range=config.text_config.initializer_range,
    )


FAMILY = family(reader_spec, linear("linear", "inner"), gemma.GEMMA_FAMILY, "PaliGemmaModel", prompt_type=1)
