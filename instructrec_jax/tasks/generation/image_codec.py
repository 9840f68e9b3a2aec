"""An image tokenizer opened beside a language model: images → codes, codes → images."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import cast

import jax
import numpy as np
from flax import nnx

from instructrec_jax.backbones.family import TOKENIZER, Backbone
from instructrec_jax.backbones.folder import family_of, find_folder, read_config, weights_fingerprint
from instructrec_jax.backbones.image_tokenizer import CodesSpec, ImageCoder
from instructrec_jax.backbones.reading import build_backbone, load_backbone
from instructrec_jax.backbones.tensor_names import abstract_module
from instructrec_jax.data.media.drawing import shown_values
from instructrec_jax.data.media.picture import Picture
from instructrec_jax.data.media.pixels import PixelReader

FOLDER = "image_tokenizer"  # of its copy in the folder of a network that writes codes
Parameters = nnx.State[Hashable, object]
BATCH, PIXELS = 64, 1 << 18  # most images that are computed together, and their pixels


def exported(named: str, setting: str, kind: str, wanted: str) -> Path:
    """The HuggingFace folder that a setting names.

    Raises ValueError for a run directory, and for a folder whose network is not of this kind (see `backbones.family`).
    """
    if (Path(named).expanduser() / "config.yaml").is_file():
        raise ValueError(
            f"{setting} is {named}, a run directory: write its folder with `python -m instructrec_jax.export {named} "
            "--out FOLDER`, and name that."
        )
    folder = find_folder(named)
    config = read_config(folder, images=True)
    if family_of(config).kind != kind:
        raise ValueError(f"{setting} is {folder}, which holds a {config.model_type}: name {wanted}.")
    return folder


@dataclass(frozen=True)
class ImageCodec:
    """A folder with an image tokenizer; its weights are read when they are first needed."""

    folder: Path

    @classmethod
    def find(cls, network: Path, named: str) -> "ImageCodec":
        """The tokenizer in a network's folder (its own copy, in a run or an export), else the `named` one.

        Raises ValueError for none, for a run directory and for a folder of another kind.
        """
        own = network / FOLDER
        if not named and not own.is_dir():
            raise ValueError(
                "task.tokenizer is not set: name the folder of an image tokenizer, such as an export of an "
                "image_tokenization run."
            )
        wanted = "the folder of an image tokenizer (model_type fsq_tokenizer or vqgan)"
        return cls(exported(str(own) if own.is_dir() else named, "task.tokenizer", TOKENIZER, wanted))

    def __reduce__(self) -> tuple[type["ImageCodec"], tuple[Path]]:
        return ImageCodec, (self.folder,)  # worker processes read the weights again

    @cached_property
    def spec(self) -> CodesSpec:
        config = read_config(self.folder, images=True)
        return _coder(abstract_module(lambda key: build_backbone(config, rngs=nnx.Rngs(params=key)))).spec

    @cached_property
    def read(self) -> PixelReader:
        reader = PixelReader.of(self.folder, self.spec.channels, self.spec.codes)
        size = self.spec.image_size
        if reader.shape[:2] != (size, size):
            raise ValueError(
                f"{self.folder}: preprocessor_config.json makes pictures of {reader.shape[0]} × {reader.shape[1]} "
                f"pixels, but the image tokenizer reads {size} × {size} (image_size in config.json): make them equal."
            )
        return reader

    @property
    def fingerprint(self) -> str:
        return weights_fingerprint(self.folder)

    @cached_property
    def _network(self) -> tuple[nnx.GraphDef[Backbone], Parameters]:
        return nnx.split(load_backbone(self.folder, images=True, rngs=nnx.Rngs(0)).module)

    def codes(self, pictures: Sequence[Picture]) -> np.ndarray:
        """int32 [pictures, codes]. Raises ValueError for a picture that cannot be read."""
        pixels = [self.read(one) for one in pictures]
        return self._batched(_encode, pixels) if pixels else np.zeros((0, self.spec.codes), np.int32)

    def draw(self, codes: Sequence[Sequence[int]] | np.ndarray) -> list[np.ndarray]:
        """Codes of images, int [images, codes] -> values from 0 to 255, float64 [height, width, channels] each."""
        rows = [np.asarray(row, np.int32) for row in codes]
        return [shown_values(pixels, self.read.how) for pixels in self._batched(_decode, rows)] if rows else []

    def _batched(self, run: "jax.stages.Wrapped", rows: Sequence[np.ndarray]) -> np.ndarray:
        """One shape is compiled: the last batch is filled up."""
        graphdef, params = self._network
        found, together = [], max(1, min(BATCH, PIXELS // self.spec.image_size**2))
        for first in range(0, len(rows), together):
            some = rows[first : first + together]
            whole = np.stack([*some, *[some[0]] * (together - len(some))])
            found.append(np.asarray(run(graphdef, params, whole))[: len(some)])
        return np.concatenate(found)


@jax.jit(static_argnums=0)
def _encode(graphdef: nnx.GraphDef[Backbone], params: Parameters, pixels: jax.Array) -> jax.Array:
    return _coder(nnx.merge(graphdef, params)).encode(pixels)


@jax.jit(static_argnums=0)
def _decode(graphdef: nnx.GraphDef[Backbone], params: Parameters, codes: jax.Array) -> jax.Array:
    return _coder(nnx.merge(graphdef, params)).decode(codes)


def _coder(network: object) -> ImageCoder:
    return cast(ImageCoder, network)


def text_of_codes(codes: Sequence[int]) -> str:
    """The text of codes."""
    return "".join(f"<code_{code}>" for code in codes)


class CodeTexts:
    """Texts of the tokens of a vocabulary of codes alone; see `inference.text.TokenTexts`."""

    all_special_tokens: tuple[str, ...] = ()
    all_special_ids: tuple[int, ...] = ()

    def decode(self, token_ids: list[int], skip_special_tokens: bool = True) -> str:
        return text_of_codes(token_ids)
