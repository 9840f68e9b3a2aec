"""How a decoder reads images: an image network, and a projector of its vectors to the width of embedded tokens."""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from instructrec_jax.backbones.layers import DropoutKeys, Linear, RMSNorm, StackOptions, activation, normal
from instructrec_jax.backbones.row_images import RowImages, RowVectors
from instructrec_jax.backbones.vision import VisionEncoder, VisionSpec

PROJECTOR_SITE = 1 << 20  # a dropout site that no layer number is


@dataclass(frozen=True)
class ReaderSpec:
    """Sizes and variants of an `ImageReader`.

    Attributes:
        width: of the decoder's embedded tokens.
        token_id: the token that stands for a vector of an image in prompts; it may lie beyond the vocabulary.
        after: which hidden states are projected, side by side: those after so many layers, not normalized; None: the
            last ones, normalized.
        skip: vectors in front that are left out (CLIP's class token).
        side: vectors along each side after average pooling; None: no pooling.
        norm: whether the pooled vectors pass an RMSNorm (Gemma's, with scale 1 + weight).
        hidden: width between the projector's two layers; None: there is one layer.
        activation: between the two layers.
        bias: whether the projector's layers have one.
        together: what tokens attend to in both directions: "nothing"; their "image"; their "prompt", which is where
            token types are above 0 (see `attention.attention`, groups).
        initializer_range: of the projector.
    """

    vision: VisionSpec
    width: int
    token_id: int
    after: tuple[int, ...] | None = None
    skip: int = 0
    side: int | None = None
    norm: bool = False
    hidden: int | None = None
    activation: str = "linear"
    bias: bool = True
    together: Literal["nothing", "image", "prompt"] = "nothing"
    initializer_range: float = 0.02

    @property
    def image_vectors(self) -> int:
        """V, the vectors of an image."""
        vision = self.vision
        return vision.class_token + vision.grid**2 - self.skip if self.side is None else self.side**2


class Projector(nnx.Module):
    """outer(act(inner(norm(pool(x))))) of x [images, vectors, features]; all but `inner` only if the spec says so."""

    def __init__(self, spec: ReaderSpec, dtype: DTypeLike, rngs: nnx.Rngs):
        tower, init = spec.vision.tower, normal(spec.initializer_range)
        inputs, width = tower.hidden_size * len(spec.after or (0,)), spec.hidden or spec.width

        def linear(inputs: int, width: int, axes: tuple[str | None, str | None]) -> Linear:
            return Linear(inputs, width, axes=axes, use_bias=spec.bias, init=init, dtype=dtype, rngs=rngs)

        self.norm = RMSNorm(inputs, eps=tower.eps, offset=1.0, axes=(None,), dtype=dtype) if spec.norm else None
        self.inner = linear(inputs, width, (None, "mlp" if spec.hidden else "embed"))
        self.outer = None if spec.hidden is None else linear(width, spec.width, ("mlp", "embed"))
        self.spec = spec

    def __call__(self, x: jax.Array, dropout: DropoutKeys | None = None) -> jax.Array:
        keys = [None if dropout is None else dropout.fold(site) for site in range(2)]
        if self.spec.side is not None:
            x = average(x, self.spec.side)
        x = self.inner(x if self.norm is None else self.norm(x), keys[0])
        return x if self.outer is None else self.outer(activation(self.spec.activation)(x), keys[1])


def average(x: jax.Array, side: int) -> jax.Array:
    """Means of squares of neighbors: [images, n · n, features] → [images, side · side, features], n a multiple."""
    images, count, width = x.shape
    size = int(count**0.5) // side
    return x.reshape(images, side, size, side, size, width).mean((2, 4)).reshape(images, side * side, width)


class ImageReader(nnx.Module):
    """Images of rows → vectors [rows * images, V, width] in place of embedded tokens.

    Raises ValueError for images of another size than the network's, which would give another number of vectors.
    """

    def __init__(self, spec: ReaderSpec, *, dtype: DTypeLike, stack: StackOptions, rngs: nnx.Rngs):
        activation(spec.activation)
        # `train_last` counts the decoder's layers
        self.vision = VisionEncoder(spec.vision, dtype=dtype, stack=StackOptions(stack.remat), rngs=rngs)
        self.projector = Projector(spec, dtype, rngs)
        self.spec = spec

    def __call__(self, images: RowImages, dropout: DropoutKeys | None = None) -> jax.Array:
        pixels = images.flat
        spec, size = self.spec, self.spec.vision.image_size
        if pixels.shape[1:3] != (size, size):
            raise ValueError(
                f"the images have {pixels.shape[1]} × {pixels.shape[2]} pixels, but the network reads {size} × {size} "
                "(image_size in config.json): resize them."
            )
        vectors, patches = spec.image_vectors, spec.vision.class_token + spec.vision.grid**2
        keys = images.keys(dropout, vectors, patches)
        if spec.after is None:
            x = self.vision(pixels, dropout=keys)
        else:
            x = jnp.concatenate(self.vision.states(pixels, spec.after, keys), axis=-1)
        # sites of the tower's layers are folded into its keys; the projector's vectors are as many other parts
        own = None if dropout is None else images.keys(dropout.fold(PROJECTOR_SITE), vectors, vectors)
        return self.projector(x[:, spec.skip :], own)

    def place(
        self, x: jax.Array, images: RowImages | RowVectors | None, dropout: DropoutKeys | None = None
    ) -> jax.Array:
        """Embedded tokens [rows, length, width] with the vectors of images in their places.

        Args:
            dropout: keys of the rows' tokens; those of an image depend on its first token alone.
        """
        if images is None or (isinstance(images, RowImages) and images.pixels.shape[1] == 0):
            return x
        if isinstance(images, RowVectors):
            vectors = jnp.asarray(images.vectors)
        else:
            vectors = self(images, dropout).reshape(len(x), -1, x.shape[-1])
        places = jnp.asarray(images.places)[..., None]
        # places beyond the vectors give NaN
        taken = jnp.take_along_axis(vectors, jnp.maximum(places, 0), axis=1, mode="fill", fill_value=jnp.nan)
        return jnp.where(places < 0, x, taken.astype(x.dtype))

    def groups(self, token_types: jax.Array, images: RowImages | RowVectors | None) -> jax.Array | None:
        """int32 [rows, length] groups for `attention.attention`, or None if no tokens attend in both directions."""
        if self.spec.together == "prompt":
            return token_types
        if self.spec.together == "nothing" or images is None:
            return None
        return jnp.where(images.places < 0, 0, images.places // self.spec.image_vectors + 1)
