"""The patches of pictures: their embeddings in a network, and examples without some of them.

A patch that is left out has the mean color, which is zero after `preprocessor_config.json`; its embedding is the bias.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from flax import nnx

from instructrec_jax.backbones.image_text import ImageText
from instructrec_jax.backbones.vision import VisionEncoder
from instructrec_jax.data.batch import Text
from instructrec_jax.data.example import Example
from instructrec_jax.data.media.picture import Blanked

Patch = tuple[int, int]  # number of the picture, and of the patch: from left to right, then from top to bottom


@dataclass(frozen=True)
class Grid:
    """The patches of the pictures of an example: `rows` × `columns` squares of `side` pixels in each."""

    pictures: int
    rows: int
    columns: int
    side: int

    @property
    def patches(self) -> list[Patch]:
        return [(picture, patch) for picture in range(self.pictures) for patch in range(self.rows * self.columns)]

    def without(self, example: Example, patches: Collection[Patch]) -> Example:
        """The example without some patches."""
        if not patches:
            return example
        images = []
        for number, picture in enumerate(example.images):
            own = [divmod(patch, self.columns) for which, patch in patches if which == number]
            corners = [(row * self.side, column * self.side) for row, column in own]
            images.append(Blanked.without(picture, corners, self.side) if own else picture)
        return replace(example, images=tuple(images))


def vision_of(backbone: object) -> VisionEncoder | None:
    """The image network of a backbone; None: it has none."""
    if isinstance(backbone, VisionEncoder):
        return backbone
    if isinstance(backbone, ImageText):
        return backbone.vision
    reader: Any = getattr(backbone, "reader", None)
    return None if reader is None else reader.vision


def grid_of(vision: VisionEncoder | None, text: Text) -> Grid | None:
    """The patches of a text's pictures; None: it has none."""
    if vision is None or text.images is None or not text.images.pictures:
        return None
    height, width, _ = text.images.read.shape
    side = vision.spec.patch_size
    return Grid(len(text.images.pictures), height // side, width // side, side)


class GivenPatches(nnx.Module):
    """Embeddings of patches, [images, patches, features], in place of those of the pixels."""

    def __init__(self, vectors: jax.Array):
        self.look = lambda: vectors

    def __call__(self, patches: jax.Array) -> jax.Array:
        return self.look()


def laid_in_grids(scores: np.ndarray, grid: Grid) -> np.ndarray:
    """float64 [pictures, rows, columns] of scores [pictures, patches]."""
    return scores.reshape(grid.pictures, grid.rows, grid.columns)
