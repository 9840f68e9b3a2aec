"""The image network of ViT, DINOv2, CLIP and SigLIP, described by a `VisionSpec`: patches are tokens."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from instructrec_jax.backbones.attention import attention
from instructrec_jax.backbones.encoder import Context
from instructrec_jax.backbones.family import Backbone, Rule
from instructrec_jax.backbones.layers import (
    DropoutKeys,
    LayerNorm,
    Linear,
    Stack,
    StackOptions,
    activation,
    dropout,
    normal,
    product,
)
from instructrec_jax.backbones.row_images import RowImages
from instructrec_jax.backbones.towers import MLP, TowerSpec, tower_layers
from instructrec_jax.hf_types import PretrainedConfig


@dataclass(frozen=True)
class VisionSpec:
    """Sizes and variants of a `VisionEncoder`."""

    tower: TowerSpec
    image_size: int  # height and width of the images of the position table, pixels
    patch_size: int
    channels: int
    class_token: bool = True
    mask_token: bool = False  # a parameter of pretraining, which is read and written but not used
    registers: int = 0  # tokens without a position, after the class token
    patch_bias: bool = True
    pre_norm: bool = False  # a norm before the layers
    norm_hidden: bool = True  # the final norm is of all hidden states; False: only of the pooled one (CLIP)
    antialias: bool = False  # of the interpolated position table
    pooling: Literal["first", "dense", "attention", "none"] = "first"
    pooled_size: int = 0  # width of the dense pooler
    pooled_activation: str = "tanh"
    mean_beside: bool = False  # the vector of an image among others is the pooled one and the mean of its patches

    @property
    def grid(self) -> int:
        """Patches along each side of the position table."""
        return self.image_size // self.patch_size


class PatchEmbedding(nnx.Module):
    """One linear layer of each patch: a convolution whose stride is its size."""

    def __init__(self, spec: VisionSpec, dtype: DTypeLike, rngs: nnx.Rngs):
        size, width = spec.patch_size, spec.tower.hidden_size
        shape = (size, size, spec.channels, width)
        self.kernel = nnx.Param(
            normal(spec.tower.initializer_range)(rngs.params(), shape), axes=(None, None, None, "embed")
        )
        self.bias = nnx.Param(jnp.zeros(width, jnp.float32), axes=("embed",)) if spec.patch_bias else None
        self.dtype = dtype

    def __call__(self, patches: jax.Array) -> jax.Array:
        kernel = self.kernel[...].reshape(-1, self.kernel[...].shape[-1])
        y = product(patches.astype(self.dtype), kernel.astype(self.dtype))
        return y if self.bias is None else y + self.bias[...].astype(self.dtype)


class AttentionPooling(nnx.Module):
    """One learned query attends to all tokens, then an MLP (Zhai et al., 2022: the MAP head)."""

    def __init__(self, spec: TowerSpec, dtype: DTypeLike, rngs: nnx.Rngs):
        width, init = spec.hidden_size, normal(spec.initializer_range)
        self.probe = nnx.Param(init(rngs.params(), (width,)), axes=("embed",))
        self.qkv = Linear(width, width, parts=3, axes=("embed", "heads"), init=init, dtype=dtype, rngs=rngs)
        self.output = Linear(width, width, axes=("heads", "embed"), init=init, dtype=dtype, rngs=rngs)
        self.norm = LayerNorm(width, eps=spec.eps, dtype=dtype)
        self.mlp = MLP(spec, dtype, rngs)
        self.num_heads = spec.num_heads

    def __call__(self, x: jax.Array) -> jax.Array:
        rows, length, width = x.shape
        probe = jnp.broadcast_to(self.probe[...].astype(x.dtype), (rows, 1, width))
        # the probe in front, so that one product serves queries, keys and values
        qkv = self.qkv(jnp.concatenate([probe, x], axis=1)).reshape(rows, 1 + length, 3, self.num_heads, -1)
        ones = jnp.ones((rows, 1 + length), jnp.int32)
        y = attention(
            qkv[:, :1, 0],
            qkv[:, 1:, 1],
            qkv[:, 1:, 2],
            segment_ids=ones[:, :1],
            positions=ones[:, :1],
            key_segment_ids=ones[:, 1:],
            key_positions=ones[:, 1:],
        )
        y = self.output(y.reshape(rows, 1, width))
        return (y + self.mlp(self.norm(y)))[:, 0]


class VisionEncoder(Backbone):
    """An image network. It has no words: `vocab_size` is 0, and `max_length` counts the tokens of its image size.

    A call takes float pixels [rows, height, width, channels], normalized as `preprocessor_config.json` says
    (`data.media.pictures`), and returns hidden states [rows, tokens, hidden_size] in `dtype`: class token,
    registers, patches from left to right and from top to bottom. What does not fill a patch, at the right and at
    the bottom, is left out,
    as PyTorch's convolution does. Another image size than the position table's gets an interpolated table.

    Raises ValueError for another number of channels and for an image smaller than a patch.
    """

    def __init__(self, spec: VisionSpec, *, dtype: DTypeLike, stack: StackOptions, rngs: nnx.Rngs):
        if not spec.grid:
            raise ValueError(
                f"config.json: image_size, {spec.image_size}, is smaller than patch_size, {spec.patch_size}."
            )
        tower = spec.tower
        init, width = normal(tower.initializer_range), tower.hidden_size

        def token() -> nnx.Param[jax.Array]:
            return nnx.Param(init(rngs.params(), (width,)), axes=("embed",))

        def table(rows: int) -> nnx.Param[jax.Array]:
            return nnx.Param(init(rngs.params(), (rows, width)), axes=(None, "embed"))

        def layer_norm() -> LayerNorm:
            return LayerNorm(width, eps=tower.eps, dtype=dtype)

        self.patches = PatchEmbedding(spec, dtype, rngs)
        self.class_token = token() if spec.class_token else None
        self.mask_token = token() if spec.mask_token else None
        self.registers = table(spec.registers) if spec.registers else None
        self.positions = table(spec.class_token + spec.grid**2)
        self.pre_norm = layer_norm() if spec.pre_norm else None
        self.layers = tower_layers(tower, dtype, stack, rngs)
        self.final_norm = layer_norm()
        self.pooler = _pooler(spec, dtype, rngs)
        self.spec = spec
        self.dtype = dtype
        self.hidden_size = width
        self.vocab_size = 0
        self.image_vectors = 1  # an image is one token of a row
        self.max_length = spec.class_token + spec.registers + spec.grid**2

    def __call__(self, pixels: jax.Array, *, dropout: DropoutKeys | None = None) -> jax.Array:
        x, context = self._start(pixels, dropout)
        x = self.layers(x, context, dropout)
        return self.final_norm(x) if self.spec.norm_hidden else x

    def states(self, pixels: jax.Array, counts: Sequence[int], dropout: DropoutKeys | None = None) -> list[jax.Array]:
        """For each n of `counts` the hidden states after n layers, without the final norm; no further layer runs."""
        x, context = self._start(pixels, dropout)
        found, done = {0: x}, 0
        for count in sorted({*counts} - {0}):
            x = layers_between(self.layers, done, count)(x, context, dropout)
            found[count], done = x, count
        return [found[count] for count in counts]

    def _start(self, pixels: jax.Array, dropout: DropoutKeys | None) -> tuple[jax.Array, Context]:
        """What enters the layers."""
        spec = self.spec
        _check_pixels(pixels, spec)
        rows, grid = len(pixels), (pixels.shape[1] // spec.patch_size, pixels.shape[2] // spec.patch_size)
        x = self.patches(patches_of(pixels, spec.patch_size))
        first = [] if self.class_token is None else [self.class_token[...][None]]
        table = self.positions[...]
        places = resize_table(table[len(first) :], spec.grid, grid, antialias=spec.antialias)
        x = x + places.astype(self.dtype)
        ahead = [one + table[:1] for one in first]
        ahead += [] if self.registers is None else [self.registers[...]]
        x = jnp.concatenate([*(jnp.broadcast_to(one.astype(x.dtype), (rows, *one.shape)) for one in ahead), x], axis=1)
        x = _dropout(x, spec.tower.hidden_dropout, None if dropout is None else dropout.fold(0))
        if self.pre_norm is not None:
            x = self.pre_norm(x)
        ids = jnp.ones(x.shape[:2], jnp.int32)
        numbers = jnp.broadcast_to(jnp.arange(x.shape[1], dtype=jnp.int32), x.shape[:2])
        return x, Context(ids, numbers, None)

    def pool(self, hidden: jax.Array) -> jax.Array:
        """The vector of each image, [rows, width], from hidden states [rows, tokens, hidden_size].

        Raises ValueError if the network has none (SigLIP without its head).
        """
        if isinstance(self.pooler, AttentionPooling):
            return self.pooler(hidden)
        if self.spec.pooling in ("attention", "none"):
            raise ValueError("the network has no pooled vector: config.json has vision_use_head=false.")
        if isinstance(self.pooler, Linear):
            return activation(self.spec.pooled_activation)(self.pooler(hidden[:, 0]))
        return hidden[:, 0] if self.spec.norm_hidden else self.final_norm(hidden[:, 0])

    def vectors(self, hidden: jax.Array) -> jax.Array:
        """What a head reads of each image, [rows, vector_size], from hidden states [rows, tokens, hidden_size].

        That is the pooled vector; of ViT the class token, because transformers' heads pass by its pooler.
        """
        pooled = hidden[:, 0] if isinstance(self.pooler, Linear) else self.pool(hidden)
        if not self.spec.mean_beside:
            return pooled
        mean = hidden[:, self.spec.class_token + self.spec.registers :].mean(1, dtype=jnp.float32)
        return jnp.concatenate([pooled, mean.astype(pooled.dtype)], axis=-1)

    def read_rows(self, images: RowImages, *, dropout: DropoutKeys | None = None) -> jax.Array:
        """The vector of each image at its place: [rows, length, vector_size] in `dtype`, zeros elsewhere.

        Args:
            dropout: keys of the rows' tokens [rows, length]; those of an image's patches depend on its token alone.
        """
        _, _, height, width, _ = images.pixels.shape
        spec = self.spec
        parts = spec.class_token + spec.registers + (height // spec.patch_size) * (width // spec.patch_size)
        hidden = self(images.flat, dropout=images.keys(dropout, self.image_vectors, parts))
        return images.laid(self.vectors(hidden)[:, None])


_dropout = dropout  # `dropout` names the keys in the call signature above


def layers_between(stack: Stack, first: int, stop: int) -> Stack:
    """The layers first .. stop - 1 of a stack of equal layers, as a stack of their own."""
    part, groups = nnx.merge(*nnx.split(stack)), []
    for (block,) in stack.groups:
        own = slice(max(first - block.first, 0), max(stop - block.first, 0))
        graphdef, state = nnx.split(getattr(stack, block.name))
        setattr(part, block.name, nnx.merge(graphdef, jax.tree.map(lambda x, own=own: x[own], state)))
        groups += [(replace(block, first=block.first + own.start, count=len(range(block.count)[own])),)]
    part.groups = tuple(group for group in groups if group[0].count)
    return part


def _pooler(spec: VisionSpec, dtype: DTypeLike, rngs: nnx.Rngs) -> Linear | AttentionPooling | None:
    if spec.pooling == "attention":
        return AttentionPooling(spec.tower, dtype, rngs)
    if spec.pooling != "dense":
        return None
    activation(spec.pooled_activation)
    init = normal(spec.tower.initializer_range)
    return Linear(spec.tower.hidden_size, spec.pooled_size, axes=("embed", None), init=init, dtype=dtype, rngs=rngs)


def _check_pixels(pixels: jax.Array, spec: VisionSpec) -> None:
    if pixels.ndim != 4:
        raise ValueError(f"pixels must be [rows, height, width, channels], but have shape {list(pixels.shape)}.")
    _, height, width, channels = pixels.shape
    if channels != spec.channels:
        raise ValueError(
            f"the images have {channels} channels, but the network reads {spec.channels} (num_channels in "
            f"config.json); pixels are [rows, height, width, channels], and here {list(pixels.shape)}."
        )
    if min(height, width) < spec.patch_size:
        raise ValueError(
            f"the images have {height} × {width} pixels, less than one patch of {spec.patch_size} × {spec.patch_size} "
            "(patch_size in config.json): resize them."
        )


def patches_of(pixels: jax.Array, size: int) -> jax.Array:
    """[rows, height, width, channels] → [rows, patches, size · size · channels], row by row of the image."""
    rows, height, width, channels = pixels.shape
    down, across = height // size, width // size
    x = pixels[:, : down * size, : across * size].reshape(rows, down, size, across, size, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(rows, down * across, size * size * channels)


def resize_table(table: jax.Array, side: int, grid: tuple[int, int], *, antialias: bool) -> jax.Array:
    """Bicubic interpolation of a square position table [side · side, width] to `grid` (rows, columns) of patches.

    As PyTorch's `interpolate(mode="bicubic", align_corners=False, antialias=...)`, in fp32. Returns [rows · columns,
    width].
    """
    if grid == (side, side):
        return table
    down, across = (jnp.asarray(bicubic_weights(side, n, antialias=antialias), table.dtype) for n in grid)
    square = table.reshape(side, side, -1)
    precise = jax.lax.Precision.HIGHEST
    return jnp.einsum("ai,bj,ijw->abw", down, across, square, precision=precise).reshape(grid[0] * grid[1], -1)


def bicubic_weights(size: int, new: int, *, antialias: bool) -> np.ndarray:
    """float64 [new, size]: what each old place gives to each new one.

    Keys' kernel (1981) with PyTorch's constants: a = -0.75 with repeated borders, or, with `antialias`, Pillow's
    a = -0.5, widened when the table shrinks, over the places that there are.
    """
    scale = size / new
    weights = np.zeros((new, size))
    for i in range(new):
        if antialias:
            stretch = max(scale, 1.0)
            center, support = scale * (i + 0.5), 2.0 * stretch
            places = np.arange(max(int(center - support + 0.5), 0), min(int(center + support + 0.5), size))
            row = _cubic((places - center + 0.5) / stretch, -0.5)
            weights[i, places] = row / row.sum()
        else:
            source = scale * (i + 0.5) - 0.5
            for place in range(int(np.floor(source)) - 1, int(np.floor(source)) + 3):
                weights[i, min(max(place, 0), size - 1)] += _cubic(np.array(place - source), -0.75)
    return weights


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((x - 5) * x + 8) * x * a - 4 * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def side_of(config: PretrainedConfig, name: str) -> int:
    """A size of config.json in pixels: a number above 0, or two equal ones. Raises ValueError for another value."""
    value = getattr(config, name, None)
    sides = list(value) if isinstance(value, list | tuple) else [value]
    if len(sides) > 2 or len(set(sides)) != 1 or type(sides[0]) is not int or sides[0] < 1:
        raise ValueError(
            f"config.json of this {config.model_type} model has {name}={value!r}, which is not implemented "
            "(supported: a whole number above 0, for squares)."
        )
    return sides[0]


VISION = "vision_model."


def image_rules(rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
    """The rules of the image network of a pair, for the image network alone, whose names begin with `VISION`."""
    own = [rule for rule in rules if rule.name.startswith(VISION)]
    return tuple(
        replace(rule, name=rule.name.removeprefix(VISION), path=rule.path.removeprefix("vision.")) for rule in own
    )


def patch_rules(name: str, path: str, *, bias: bool = True) -> tuple[Rule, ...]:
    """The rules of a torch.nn.Conv2d ↔ `PatchEmbedding`."""
    kernel = Rule(f"{name}.weight", f"{path}.kernel", "convolution")
    return (kernel, Rule(f"{name}.bias", f"{path}.bias")) if bias else (kernel,)
