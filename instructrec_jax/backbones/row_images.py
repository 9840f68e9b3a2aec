"""Images (or sounds) of packed rows: their pixels, and the tokens that stand for them."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from instructrec_jax.arrays import Array
from instructrec_jax.backbones.layers import DropoutKeys


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RowImages:
    """The images in rows of packed texts, placed within their rows so that rows can be split over devices.

    An image gives V vectors: one (the pooled one, where a network reads images alone), or one for each patch or group
    of patches (where they stand beside words). They take the place of embedded tokens. A sound is an image here: its
    pixels are its spectrogram [frames, mels].

    Attributes:
        pixels: float32 [rows, images, height, width, channels]; zeros where a row has fewer images.
        places: int32 [rows, length]: k * V + v at the token of vector v of the row's image k, -1 at a word and at
            padding.
    """

    pixels: Array
    places: Array

    def keys(self, dropout: DropoutKeys | None, vectors: int, parts: int) -> DropoutKeys | None:
        """Keys [rows * images, parts] of the parts of each image, which depend on its first token alone.

        Args:
            dropout: keys of the rows' tokens.
            vectors: V.
            parts: such as the patches of an image.
        """
        if dropout is None:
            return None
        first = vectors * jnp.arange(self.pixels.shape[1])[:, None]
        return dropout.at(jnp.argmax(self.places[:, None] == first, axis=-1)).parts(parts)

    def laid(self, vectors: jax.Array) -> jax.Array:
        """Vectors of the images, [rows * images, V, width], at their tokens: [rows, length, width], zeros elsewhere."""
        rows = self.pixels.shape[0]
        places = jnp.asarray(self.places)[..., None]
        flat = vectors.reshape(rows, -1, vectors.shape[-1])
        return jnp.where(places < 0, 0, jnp.take_along_axis(flat, jnp.maximum(places, 0), axis=1))

    @property
    def flat(self) -> jax.Array:
        """The pixels [rows * images, ...]."""
        rows, count, *size = self.pixels.shape
        return jnp.asarray(self.pixels).reshape(rows * count, *size)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RowVectors:
    """Images of rows that an `ImageReader` has read.

    Attributes:
        vectors: [rows, n, width], of all images of a row one after another; further ones are not used.
        places: int32 [rows, length]: the number of the vector at each token, as in `RowImages`.
    """

    vectors: Array
    places: Array
