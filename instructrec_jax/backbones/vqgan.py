"""VQGAN (Esser et al., 2021), as dalle-mini draws with it: an image tokenizer with a learned codebook, read as it is.

The network is that of taming-transformers; names and layouts of its tensors are those of vqgan-jax, whose Flax files
are flattened with dots (docs/images.md). So a parameter's path is its tensor's name.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from instructrec_jax.backbones.attention import attention
from instructrec_jax.backbones.family import TOKENIZER, Backbone, Family, Rule, refuse
from instructrec_jax.backbones.image_tokenizer import check_pixels
from instructrec_jax.backbones.layers import StackOptions, normal
from instructrec_jax.backbones.tensor_names import abstract_module, sites_of
from instructrec_jax.hf_types import PretrainedConfig

EPS = 1e-6
GROUPS = 32  # of channels that are normalized together
MOST_CODES = 1 << 20


@dataclass(frozen=True)
class VQGANSpec:
    """Sizes of a `VQGAN`.

    Attributes:
        image_size: height and width of an image, pixels.
        channels: of an image.
        width: channels of the first level of both halves.
        factors: of `width`, by level; each level but the last halves height and width.
        blocks: residual blocks of an encoder's level; a decoder's has one more.
        attention_sizes: heights of the levels whose residual blocks are followed by attention.
        latent: channels of what the encoder writes and the decoder reads.
        code_size: numbers of a code's vector.
        code_count: how many different codes there are.
    """

    image_size: int
    channels: int
    width: int
    factors: tuple[int, ...]
    blocks: int
    attention_sizes: tuple[int, ...]
    latent: int
    code_size: int
    code_count: int

    @property
    def grid(self) -> int:
        """Codes along each side of an image."""
        return self.image_size >> (len(self.factors) - 1)

    @property
    def codes(self) -> int:
        """Codes of an image, from left to right and from top to bottom."""
        return self.grid**2

    def has_attention(self, level: int) -> bool:
        return self.image_size >> level in self.attention_sizes


class Convolution(nnx.Module):
    """A convolution of size × size places [rows, height, width, in], with zeros around; `strided`: of every other."""

    def __init__(self, inputs: int, outputs: int, size: int, rngs: nnx.Rngs, *, strided: bool = False):
        kernel = normal((size * size * inputs) ** -0.5)(rngs.params(), (size, size, inputs, outputs))
        self.kernel = nnx.Param(kernel, axes=(None, None, None, None))
        self.bias = nnx.Param(jnp.zeros(outputs, jnp.float32), axes=(None,))
        self.stride = 2 if strided else 1
        # taming-transformers pads a halving convolution at the bottom and at the right alone
        self.padding = (0, 1) if strided else (size // 2, size // 2)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = jax.lax.conv_general_dilated(
            x,
            self.kernel[...],
            window_strides=(self.stride, self.stride),
            padding=(self.padding, self.padding),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return y + self.bias[...]


class GroupNorm(nnx.Module):
    """Normalization over all places and the channels of each of `GROUPS` groups (Wu & He, 2018)."""

    def __init__(self, channels: int):
        self.scale = nnx.Param(jnp.ones(channels, jnp.float32), axes=(None,))
        self.bias = nnx.Param(jnp.zeros(channels, jnp.float32), axes=(None,))

    def __call__(self, x: jax.Array) -> jax.Array:
        groups = x.reshape(*x.shape[:3], GROUPS, -1)
        groups = groups - groups.mean((1, 2, 4), keepdims=True)
        y = groups * jax.lax.rsqrt(jnp.square(groups).mean((1, 2, 4), keepdims=True) + EPS)
        return y.reshape(x.shape) * self.scale[...] + self.bias[...]


class ResidualBlock(nnx.Module):
    """x + conv2(swish(norm2(conv1(swish(norm1(x)))))), with x projected where the width changes."""

    def __init__(self, inputs: int, outputs: int, rngs: nnx.Rngs):
        self.norm1 = GroupNorm(inputs)
        self.conv1 = Convolution(inputs, outputs, 3, rngs)
        self.norm2 = GroupNorm(outputs)
        self.conv2 = Convolution(outputs, outputs, 3, rngs)
        self.nin_shortcut = Convolution(inputs, outputs, 1, rngs) if inputs != outputs else None

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.conv1(jax.nn.silu(self.norm1(x)))
        y = self.conv2(jax.nn.silu(self.norm2(y)))
        return y + (x if self.nin_shortcut is None else self.nin_shortcut(x))


class AttentionBlock(nnx.Module):
    """x + attention among all places of norm(x), with one head."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        self.norm = GroupNorm(width)
        self.q, self.k, self.v, self.proj_out = (Convolution(width, width, 1, rngs) for _ in range(4))

    def __call__(self, x: jax.Array) -> jax.Array:
        rows, height, width, channels = x.shape
        y = self.norm(x)
        q, k, v = (each(y).reshape(rows, height * width, 1, channels) for each in (self.q, self.k, self.v))
        ones = jnp.ones((rows, height * width), jnp.int32)
        return x + self.proj_out(attention(q, k, v, segment_ids=ones, positions=ones).reshape(x.shape))


