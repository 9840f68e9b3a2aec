"""Frozen weights in 8 or 4 bits, dequantized on the fly: the base of QLoRA (Dettmers et al., 2023).

Why our own: qwix rewrites a model's products by rules during tracing. Here codes and scales are parameters with names,
shapes and logical axes, as needed for sharding, checkpoints, export and reading HuggingFace files; NF4 has QLoRA's
blocks along the inputs, with two codes per byte on every backend; and the backward pass dequantizes again instead of
keeping every kernel in fp32.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from instructrec_jax.backbones.layers import Axes, Linear

KINDS = ("int8", "nf4")
NF4_BLOCK = 64  # weights that share one scale

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


def encode(kind: str, kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(codes, scales) of one layer's kernel [in, ..., out], with separate scales for each output channel.

    int8: codes int8 [in, ..., out] = round(kernel / scale), scales fp32 [1, ..., out] = max |kernel| / 127.
    nf4: codes uint8 [ceil(in / 2), ..., out], two per byte, the first in the low bits; scales fp32
    [ceil(in / 64), ..., out] = max |kernel| per block of 64 weights (the last block may be shorter).
    """
    kernel = kernel.astype(jnp.float32)
    if kind == "int8":
        scales = jnp.abs(kernel).max(0, keepdims=True) / 127
        return jnp.round(kernel / jnp.where(scales == 0, 1, scales)).astype(jnp.int8), scales
    size, *rest = kernel.shape
    blocks = -(-size // NF4_BLOCK)
    padded = jnp.pad(kernel, ((0, blocks * NF4_BLOCK - size), *((0, 0) for _ in rest)))
    padded = padded.reshape(blocks, NF4_BLOCK, *rest)
    scales = jnp.abs(padded).max(1, keepdims=True)
    nearest = jnp.searchsorted((NF4[1:] + NF4[:-1]) / 2, padded / jnp.where(scales == 0, 1, scales))
    pairs = nearest.astype(jnp.uint8).reshape(-1, 2, *rest)[: -(-size // 2)]
    return pairs[:, 0] | (pairs[:, 1] << 4), scales[:, 0]


def decode(kind: str, codes: jax.Array, scales: jax.Array, size: int) -> jax.Array:
    """The inverse of `encode`, up to rounding: the fp32 kernel [size, ..., out]."""
    if kind == "int8":
        return codes.astype(jnp.float32) * scales
    nibbles = jnp.stack([codes & 15, codes >> 4], axis=1).reshape(-1, *codes.shape[1:])[:size]
    values = jnp.take(jnp.asarray(NF4), nibbles, mode="clip")
    return values * jnp.repeat(scales, NF4_BLOCK, axis=0)[:size]


class Quantized(nnx.Module):
    """A quantized kernel of a `Linear`.

    `codes` and `scales` are parameters in the format of `encode`, with the kernel's logical axes, and in a stack its
    leading "layers" axis. They have no gradients.
    """

    def __init__(self, kind: str, codes: jax.Array, scales: jax.Array, *, size: int, axes: Axes):
        self.codes = nnx.Param(codes, axes=axes)
        self.scales = nnx.Param(scales, axes=axes)
        self.kind = kind
        self.size = size
        self.axes = axes

    @property
    def shape(self) -> tuple[int, ...]:
        """The kernel's shape."""
        inputs = self.codes.ndim - len(self.axes)
        return (*self.codes.shape[:inputs], self.size, *self.codes.shape[inputs + 1 :])

    def dequantize(self) -> jax.Array:
        """The fp32 kernel."""

        def one(codes: jax.Array, scales: jax.Array) -> jax.Array:
            return decode(self.kind, codes, scales, self.size)

        stacked = self.codes.ndim > len(self.axes)
        return (jax.vmap(one) if stacked else one)(self.codes[...], self.scales[...])

    def __call__(self, x: jax.Array) -> jax.Array:
        """x [..., in] times the kernel, in x's dtype."""

        # With jax.checkpoint the backward pass dequantizes again instead of keeping every layer's kernel in fp32.
        @jax.checkpoint
        def product(x: jax.Array, codes: jax.Array, scales: jax.Array) -> jax.Array:
            return jnp.tensordot(x, decode(self.kind, codes, scales, self.size).astype(x.dtype), axes=1)

        return product(x, self.codes[...], self.scales[...])


def quantize_backbone(backbone: nnx.Module, kind: str) -> None:
    """Replaces the kernel of each linear layer by codes and scales, in place; embeddings, norms and biases stay.

    Encodes one parameter at a time, layer by layer, and frees its fp32 values. The network may be abstract
    (jax.ShapeDtypeStruct for values).

    Args:
        kind: "int8" | "nf4"; see `encode`.

    Raises ValueError for an unknown kind and for a network that is already quantized.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown quantization {kind!r}; choose from {', '.join(KINDS)}.")
    for linear in linears(backbone):
        if isinstance(linear.kernel, Quantized):
            raise ValueError("the network is already quantized: quantize the original weights instead.")
        kernel = plain_kernel(linear)
        axes = kernel.get_metadata()["axes"]
        stacked = kernel.ndim > len(axes)
        codes, scales = compute(_encode_layers if stacked else _encode, kind, kernel.get_value())
        linear.kernel = Quantized(kind, codes, scales, size=kernel.shape[stacked], axes=axes)


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
    function: Callable[[str, jax.Array], tuple[jax.Array, jax.Array]],
    kind: str,
    value: jax.Array | jax.ShapeDtypeStruct,
) -> tuple[jax.Array, jax.Array]:
    """function(kind, value), or only its shapes if `value` is a jax.ShapeDtypeStruct."""
    if isinstance(value, jax.ShapeDtypeStruct):
        return jax.eval_shape(lambda v: function(kind, v), value)
    return function(kind, value)


def _encode_layers_(kind: str, kernels: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jax.lax.map(lambda kernel: encode(kind, kernel), kernels)


_encode = jax.jit(encode, static_argnums=0)
_encode_layers = jax.jit(_encode_layers_, static_argnums=0)
