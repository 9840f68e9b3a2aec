"""A pair of networks (CLIP, SigLIP) that judges pictures: is the right caption the nearest of a hundred?"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx

from instructrec_jax.backbones.family import PAIR
from instructrec_jax.backbones.folder import family_of, read_config
from instructrec_jax.backbones.image_text import ImageText
from instructrec_jax.backbones.reading import input_limit, load_backbone
from instructrec_jax.backbones.tokenizer import open_tokenizer
from instructrec_jax.data.media.picture import Picture
from instructrec_jax.data.media.pixels import PixelReader
from instructrec_jax.metrics.ranking import Ranks
from instructrec_jax.tasks.generation.image_codec import exported

CANDIDATES = 100  # captions that a picture is compared with, its own among them
BATCH = 64


@dataclass(frozen=True)
class ImageJudge:
    """A folder with a pair of networks; its weights are read when they are first needed."""

    folder: Path

    @classmethod
    def of(cls, named: str) -> "ImageJudge":
        """Raises ValueError for a run directory and for a folder of another kind."""
        return cls(exported(named, "task.judge", PAIR, "a pair of an image and a text network (CLIP, SigLIP)"))

    def __reduce__(self) -> tuple[type["ImageJudge"], tuple[Path]]:
        return ImageJudge, (self.folder,)

    @cached_property
    def _network(self) -> ImageText:
        module = load_backbone(self.folder, images=True, rngs=nnx.Rngs(0)).module
        assert isinstance(module, ImageText)
        return module

    def captions(self, captions: Sequence[str]) -> np.ndarray:
        """float64 [captions, width], unit vectors. Raises ValueError for one that is too long."""
        config = read_config(self.folder, images=True)
        tokenizer = open_tokenizer(self.folder, config)
        limit = input_limit(config)
        whole = self._network.spec.end_id == -1  # SigLIP's captions are padded to their full length
        padding = "max_length" if whole else True
        rows = tokenizer(list(captions), padding=padding, max_length=limit if whole else None, verbose=False)
        tokens = np.asarray(rows["input_ids"], np.int32)
        if tokens.shape[1] > limit:
            raise ValueError(f"task.judge: a caption has {tokens.shape[1]} tokens, but {self.folder} reads {limit}.")
        there = np.ones_like(tokens) if whole else np.asarray(rows["attention_mask"], np.int32)
        places = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
        found = [
            self._network.embed_texts(*(jnp.asarray(x[n : n + BATCH]) for x in (tokens, there, places)))
            for n in range(0, len(tokens), BATCH)
        ]
        return _unit(np.concatenate([np.asarray(each, np.float64) for each in found]))

    def pictures(self, pictures: Sequence[Picture]) -> np.ndarray:
        """float64 [pictures, width], unit vectors."""
        vision = family_of(read_config(self.folder, images=True)).tower
        assert vision is not None
        config = vision(read_config(self.folder, images=True))
        read = PixelReader.of(self.folder, config.num_channels, input_limit(config))
        found = []
        for first in range(0, len(pictures), BATCH):
            pixels = np.stack([read(one) for one in pictures[first : first + BATCH]])
            found.append(np.asarray(self._network.embed_images(jnp.asarray(pixels)), np.float64))
        return _unit(np.concatenate(found))

    def ranks(self, pictures: Sequence[Picture], captions: Sequence[str], seed: int) -> Ranks:
        """The rank of each picture's caption among `CANDIDATES`: its own, and others of the list.

        The others are drawn from the distinct captions by (seed, number of the picture) alone, so pictures of several
        models meet the same ones.
        """
        return ranks_of(self.pictures(pictures), captions, self.captions(list(dict.fromkeys(captions))), seed)


def ranks_of(pictures: np.ndarray, captions: Sequence[str], vectors: np.ndarray, seed: int) -> Ranks:
    """See `ImageJudge.ranks`.

    Args:
      pictures: float64 [pictures, width].
      vectors: float64 [distinct captions, width], in the order of their first appearance.
    """
    number = {caption: n for n, caption in enumerate(dict.fromkeys(captions))}
    better, tied = [], []
    for case, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        others = np.delete(np.arange(len(vectors)), number[caption])
        chosen = np.random.default_rng((seed, case)).permutation(others)[: CANDIDATES - 1]
        scores, own = vectors[chosen] @ picture, vectors[number[caption]] @ picture
        better.append(int((scores > own).sum()))
        tied.append(int((scores == own).sum()))
    return Ranks(np.array(better), np.array(tied), np.arange(len(better)))


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