class Level(nnx.Module):
    """Residual blocks of one size, with attention behind each or none, and a change of the size at the end."""

    def __init__(self, inputs: int, outputs: int, blocks: int, attends: bool, change: str | None, rngs: nnx.Rngs):
        for number in range(blocks):
            setattr(self, f"block_{number}", ResidualBlock(inputs if number == 0 else outputs, outputs, rngs))
            if attends:
                setattr(self, f"attn_{number}", AttentionBlock(outputs, rngs))
        if change is not None:
            setattr(self, change, Resampling(outputs, change == "downsample", rngs))
        self.blocks, self.attends, self.change = blocks, attends, change

    def __call__(self, x: jax.Array) -> jax.Array:
        for number in range(self.blocks):
            x = getattr(self, f"block_{number}")(x)
            if self.attends:
                x = getattr(self, f"attn_{number}")(x)
        return x if self.change is None else getattr(self, self.change)(x)


class Resampling(nnx.Module):
    """Half of height and width, or twice as much: each place four times, then a convolution."""

    def __init__(self, width: int, halves: bool, rngs: nnx.Rngs):
        self.conv = Convolution(width, width, 3, rngs, strided=halves)
        self.halves = halves

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.conv(x if self.halves else x.repeat(2, axis=1).repeat(2, axis=2))


