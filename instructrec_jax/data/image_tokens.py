"""How images stand in prompts of LLaVA, PaliGemma and Gemma 3: as the processors of `transformers` write them."""

from dataclasses import dataclass

import numpy as np

from instructrec_jax.backbones.family import Backbone
from instructrec_jax.hf_types import PretrainedConfig, PreTrainedTokenizerBase


@dataclass(frozen=True)
class ImageTokens:
    """The tokens of images in a network's prompts.

    Attributes:
      marker: stands for an image in the text of a prompt: "<image>", or Gemma 3's token for the start of an image.
      written: what is tokenized in place of the marker; it has one token of id `token_id`.
      behind: what is put behind each marker where a prompt has none: then the images come first.
      token_id: stands for one vector.
      vectors: V, the vectors of an image.
      ahead: whether images come before everything else, the token of the beginning included (PaliGemma).
    """

    marker: str
    written: str
    behind: str
    token_id: int
    vectors: int
    ahead: bool = False

    @classmethod
    def of(cls, network: Backbone, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> "ImageTokens":
        """Those of a network, which may be abstract.

        Raises ValueError for a network that reads no images, and for a tokenizer without their token.
        """
        if network.image_token_id is None:
            raise ValueError(f"this {config.model_type} network reads no images beside words (see docs/images.md).")

        def token(name: str) -> str:
            number = getattr(config, name)
            found = tokenizer.convert_ids_to_tokens(number)
            if not isinstance(found, str):
                raise ValueError(f"the tokenizer has no token {number}, which config.json names as {name}.")
            return found

        image = token("image_token_index")
        marker, written, behind = image, image, "\n"
        if config.model_type == "gemma3":
            marker, behind = token("boi_token_index"), ""
            written = f"\n\n{marker}{image}{token('eoi_token_index')}\n\n"
        ahead = config.model_type == "paligemma"
        return cls(marker, written, behind, network.image_token_id, network.image_vectors, ahead)

    def text(self, prompt: str, images: int) -> str:
        """The prompt to be tokenized. Raises ValueError for another number of markers than of images."""
        found = prompt.count(self.marker)
        if found not in (0, images):
            raise ValueError(f"the prompt has {found} × {self.marker}, but {images} images.")
        if self.ahead:
            return prompt.replace(self.marker, "")
        if not found:
            prompt = f"{self.marker}{self.behind}" * images + prompt
        return prompt.replace(self.marker, self.written)

    def expand(self, tokens: np.ndarray, images: int) -> tuple[np.ndarray, np.ndarray]:
        """(int32 [length] tokens with V for each image, int32 [length] places as in `RowImages`).

        Args:
          tokens: int [n], of the prompt of `text`.

        Raises ValueError if the tokens stand for another number of images.
        """
        tokens = np.asarray(tokens, np.int32)
        if self.ahead:
            tokens = np.concatenate([np.full(images, self.token_id, np.int32), tokens])
        here = tokens == self.token_id
        if here.sum() != images:
            raise ValueError(
                f"the prompt's tokens stand for {here.sum()} images (token {self.token_id}), but {images} are given."
            )
        repeats = np.where(here, self.vectors, 1)
        expanded = np.repeat(tokens, repeats)
        places = np.full(len(expanded), -1, np.int32)
        places[expanded == self.token_id] = np.arange(images * self.vectors)
        return expanded, places
