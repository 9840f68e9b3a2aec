"""Images of packed rows: their pixels, and the tokens that stand for them."""

from dataclasses import dataclass

import jax

from instructrec_jax.arrays import Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RowImages:
    """The images in rows of packed texts, placed within their rows so that rows can be split over devices.

    An image gives V vectors: one (the pooled one, where a network reads images alone), or one for each patch or group
    of patches (where they stand beside words). They take the place of embedded tokens.

    Attributes:
        pixels: float32 [rows, images, height, width, channels]; zeros where a row has fewer images.
        places: int32 [rows, length]: k * V + v at the token of vector v of the row's image k, -1 at a word and at padding.
    """

    pixels: Array
    places: Array