class Middle(nnx.Module):
    """What both halves have at the smallest size."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        self.block_1 = ResidualBlock(width, width, rngs)
        self.attn_1 = AttentionBlock(width, rngs)
        self.block_2 = ResidualBlock(width, width, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.block_2(self.attn_1(self.block_1(x)))


class Encoder(nnx.Module):
    """Pixels [rows, height, width, channels] → [rows, grid, grid, latent]."""

    def __init__(self, spec: VQGANSpec, rngs: nnx.Rngs):
        widths = [spec.width, *(factor * spec.width for factor in spec.factors)]
        last = len(spec.factors) - 1
        self.conv_in = Convolution(spec.channels, spec.width, 3, rngs)
        for level, (inputs, outputs) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
            change = "downsample" if level < last else None
            made = Level(inputs, outputs, spec.blocks, spec.has_attention(level), change, rngs)
            setattr(self, f"down_{level}", made)
        self.mid = Middle(widths[-1], rngs)
        self.norm_out = GroupNorm(widths[-1])
        self.conv_out = Convolution(widths[-1], spec.latent, 3, rngs)
        self.levels = len(spec.factors)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.conv_in(x)
        for level in range(self.levels):
            x = getattr(self, f"down_{level}")(x)
        return self.conv_out(jax.nn.silu(self.norm_out(self.mid(x))))


class Decoder(nnx.Module):
    """[rows, grid, grid, latent] → pixels."""

    def __init__(self, spec: VQGANSpec, rngs: nnx.Rngs):
        widths = [factor * spec.width for factor in spec.factors]
        self.conv_in = Convolution(spec.latent, widths[-1], 3, rngs)
        self.mid = Middle(widths[-1], rngs)
        for level, (inputs, outputs) in enumerate(zip([*widths[1:], widths[-1]], widths, strict=True)):
            change = "upsample" if level else None
            made = Level(inputs, outputs, spec.blocks + 1, spec.has_attention(level), change, rngs)
            setattr(self, f"up_{level}", made)
        self.norm_out = GroupNorm(widths[0])
        self.conv_out = Convolution(widths[0], spec.channels, 3, rngs)
        self.levels = len(spec.factors)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.mid(self.conv_in(x))
        for level in reversed(range(self.levels)):
            x = getattr(self, f"up_{level}")(x)
        return self.conv_out(jax.nn.silu(self.norm_out(x)))


class Codebook(nnx.Module):
    """The vectors of the codes, [code_count, code_size]."""

    def __init__(self, spec: VQGANSpec, rngs: nnx.Rngs):
        table = normal(1.0)(rngs.params(), (spec.code_count, spec.code_size))
        self.embedding = nnx.Param(table, axes=(None, None))


class Quantizer(nnx.Module):
    """Vectors ↔ the nearest codes."""

    def __init__(self, spec: VQGANSpec, rngs: nnx.Rngs):
        self.embedding = Codebook(spec, rngs)

    def nearest(self, x: jax.Array) -> jax.Array:
        """int32 [...]: the code whose vector is nearest to x [..., code_size]; of equally near ones the first."""
        table = self.embedding.embedding[...]
        # |x − e|² without |x|², which all codes share
        distances = jnp.square(table).sum(-1) - 2 * jnp.einsum("...d,nd->...n", x, table)
        return jnp.argmin(distances, axis=-1).astype(jnp.int32)

    def vectors(self, codes: jax.Array) -> jax.Array:
        """float32 [..., code_size]; NaN for a code that is not there."""
        return jnp.take(self.embedding.embedding[...], codes, axis=0)


class VQGAN(Backbone):
    """See the module, and `image_tokenizer.ImageCoder`. It computes in float32, and is not trained."""

    def __init__(self, spec: VQGANSpec, rngs: nnx.Rngs):
        self.encoder = Encoder(spec, rngs)
        self.decoder = Decoder(spec, rngs)
        self.quantize = Quantizer(spec, rngs)
        self.quant_conv = Convolution(spec.latent, spec.code_size, 1, rngs)
        self.post_quant_conv = Convolution(spec.code_size, spec.latent, 1, rngs)
        self.spec = spec
        self.hidden_size = spec.width * spec.factors[-1]
        self.vocab_size = 0
        self.image_vectors = 1
        self.image_size = spec.image_size
        self.max_length = spec.codes

    def encode(self, pixels: jax.Array) -> jax.Array:
        """Pixels -> int32 [rows, codes]."""
        check_pixels(pixels, self.spec)
        codes = self.quantize.nearest(self.quant_conv(self.encoder(pixels)))
        return codes.reshape(len(pixels), self.spec.codes)

    def decode(self, indices: jax.Array) -> jax.Array:
        """int [rows, codes] -> float32 pixels [rows, height, width, channels]."""
        vectors = self.quantize.vectors(indices)
        places = vectors.reshape(len(indices), self.spec.grid, self.spec.grid, self.spec.code_size)
        return self.decoder(self.post_quant_conv(places))


# ---------------------------------------------------------------- config and tensor names


def _numbers(config: PretrainedConfig, name: str, *, empty: bool = False) -> tuple[int, ...]:
    value = getattr(config, name, None)
    listed = list(value) if isinstance(value, list | tuple) else None
    if listed is None or not (listed or empty) or any(type(one) is not int or one < 1 for one in listed):
        raise ValueError(
            f"config.json of this {config.model_type} model has {name}={value!r}, but must list whole numbers above 0."
        )
    return tuple(listed)


def spec_of(config: PretrainedConfig) -> VQGANSpec:
    """The sizes in a config. Raises ValueError for missing and impossible ones, and for variants."""
    where = f"config.json of this {config.model_type} model"
    refuse(config, double_z=False, resamp_with_conv=True, give_pre_end=False, use_conv_shortcut=False)
    names = ("ch", "in_channels", "out_ch", "num_res_blocks", "resolution", "z_channels", "embed_dim", "n_embed")
    sizes = {name: getattr(config, name, None) for name in names}
    for name, value in sizes.items():
        if type(value) is not int or value < 1:
            raise ValueError(f"{where} has {name}={value!r}, but needs a whole number above 0.")
    factors, attends = _numbers(config, "ch_mult"), _numbers(config, "attn_resolutions", empty=True)
    refuse(config, num_resolutions=len(factors), quantized_embed_dim=config.embed_dim, out_ch=config.in_channels)
    if config.ch % GROUPS:
        raise ValueError(f"{where}: ch is {config.ch}, but must be a multiple of {GROUPS}, the groups of its norms.")
    if config.resolution % (1 << (len(factors) - 1)):
        raise ValueError(
            f"{where}: resolution is {config.resolution}, but the {len(factors)} levels of ch_mult halve it "
            f"{len(factors) - 1} times: it must be a multiple of {1 << (len(factors) - 1)}."
        )
    if config.n_embed > MOST_CODES:
        raise ValueError(f"{where} has n_embed={config.n_embed:,}: more than {MOST_CODES:,} codes are not supported.")
    return VQGANSpec(
        image_size=config.resolution,
        channels=config.in_channels,
        width=config.ch,
        factors=factors,
        blocks=config.num_res_blocks,
        attention_sizes=attends,
        latent=config.z_channels,
        code_size=config.embed_dim,
        code_count=config.n_embed,
    )


def build(config: PretrainedConfig, *, dtype: DTypeLike, stack: StackOptions, pooler: bool, rngs: nnx.Rngs) -> Backbone:
    return VQGAN(spec_of(config), rngs)


@lru_cache(maxsize=4)
def _rules(spec: VQGANSpec) -> tuple[Rule, ...]:
    network = abstract_module(lambda key: VQGAN(spec, nnx.Rngs(params=key)))
    return tuple(Rule(site.path, site.path) for site in sites_of(network))


def variant(config: PretrainedConfig) -> Family:
    """The family with the table of a config's levels and blocks."""
    return replace(FAMILY, mapping=_rules(spec_of(config)))


FAMILY = Family(
    build=build,
    prefix="",
    mapping=(),
    base_class="VQModel",
    kind=TOKENIZER,
    variant=variant,
    whole=True,
    trained=False,
)
