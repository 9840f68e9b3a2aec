"""An image tokenizer of our own: a convolutional autoencoder with finite scalar quantization between its halves.

It makes a grid of whole numbers (codes) of an image, and an image of codes. transformers has no such network: the
folder is written by this package, in HuggingFace's layout, with model_type `fsq_tokenizer`.
"""

from dataclasses import dataclass
from math import prod
from typing import Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from instructrec_jax.backbones.family import TOKENIZER, Backbone, Family, Rule, linear, norm
from instructrec_jax.backbones.layers import (
    DropoutKeys,
    LayerNorm,
    Linear,
    Stack,
    StackOptions,
    activation,
    normal,
)
from instructrec_jax.backbones.scalar_quantization import codes_of, indices_of, quantized, scaled
from instructrec_jax.backbones.vision import patches_of, side_of
from instructrec_jax.hf_types import PretrainedConfig

MOST_CODES = 1 << 20
EPS = 1e-6


@dataclass(frozen=True)
class TokenizerSpec:
    """Sizes of an `ImageTokenizer`.

    Attributes:
        image_size: height and width of an image, pixels.
        patch_size: height and width of what one code stands for.
        channels: of an image.
        hidden_size: width of both halves.
        num_layers: residual layers of each half.
        levels: of each number of a code, see `scalar_quantization`.
        activation: between the convolutions of a layer.
    """

    image_size: int
    patch_size: int
    channels: int
    hidden_size: int
    num_layers: int
    levels: tuple[int, ...]
    activation: str = "gelu"

    @property
    def grid(self) -> int:
        """Codes along each side of an image."""
        return self.image_size // self.patch_size

    @property
    def codes(self) -> int:
        """Codes of an image, from left to right and from top to bottom."""
        return self.grid**2

    @property
    def code_count(self) -> int:
        """How many different codes there are."""
        return prod(self.levels)


class CodesSpec(Protocol):
    """What there is to know of the codes of an `ImageCoder`; see `TokenizerSpec`."""

    @property
    def image_size(self) -> int: ...
    @property
    def channels(self) -> int: ...
    @property
    def codes(self) -> int: ...
    @property
    def code_count(self) -> int: ...


class ImageCoder(Protocol):
    """A network that makes codes of images, and images of codes: of this module, or `vqgan.VQGAN`."""

    @property
    def spec(self) -> CodesSpec: ...

    def encode(self, pixels: jax.Array) -> jax.Array:
        """Pixels float [rows, height, width, channels] -> int32 [rows, codes], the indices of an image's codes."""

    def decode(self, indices: jax.Array) -> jax.Array:
        """int [rows, codes] -> float32 pixels [rows, height, width, channels]."""


def check_pixels(pixels: jax.Array, spec: CodesSpec) -> None:
    """Raises ValueError for images of another size than the network's."""
    expected = (spec.image_size, spec.image_size, spec.channels)
    if pixels.shape[1:] != expected:
        raise ValueError(
            f"the images have {' × '.join(map(str, pixels.shape[1:]))} values, but the image tokenizer reads "
            f"{' × '.join(map(str, expected))} (its sizes in config.json): resize them."
        )


