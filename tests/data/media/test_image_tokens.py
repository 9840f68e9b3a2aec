"""Images in prompts: the tokens of transformers' processors."""

from typing import Any

import numpy as np
import pytest
import tiny_networks
import transformers
from byte_tokenizer import byte_tokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from instructrec_jax.data.media.image_tokens import ImageTokens

SIZE = {"height": 12, "width": 12}
IMAGES = [np.random.default_rng(n).integers(0, 256, (15, 14, 3)).astype(np.uint8) for n in range(2)]
MARKERS = {"llava": "<image>", "paligemma": "<image>", "gemma3": "<start_of_image>"}


def tokenizer_of(kind: str) -> Any:
    tokenizer = byte_tokenizer(bos=True)
    names = ["<image>"] if kind != "gemma3" else ["<image_soft_token>", "<start_of_image>", "<end_of_image>"]
    tokenizer.add_special_tokens({"additional_special_tokens": names})
    if kind == "gemma3":
        for attribute, name in zip(("image", "boi", "eoi"), names, strict=True):
            setattr(tokenizer, f"{attribute}_token", name)
            setattr(tokenizer, f"{attribute}_token_id", tokenizer.convert_tokens_to_ids(name))
    return tokenizer


def processor_of(kind: str, tokenizer: Any) -> Any:
    if kind == "llava":
        return transformers.LlavaProcessor(
            CLIPImageProcessorPil(size=SIZE, crop_size=SIZE),
            tokenizer,
            patch_size=4,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
        )
    if kind == "paligemma":
        images = SiglipImageProcessorPil(size=SIZE)
        images.image_seq_length = 9
        return transformers.PaliGemmaProcessor(images, tokenizer)
    return transformers.Gemma3Processor(Gemma3ImageProcessorPil(size=SIZE), tokenizer, image_seq_length=9)


def image_tokens(kind: str) -> tuple[ImageTokens, Any]:
    tokenizer = tokenizer_of(kind)
    numbers = {"image_token_index": tokenizer.convert_tokens_to_ids("<image>")}
    if kind == "gemma3":
        numbers = {f"{name}_token_index": getattr(tokenizer, f"{name}_token_id") for name in ("image", "boi", "eoi")}
    config = transformers.AutoConfig.for_model(kind, **(tiny_networks.READERS[kind] | numbers))
    return ImageTokens.of(config, tokenizer), tokenizer


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("kind", MARKERS)
def test_the_tokens_of_the_processors(kind: str, count: int) -> None:
    how, tokenizer = image_tokens(kind)
    marker = MARKERS[kind]
    prompt = marker * count + "the yes?" if kind == "paligemma" else "the " + f"{marker} or " * count + "yes?"
    end = "\n" if kind == "paligemma" else ""
    tokens, places = how.expand(tokenizer(how.text(prompt, count) + end, return_tensors="np")["input_ids"][0], count)
    processor = processor_of(kind, tokenizer)
    expected = processor(images=[IMAGES[:count]], text=[prompt], return_tensors="np")["input_ids"][0]
    np.testing.assert_array_equal(tokens, expected)
    np.testing.assert_array_equal(places[places >= 0], np.arange(9 * count))
    assert (tokens[places >= 0] == how.token_id).all() and tokens.dtype == places.dtype == np.int32


def test_images_come_first_where_a_prompt_has_no_marker() -> None:
    assert image_tokens("llava")[0].text("yes?", 2) == "<image>\n<image>\nyes?"
    assert image_tokens("gemma3")[0].text("yes?", 1).startswith("\n\n<start_of_image><image_soft_token><end_of_image>")
    assert image_tokens("paligemma")[0].text("yes?", 1) == "yes?"


def test_another_number_of_images_is_named() -> None:
    how, tokenizer = image_tokens("llava")
    with pytest.raises(ValueError, match="has 1 × <image>, but 2 images"):
        how.text("<image> yes?", 2)
    with pytest.raises(ValueError, match="stand for 0 images.*but 1"):
        how.expand(tokenizer("yes?")["input_ids"], 1)
    text = transformers.LlamaConfig(**tiny_networks.WORDS)
    with pytest.raises(ValueError, match="llama.*reads no images"):
        ImageTokens.of(text, tokenizer)
