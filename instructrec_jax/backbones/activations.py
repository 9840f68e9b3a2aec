"""The activations of HuggingFace configs."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np


def _gelu(x: jax.Array) -> jax.Array:
    # on CPU, erf costs a third of jax.nn.gelu(approximate=False), which uses erfc
    return 0.5 * x * (1.0 + jax.lax.erf(x * np.sqrt(0.5).astype(x.dtype)))


def _gelu_tanh(x: jax.Array) -> jax.Array:
    return jax.nn.gelu(x, approximate=True)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": _gelu,
    "gelu_python": _gelu,
    "gelu_new": _gelu_tanh,
    "gelu_fast": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "gelu_python_tanh": _gelu_tanh,
    "gelu_accurate": _gelu_tanh,
    "gelu_10": lambda x: jnp.clip(_gelu(x), -10, 10),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "relu": jax.nn.relu,
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),
    "relu6": jax.nn.relu6,
    "leaky_relu": jax.nn.leaky_relu,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "mish": jax.nn.mish,
    "hardswish": jax.nn.hard_swish,
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
    "linear": lambda x: x,
}


def activation(name: str) -> Callable[[jax.Array], jax.Array]:
    """HuggingFace's activation `name`, computed in fp32 and returned in the dtype of its argument.

    Raises ValueError for an unknown activation.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"the activation {name!r} is not supported; supported: {', '.join(sorted(ACTIVATIONS))}.")
    return _rounded_once(ACTIVATIONS[name])


@functools.cache
def _rounded_once(function: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
    """Computes an elementwise function in fp32 for any dtype: 1 + erf(x) near 0 has no digits in bfloat16.

    The backward pass keeps the slope in the argument's dtype, half the memory of the fp32 values.
    """

    @jax.custom_jvp
    def narrow(x: jax.Array) -> jax.Array:
        return function(x.astype(jnp.float32)).astype(x.dtype)

    @narrow.defjvp
    def _(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
        x = primals[0].astype(jnp.float32)
        y, slope = jax.jvp(function, (x,), (jnp.ones_like(x),))
        return y.astype(primals[0].dtype), slope.astype(primals[0].dtype) * tangents[0]

    return lambda x: function(x) if x.dtype == jnp.float32 else narrow(x)
