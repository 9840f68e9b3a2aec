"""Weights in 8 or 4 bits: the base of QLoRA (Dettmers et al., 2023), and the networks that `compress` writes.

A kernel has one scale for each output channel, or for each group of its inputs; activations stay as they are, or become
int8 too, with one scale for each token, and then products are int8 x int8 -> int32.

Why our own: qwix rewrites a model's products by rules during tracing. Here codes and scales are parameters with names,
shapes and logical axes, as needed for sharding, checkpoints, export and reading HuggingFace files; 4-bit codes lie two
in a byte on every backend; and the backward pass dequantizes again instead of keeping every kernel in fp32. What
qwix's arrays would add, the product of two integer arrays with their scales, is `_integer_product` below.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from instructrec_jax.backbones.key_value_cache import round_last
from instructrec_jax.backbones.layers import Axes, Linear

LARGEST = {"int8": 127, "int4": 7, "nf4": 1}  # the largest magnitude of a code's value
KINDS = tuple(LARGEST)
T = TypeVar("T")
GROUPS = (32, 64, 128)
DEFAULT_GROUP = {"int8": None, "int4": 64, "nf4": 64}  # NF4: the blocks of the paper

# NormalFloat4, appendix E of the paper: the quantiles of a normal distribution, scaled to [-1, 1].
NF4 = np.array(
    [
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ],
    np.float32,
)


@dataclass(frozen=True)
class Format:
    """How kernels are stored and multiplied.

    Attributes:
        weights: "int8" | "int4" | "nf4".
        group: number of inputs that share a scale, out of `GROUPS`; None: all (int8), or 64 (int4, nf4).
        activations: "none": products in the activations' dtype; "int8": in integers, the activations rounded with one
            scale for each token (dynamic, symmetric: scale = max |x| / 127).
        smooth: whether kernels have a divisor for each input (SmoothQuant); see `Quantized`.

    Raises ValueError for an unknown value, and for integer activations with nf4, whose codes are no integers.
    """

    weights: str
    group: int | None = None
    activations: str = "none"
    smooth: bool = False

    def __post_init__(self) -> None:
        if self.weights not in KINDS:
            raise ValueError(f"unknown quantization {self.weights!r}; choose from {', '.join(KINDS)}.")
        if self.group is not None and self.group not in GROUPS:
            raise ValueError(f"the group is {self.group}, but should be one of {', '.join(map(str, GROUPS))}.")
        if self.activations not in ("none", "int8"):
            raise ValueError(f"unknown activations {self.activations!r}; choose from none, int8.")
        if self.weights == "nf4" and self.activations == "int8":
            raise ValueError("nf4 codes are no integers, so their activations cannot be int8: use int8 or int4.")

    def group_of(self, size: int) -> int:
        """The number of inputs, of `size`, that share a scale."""
        return self.group or DEFAULT_GROUP[self.weights] or size


def encode(format: Format, kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(codes, scales) of one layer's kernel [in, ..., out], rounded to nearest.

    int8: codes int8 [in, ..., out] = round(kernel / scale); int4, nf4: codes uint8 [ceil(in / 2), ..., out], two per
    byte, the first in the low bits: int4 round(kernel / scale) + 8, nf4 the number of the nearest value of `NF4`.
    scales fp32 [groups, ..., out] = max |kernel| of the group / 127, 7 or 1; the last group may be shorter.
    """
    kernel = kernel.astype(jnp.float32)
    size, *rest = kernel.shape
    group = format.group_of(size)
    blocks = -(-size // group)
    padded = jnp.pad(kernel, ((0, blocks * group - size), *((0, 0) for _ in rest))).reshape(blocks, group, *rest)
    scales = jnp.abs(padded).max(1, keepdims=True) / LARGEST[format.weights]
    numbers = nearest(format.weights, padded / jnp.where(scales == 0, 1, scales))
    return pack(format.weights, numbers.reshape(-1, *rest)[:size]), scales[:, 0]


def nearest(kind: str, values: jax.Array) -> jax.Array:
    """The number of each scaled value's code: int8 from -127 to 127 or -7 to 7, or its place in `NF4`."""
    if kind == "nf4":
        return jnp.searchsorted((NF4[1:] + NF4[:-1]) / 2, values).astype(jnp.int8)
    return jnp.clip(jnp.round(values), -LARGEST[kind], LARGEST[kind]).astype(jnp.int8)


def pack(kind: str, numbers: jax.Array) -> jax.Array:
    """Codes of int8 numbers [in, ..., out], see `encode`."""
    if kind == "int8":
        return numbers
    size, *rest = numbers.shape
    nibbles = (numbers + (8 if kind == "int4" else 0)).astype(jnp.uint8)
    pairs = jnp.pad(nibbles, ((0, size % 2), *((0, 0) for _ in rest))).reshape(-1, 2, *rest)
    return pairs[:, 0] | (pairs[:, 1] << 4)


def unpack(kind: str, codes: jax.Array, size: int) -> jax.Array:
    """The inverse of `pack`: int8 [size, ..., out]."""
    if kind == "int8":
        return codes
    nibbles = jnp.stack([codes & 15, codes >> 4], axis=1).reshape(-1, *codes.shape[1:])[:size].astype(jnp.int8)
    return nibbles - 8 if kind == "int4" else nibbles


def decode(format: Format, codes: jax.Array, scales: jax.Array, size: int) -> jax.Array:
    """The inverse of `encode`, up to rounding: the fp32 kernel [size, ..., out]."""
    numbers = unpack(format.weights, codes, size)
    values = (
        jnp.take(jnp.asarray(NF4), numbers, mode="clip") if format.weights == "nf4" else numbers.astype(jnp.float32)
    )
    return values * (scales if len(scales) == 1 else jnp.repeat(scales, format.group_of(size), axis=0)[:size])


class Quantized(nnx.Module):
    """A quantized kernel of a `Linear`.

    `codes` and `scales` are parameters in the form of `encode`, with the kernel's logical axes, and in a stack its
    leading "layers" axis. With `smooth`, fp32 [in], inputs are divided by it before they are rounded, and the codes
    are those of the kernel multiplied by it (SmoothQuant, Xiao et al., 2023). None of them has gradients.
    """

    def __init__(
        self,
        format: Format,
        codes: jax.Array,
        scales: jax.Array,
        *,
        size: int,
        axes: Axes,
        smooth: jax.Array | None = None,
    ):
        if format.smooth != (smooth is not None):
            raise ValueError("a kernel needs its divisors where its format has them, and there alone.")
        self.codes = nnx.Param(codes, axes=axes)
        self.scales = nnx.Param(scales, axes=axes)
        self.smooth = None if smooth is None else nnx.Param(smooth, axes=axes[:1])
        self.format = format
        self.size = size
        self.axes = axes

    @property
    def shape(self) -> tuple[int, ...]:
        """The kernel's shape."""
        inputs = self.codes.ndim - len(self.axes)
        return (*self.codes.shape[:inputs], self.size, *self.codes.shape[inputs + 1 :])

    def dequantize(self) -> jax.Array:
        """The fp32 kernel."""

        def one(codes: jax.Array, scales: jax.Array, smooth: jax.Array | None) -> jax.Array:
            return _kernel(self.format, codes, scales, smooth, self.size)

        stacked = self.codes.ndim > len(self.axes)
        smooth = None if self.smooth is None else self.smooth[...]
        return (jax.vmap(one) if stacked else one)(self.codes[...], self.scales[...], smooth)

    def __call__(self, x: jax.Array) -> jax.Array:
        """x [..., in] times the kernel, in x's dtype."""
        smooth = None if self.smooth is None else self.smooth[...]
        product = _integer_product if self.format.activations == "int8" else _float_product
        return product(self.format, x, self.codes[...], self.scales[...], smooth)


def _kernel(format: Format, codes: jax.Array, scales: jax.Array, smooth: jax.Array | None, size: int) -> jax.Array:
    """The fp32 kernel that codes stand for."""
    kernel = decode(format, codes, scales, size)
    return kernel if smooth is None else kernel / smooth.reshape(-1, *(1 for _ in kernel.shape[1:]))


# With jax.checkpoint the backward pass dequantizes again instead of keeping every layer's kernel in fp32.
@partial(jax.checkpoint, static_argnums=(0,))
def _float_product(
    format: Format, x: jax.Array, codes: jax.Array, scales: jax.Array, smooth: jax.Array | None
) -> jax.Array:
    """x times the dequantized kernel."""
    return jnp.tensordot(x, _kernel(format, codes, scales, smooth, x.shape[-1]).astype(x.dtype), axes=1)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _integer_product(
    format: Format, x: jax.Array, codes: jax.Array, scales: jax.Array, smooth: jax.Array | None
) -> jax.Array:
    """x times the kernel, in integers; gradients are those of the dequantized kernel (straight-through)."""
    x32 = x.astype(jnp.float32) if smooth is None else x.astype(jnp.float32) / smooth
    rounded, factors = round_last(x32)
    size, lead = x.shape[-1], rounded.shape[:-1]
    kernel = unpack(format.weights, codes, size)
    rest = kernel.shape[1:]
    group, blocks = format.group_of(size), len(scales)
    factors = factors.reshape(*lead, *(1 for _ in rest))
    if blocks == 1:
        summed = jax.lax.dot_general(
            rounded, kernel, (((len(lead),), (0,)), ((), ())), preferred_element_type=jnp.int32
        )
        return (summed.astype(jnp.float32) * (factors * scales[0])).astype(x.dtype)
    lacking = blocks * group - size
    rounded = jnp.pad(rounded, (*((0, 0) for _ in lead), (0, lacking))).reshape(*lead, blocks, group)
    kernel = jnp.pad(kernel, ((0, lacking), *((0, 0) for _ in rest))).reshape(blocks, group, *rest)
    places = (((len(lead) + 1,), (1,)), ((len(lead),), (0,)))
    summed = jax.lax.dot_general(rounded, kernel, places, preferred_element_type=jnp.int32)  # [blocks, ..., out]
    weighted = summed.astype(jnp.float32) * scales.reshape(blocks, *(1 for _ in lead), *rest)
    return (weighted.sum(0) * factors).astype(x.dtype)


Saved = tuple[jax.Array, jax.Array, jax.Array | None]


def _forward(
    format: Format, x: jax.Array, codes: jax.Array, scales: jax.Array, smooth: jax.Array | None
) -> tuple[jax.Array, tuple[int, Saved]]:
    return _integer_product(format, x, codes, scales, smooth), (x.shape[-1], (codes, scales, smooth))


def _backward(
    format: Format, saved: tuple[int, Saved], gradient: jax.Array
) -> tuple[jax.Array, np.ndarray, jax.Array, jax.Array | None]:
    size, (codes, scales, smooth) = saved
    kernel = _kernel(format, codes, scales, smooth, size).astype(gradient.dtype)
    none = np.zeros(codes.shape, jax.dtypes.float0)
    back = jnp.tensordot(gradient, kernel, axes=(tuple(range(1 - kernel.ndim, 0)), tuple(range(1, kernel.ndim))))
    return back, none, jnp.zeros_like(scales), None if smooth is None else jnp.zeros_like(smooth)


_integer_product.defvjp(_forward, _backward)


class QuantizedTable(nnx.Module):
    """An embedding table in int8 with one scale for each row, in place of an `Embedding`'s.

    Attributes:
        codes, scales: int8 [size, features] and fp32 [size, 1].
        activations: as in `Format`, for logits.
    """

    def __init__(self, codes: jax.Array, scales: jax.Array, *, axes: Axes, activations: str):
        self.codes = nnx.Param(codes, axes=axes)
        self.scales = nnx.Param(scales, axes=(axes[0], None))
        self.activations = activations

    @property
    def shape(self) -> tuple[int, ...]:
        return self.codes.shape

    def dense(self) -> jax.Array:
        """fp32 [size, features]."""
        return self.codes[...].astype(jnp.float32) * self.scales[...]

    def rows(self, ids: jax.Array) -> jax.Array:
        """fp32 [..., features]; NaN for an id outside the table."""
        codes, scales = (jnp.take(each[...], ids, axis=0) for each in (self.codes, self.scales))
        return codes.astype(jnp.float32) * scales

    def logits(self, x: jax.Array) -> jax.Array:
        """x [..., features] times the table's transpose, fp32 [..., size]."""
        places = (((x.ndim - 1,), (1,)), ((), ()))
        if self.activations == "none":
            return jax.lax.dot_general(x.astype(jnp.float32), self.dense(), places)
        rounded, factors = round_last(x.astype(jnp.float32))
        summed = jax.lax.dot_general(rounded, self.codes[...], places, preferred_element_type=jnp.int32)
        return summed.astype(jnp.float32) * (factors * self.scales[...][:, 0])


def quantize_backbone(backbone: nnx.Module, format: Format, *, keep: Collection[Linear] = ()) -> None:
    """Replaces the kernel of each linear layer by codes and scales, in place; embeddings, norms and biases stay.

    Encodes one parameter at a time, layer by layer, and frees its fp32 values. The network may be abstract
    (jax.ShapeDtypeStruct for values). Divisors (`Format.smooth`) are ones.

    Args:
        keep: layers that keep their kernels.

    Raises ValueError for a network that is already quantized.
    """
    for linear in linears(backbone):
        if any(linear is kept for kept in keep):
            continue
        if isinstance(linear.kernel, Quantized):
            raise ValueError("the network is already quantized: quantize the original weights instead.")
        kernel = plain_kernel(linear)
        stacked = kernel.ndim > len(kernel.get_metadata()["axes"])
        codes, scales = compute(partial(_encode_layers if stacked else _encode, format), kernel.get_value())
        smooth = None
        if format.smooth:
            smooth = compute(partial(_ones, stacked + 1), kernel.get_value())
        set_codes(linear, format, codes, scales, smooth)


def set_codes(
    linear: Linear, format: Format, codes: jax.Array, scales: jax.Array, smooth: jax.Array | None = None
) -> None:
    """Puts codes and scales, with a leading "layers" axis in a stack, in place of the plain kernel of a layer."""
    kernel = plain_kernel(linear)
    axes = kernel.get_metadata()["axes"]
    stacked = kernel.ndim > len(axes)
    linear.kernel = Quantized(format, codes, scales, size=kernel.shape[stacked], axes=axes, smooth=smooth)


def quantize_tables(network: nnx.Module, activations: str) -> None:
    """Turns the tables of word embeddings, and those of heads over the vocabulary, to int8 in place, row by row."""
    for _, node in nnx.iter_modules(network):
        table = getattr(node, "table", None)
        if isinstance(table, nnx.Param) and table.get_metadata()["axes"] == ("vocab", "embed"):
            codes, scales = compute(_encode_rows, table.get_value())
            node.table = QuantizedTable(codes, scales, axes=("vocab", "embed"), activations=activations)  # type: ignore[attr-defined]


def dense_tables(network: nnx.Module) -> None:
    """The inverse of `quantize_tables`, up to rounding."""
    for _, node in nnx.iter_modules(network):
        table = getattr(node, "table", None)
        if isinstance(table, QuantizedTable):
            node.table = nnx.Param(table.dense(), axes=("vocab", "embed"))  # type: ignore[attr-defined]


def dense_kernel(linear: Linear) -> "nnx.Param[jax.Array]":
    """The kernel, dequantized if necessary."""
    if isinstance(linear.kernel, Quantized):
        return nnx.Param(linear.kernel.dequantize(), axes=linear.kernel.axes)
    return plain_kernel(linear)


def plain_kernel(linear: Linear) -> "nnx.Param[jax.Array]":
    """The kernel of a layer that is not quantized."""
    if not isinstance(linear.kernel, nnx.Param):
        raise TypeError(f"the kernel of a linear layer must be a parameter, but is {type(linear.kernel).__name__}.")
    return linear.kernel


def linears(network: nnx.Module) -> list[Linear]:
    """All linear layers of a network."""
    return [node for _, node in nnx.iter_modules(network) if isinstance(node, Linear)]


def compute(
    function: Callable[[jax.Array], T],
    value: jax.Array | jax.ShapeDtypeStruct,
) -> T:
    """function(value), or only its shapes if `value` is a jax.ShapeDtypeStruct."""
    return jax.eval_shape(function, value) if isinstance(value, jax.ShapeDtypeStruct) else function(value)


def _encode_layers_(format: Format, kernels: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jax.lax.map(lambda kernel: encode(format, kernel), kernels)


def _ones(dimensions: int, kernel: jax.Array) -> jax.Array:
    return jnp.ones(kernel.shape[:dimensions], jnp.float32)


_encode = jax.jit(encode, static_argnums=0)
_encode_layers = jax.jit(_encode_layers_, static_argnums=0)


@jax.jit
def _encode_rows(table: jax.Array) -> tuple[jax.Array, jax.Array]:
    return round_last(table.astype(jnp.float32))
