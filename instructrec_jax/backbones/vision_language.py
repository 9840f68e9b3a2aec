"""What LLaVA, PaliGemma and Gemma 3 share: a decoder with an `ImageReader`, and the tables of tensor names of both."""

import copy
from collections.abc import Callable
from dataclasses import replace

from flax import nnx
from jax.typing import DTypeLike

from instructrec_jax.backbones import clip, gemma, llama, siglip
from instructrec_jax.backbones.decoder import Decoder
from instructrec_jax.backbones.family import Backbone, Family, Head, LMHeadSpec, Rule, refuse
from instructrec_jax.backbones.image_reader import ImageReader, ReaderSpec
from instructrec_jax.backbones.layers import StackOptions
from instructrec_jax.backbones.vision import VisionSpec
from instructrec_jax.hf_types import PretrainedConfig

TEXTS: dict[str, Family] = {
    "gemma": gemma.GEMMA_FAMILY,
    "gemma2": gemma.GEMMA2_FAMILY,
    "gemma3_text": gemma.GEMMA3_FAMILY,
    "llama": llama.FAMILY,
    "mistral": llama.MISTRAL_FAMILY,
    "qwen2": llama.QWEN2_FAMILY,
    "qwen3": llama.QWEN3_FAMILY,
}
TOWERS: dict[str, Callable[[PretrainedConfig], VisionSpec]] = {
    "clip_vision_model": clip.vision_spec,
    "siglip_vision_model": siglip.vision_spec,
}
CAPPED = "paligemma"
# First the names of checkpoints on the hub, which every version of transformers reads; then others, which some of them
# write.
LAYOUTS = (
    ("language_model.lm_head.", "lm_head."),
    ("language_model.model.", "model.language_model."),
    ("language_model.", "model.language_model."),
    ("multi_modal_projector.", "model.multi_modal_projector."),
    ("vision_tower.vision_model.", "model.vision_tower."),
    ("vision_tower.", "model.vision_tower."),
    ("model.vision_tower.vision_model.", "model.vision_tower."),
)


def text_family(config: PretrainedConfig) -> Family:
    """The family of a config's network of texts. Raises ValueError for one that is not supported here."""
    kind = config.text_config.model_type
    if kind not in TEXTS:
        raise ValueError(
            f"config.json: the text_config of this {config.model_type} model has model_type {kind!r}, which is not "
            f"implemented (supported: {', '.join(TEXTS)})."
        )
    return TEXTS[kind]


def vision_spec(config: PretrainedConfig) -> VisionSpec:
    """The image network of a config. Raises ValueError for one that is not supported here."""
    vision = config.vision_config
    if vision.model_type not in TOWERS:
        raise ValueError(
            f"config.json: the vision_config of this {config.model_type} model has model_type {vision.model_type!r}, "
            f"which is not implemented (supported: {', '.join(TOWERS)})."
        )
    refuse(vision, attention_dropout=0.0)
    return TOWERS[vision.model_type](vision)


def lm_head(config: PretrainedConfig) -> LMHeadSpec:
    return LMHeadSpec(
        tied=config.tie_word_embeddings,
        # transformers' LLaVA and Gemma 3 have no soft cap of the logits, whatever text_config says
        soft_cap=getattr(config.text_config, "final_logit_softcapping", None) if config.model_type == CAPPED else None,
        initializer_range=config.text_config.initializer_range,
    )


def family(
    read: Callable[[PretrainedConfig, VisionSpec], ReaderSpec],
    projector: tuple[Rule, ...],
    text: Family,
    name: str,
    *,
    prompt_type: int = 0,
) -> Family:
    """A family of decoders that read images.

    Args:
        read: read(config, vision) -> the spec of its reader.
        projector: the table of its projector; names without "multi_modal_projector.", paths without
            "reader.projector.".
        text: the family of its usual network of texts; the config's own counts.
        name: HuggingFace's class name of the bare network.
        prompt_type: see `Family`.
    """

    def spec(config: PretrainedConfig) -> ReaderSpec:
        return read(config, vision_spec(config))

    def build(
        config: PretrainedConfig, *, dtype: DTypeLike, stack: StackOptions, pooler: bool, rngs: nnx.Rngs
    ) -> Backbone:
        own = copy.copy(config.text_config)
        if getattr(own, "use_bidirectional_attention", None):  # said of prompts, by PaliGemma's config
            own.use_bidirectional_attention = None
        decoder = text_family(config).build(own, dtype=dtype, stack=stack, pooler=pooler, rngs=rngs)
        assert isinstance(decoder, Decoder)
        decoder.read_images(ImageReader(spec(config), dtype=dtype, stack=stack, rngs=rngs))
        return decoder

    def tables(text: Family) -> tuple[Rule, ...]:
        return (
            *(replace(rule, name=f"language_model.{rule.name}") for rule in text.mapping),
            *VISION_RULES,
            *(
                replace(rule, name=f"multi_modal_projector.{rule.name}", path=f"reader.projector.{rule.path}")
                for rule in projector
            ),
        )

    usual = Family(
        build=build,
        prefix="model.",
        mapping=tables(text),
        heads={"lm": Head("ForConditionalGeneration", lm_head, (Rule("lm_head.weight", "table"),))},
        pooling="lasttoken",
        base_class=name,
        kind="decoder",
        prompt_type=prompt_type,
        layouts=LAYOUTS,
        reader=spec,
    )
    return replace(usual, variant=lambda config: replace(usual, mapping=tables(text_family(config))))


def _vision_rules() -> tuple[Rule, ...]:
    """The image networks of CLIP and SigLIP in one table: what both have has the same name in both."""
    rules = {
        rule.path: replace(rule, name=f"vision_tower.{rule.name.removeprefix('vision_model.')}", old_names=())
        for rule in (*clip.MAPPING, *siglip.MAPPING)
        if rule.name.startswith("vision_model.")
    }
    return tuple(replace(rule, path=f"reader.{path}") for path, rule in rules.items())


VISION_RULES = _vision_rules()
