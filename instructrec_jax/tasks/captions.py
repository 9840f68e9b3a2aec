"""Texts and images as a pair of networks reads them (CLIP, SigLIP): captions with their end, an image beside them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from flax import nnx

from instructrec_jax.backbones.folder import read_config
from instructrec_jax.backbones.image_text import ImageText, ImageTextSpec
from instructrec_jax.backbones.reading import build_backbone
from instructrec_jax.backbones.tensor_names import abstract_module
from instructrec_jax.data.batch import Text
from instructrec_jax.data.media.text_images import TextImages
from instructrec_jax.tasks.base import TaskContext
from instructrec_jax.tasks.texts import tokenize


@dataclass(frozen=True)
class Captions:
    """Tokenizes texts for the text network of a pair.

    Attributes:
      context: of the task, with room for the token of an image beside a text.
      spec: of the pair.
    """

    context: TaskContext
    spec: ImageTextSpec

    @classmethod
    def of(cls, context: TaskContext) -> "Captions":
        """Raises ValueError for a `max_length` that does not fit a network of padded texts (SigLIP)."""
        spec = _network(context).spec
        longest = spec.num_positions
        if spec.end_id == -1 and context.max_length != longest + 1:
            raise ValueError(
                f"data.max_length is {context.max_length}, but this network reads captions padded to {longest} tokens, "
                f"with one more for the image: set it to {longest + 1}."
            )
        return cls(replace(context, max_length=context.max_length - 1), spec)

    def tokens(self, texts: Sequence[str], names: Sequence[str]) -> list[Text | None]:
        """The texts as the text network reads them; None: dropped as too long.

        Args:
          names: of the texts in errors.
        """
        found = tokenize(texts, names, self.context)
        return [text and self._ended(text, name) for text, name in zip(found, names, strict=True)]

    def _ended(self, text: Text, name: str) -> Text:
        """The text as its vector is read: padded (SigLIP), or with its only end token last (CLIP)."""
        tokens = text.tokens
        if self.spec.end_id == -1:
            pad = self.context.tokenizer.pad_token_id
            if pad is None:
                raise ValueError("the tokenizer has no pad_token, but this network reads padded captions.")
            return Text(np.pad(tokens, (0, self.spec.num_positions - len(tokens)), constant_values=pad))
        end = int(tokens.max()) if self.spec.end_id is None else self.spec.end_id
        if np.flatnonzero(tokens == end).tolist() != [len(tokens) - 1]:
            raise ValueError(
                f"{name} should have the token {end}, which ends a text (eos_token_id in config.json), once, at its "
                f"end, but its tokens are {tokens.tolist()[:20]}: does the tokenizer belong to the network?"
            )
        return Text(tokens)


def _network(context: TaskContext) -> ImageText:
    """The network of the context's folder, without values."""
    assert context.folder is not None
    config = read_config(context.folder, images=True)
    network = abstract_module(lambda key: build_backbone(config, rngs=nnx.Rngs(params=key)))
    assert isinstance(network, ImageText)
    return network


def beside_image(caption: Text, images: TextImages) -> Text:
    """A caption and the token of its image."""
    places = np.concatenate([np.full(len(caption.tokens), -1, np.int32), images.places])
    tokens = np.concatenate([caption.tokens, np.zeros(len(images.places), np.int32)])
    return Text(tokens, images=replace(images, places=places))


def image_alone(images: TextImages) -> Text:
    """An image without a caption."""
    return Text(np.zeros(len(images.places), np.int32), images=images)