class Convolution(nnx.Module):
    """A convolution of 3 × 3 places [rows, height, width, channels], with zeros around them."""

    def __init__(self, width: int, std: float, dtype: DTypeLike, rngs: nnx.Rngs):
        kernel = normal(std)(rngs.params(), (3, 3, width, width))
        self.kernel = nnx.Param(kernel, axes=(None, None, "embed", "mlp"))
        self.bias = nnx.Param(jnp.zeros(width, jnp.float32), axes=("mlp",))
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        height, width = x.shape[1:3]
        padded = jnp.pad(x.astype(self.dtype), ((0, 0), (1, 1), (1, 1), (0, 0)))
        # as one product: the gradient of XLA's own convolution takes many times as long on CPU
        around = [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
        kernel = self.kernel[...].astype(self.dtype)
        y = jnp.tensordot(jnp.concatenate(around, axis=-1), kernel.reshape(-1, kernel.shape[-1]), axes=1)
        return y + self.bias[...].astype(self.dtype)


class ResidualLayer(nnx.Module):
    """x + outer(act(inner(norm(x)))), both convolutions, on x [rows, places, width] of a square grid."""

    def __init__(self, spec: TokenizerSpec, dtype: DTypeLike, rngs: nnx.Rngs):
        width = spec.hidden_size
        std = (2 / (9 * width)) ** 0.5  # He et al. (2015); the second one smaller, so that layers start near x
        self.norm = LayerNorm(width, eps=EPS, dtype=dtype)
        self.inner = Convolution(width, std, dtype, rngs)
        self.outer = Convolution(width, 0.3 * std, dtype, rngs)
        self.spec = spec

    def __call__(self, x: jax.Array, context: object, keys: DropoutKeys | None) -> jax.Array:
        rows, _, width = x.shape
        y = self.norm(x).reshape(rows, self.spec.grid, self.spec.grid, width)
        y = self.outer(activation(self.spec.activation)(self.inner(y)))
        return x + y.reshape(x.shape)


class Half(nnx.Module):
    """Linear, residual layers, norm, linear: of patches to codes, or back."""

    def __init__(
        self, spec: TokenizerSpec, inputs: int, outputs: int, dtype: DTypeLike, stack: StackOptions, rngs: nnx.Rngs
    ):
        width = spec.hidden_size
        self.first = Linear(inputs, width, axes=(None, "embed"), init=normal(inputs**-0.5), dtype=dtype, rngs=rngs)
        self.layers = Stack(
            ["layer"] * spec.num_layers, lambda kind, rngs: ResidualLayer(spec, dtype, rngs), options=stack, rngs=rngs
        )
        self.norm = LayerNorm(width, eps=EPS, dtype=dtype)
        # codes and pixels are numbers of fp32
        self.last = Linear(width, outputs, axes=("embed", None), init=normal(width**-0.5), rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.last(self.norm(self.layers(self.first(x), None)))


class ImageTokenizer(Backbone):
    """See the module. It has no words: `vocab_size` is 0, and an image is one token of a row.

    Pixels are float [rows, height, width, channels], normalized as `preprocessor_config.json` says.
    """

    def __init__(self, spec: TokenizerSpec, *, dtype: DTypeLike, stack: StackOptions, rngs: nnx.Rngs):
        patch = spec.patch_size**2 * spec.channels
        self.encoder = Half(spec, patch, len(spec.levels), dtype, stack, rngs)
        self.decoder = Half(spec, len(spec.levels), patch, dtype, stack, rngs)
        self.spec = spec
        self.hidden_size = spec.hidden_size
        self.vocab_size = 0
        self.image_vectors = 1
        self.image_size = spec.image_size
        self.max_length = spec.codes

    def encode(self, pixels: jax.Array) -> jax.Array:
        """Pixels -> int32 [rows, codes], the indices of an image's codes."""
        return indices_of(self._codes(pixels), self.spec.levels)

    def decode(self, indices: jax.Array) -> jax.Array:
        """int [rows, codes] -> float32 pixels [rows, height, width, channels]."""
        return self._pixels(codes_of(indices, self.spec.levels))

    def reconstruct(self, pixels: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Pixels -> (those that their codes stand for, the codes' indices), through which gradients pass."""
        codes = self._codes(pixels)
        return self._pixels(codes), indices_of(codes, self.spec.levels)

    def _codes(self, pixels: jax.Array) -> jax.Array:
        check_pixels(pixels, self.spec)
        return quantized(self.encoder(patches_of(pixels, self.spec.patch_size)), self.spec.levels)

    def _pixels(self, codes: jax.Array) -> jax.Array:
        spec, (rows, grid, size) = self.spec, (len(codes), self.spec.grid, self.spec.patch_size)
        x = self.decoder(scaled(codes, spec.levels)).reshape(rows, grid, grid, size, size, spec.channels)
        return x.transpose(0, 1, 3, 2, 4, 5).reshape(rows, spec.image_size, spec.image_size, spec.channels)


def spec_of(config: PretrainedConfig) -> TokenizerSpec:
    """The sizes in a config. Raises ValueError for missing and impossible ones."""
    where = f"config.json of this {config.model_type} model"
    levels = getattr(config, "levels", None)
    if not isinstance(levels, list) or not levels or not all(type(one) is int and one >= 3 for one in levels):
        raise ValueError(f"{where} has levels={levels!r}, but must list numbers of at least 3, such as [8, 5, 5].")
    if prod(levels) > MOST_CODES:
        raise ValueError(f"{where} has levels={levels}, which are {prod(levels):,} codes: choose fewer or lower ones.")
    sizes = {name: getattr(config, name, None) for name in ("hidden_size", "num_hidden_layers", "num_channels")}
    for name, value in sizes.items():
        if type(value) is not int or value < 1:
            raise ValueError(f"{where} has {name}={value!r}, but needs a whole number above 0.")
    image, patch = side_of(config, "image_size"), side_of(config, "patch_size")
    if image % patch:
        raise ValueError(f"{where}: image_size, {image}, must be a multiple of patch_size, {patch}.")
    act = getattr(config, "hidden_act", "gelu")
    activation(act)
    return TokenizerSpec(
        image, patch, config.num_channels, config.hidden_size, config.num_hidden_layers, tuple(levels), act
    )


def build(config: PretrainedConfig, *, dtype: DTypeLike, stack: StackOptions, pooler: bool, rngs: nnx.Rngs) -> Backbone:
    return ImageTokenizer(spec_of(config), dtype=dtype, stack=stack, rngs=rngs)


def _half_rules(half: str) -> tuple[Rule, ...]:
    layer = f"{half}.layers.{{layer}}"
    return (
        *linear(f"{half}.first", f"{half}.first"),
        *norm(f"{layer}.norm", f"{layer}.norm"),
        *(
            rule
            for name in ("inner", "outer")
            for rule in (
                Rule(f"{layer}.{name}.weight", f"{layer}.{name}.kernel", "convolution"),
                Rule(f"{layer}.{name}.bias", f"{layer}.{name}.bias"),
            )
        ),
        *norm(f"{half}.norm", f"{half}.norm"),
        *linear(f"{half}.last", f"{half}.last"),
    )


FAMILY = Family(
    build=build,
    prefix="tokenizer.",
    mapping=(*_half_rules("encoder"), *_half_rules("decoder")),
    base_class="FsqTokenizerModel",
    kind=TOKENIZER,
)
