"""GPTQ against the algorithm written out: one inverse Hessian, updated input by input, in float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from instructrec_jax.adapters.quantized import LARGEST, NF4, Format, decode, encode, pack
from instructrec_jax.compression.gptq import DAMPING, gptq


def reference(kernel: np.ndarray, gram: np.ndarray, kind: str, group: int) -> np.ndarray:
    """The kernel that optimal brain quantization (Frantar & Alistarh, 2022) leaves, largest inputs first.

    After each input it is removed from the inverse Hessian by one step of Gaussian elimination, its equation 3.
    """
    weights, size = kernel.astype(np.float64), len(kernel)
    inverse = np.linalg.inv(gram.astype(np.float64) + DAMPING * np.mean(np.diag(gram)) * np.eye(size))
    rounded = np.zeros_like(weights)
    for i in sorted(range(size), key=lambda i: -gram[i, i]):
        first = i - i % group
        scale = np.abs(kernel[first : first + group]).max(0).astype(np.float64) / LARGEST[kind]
        if kind == "nf4":
            rounded[i] = scale * NF4[np.abs(weights[i][:, None] / scale[:, None] - NF4).argmin(1)]
        else:
            rounded[i] = scale * np.clip(np.round(weights[i] / scale), -LARGEST[kind], LARGEST[kind])
        weights -= np.outer(inverse[:, i] / inverse[i, i], weights[i] - rounded[i])
        inverse = inverse - np.outer(inverse[:, i], inverse[i]) / inverse[i, i]
        inverse[i, i] = 1.0  # removed: never read again
    return rounded


def problem(size: int, outputs: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A kernel and the Gram matrix of correlated inputs."""
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(4 * size, size)) @ (np.eye(size) + 0.4 * rng.normal(size=(size, size)) / np.sqrt(size))
    return rng.normal(size=(size, outputs)).astype(np.float32), (inputs.T @ inputs).astype(np.float32)


def decoded(kernel: np.ndarray, gram: np.ndarray, format: Format) -> np.ndarray:
    numbers, scales = gptq(kernel, gram, format)
    return np.asarray(decode(format, pack(format.weights, jnp.asarray(numbers)), jnp.asarray(scales), len(kernel)))


@pytest.mark.parametrize(
    ("kind", "group", "size"), [("int4", 32, 96), ("int4", 64, 150), ("nf4", 64, 128), ("int8", None, 200)]
)
def test_the_blocked_algorithm_equals_the_plain_one(kind, group, size):
    kernel, gram = problem(size, 12)
    actual = decoded(kernel, gram, Format(kind, group))
    np.testing.assert_allclose(actual, reference(kernel, gram, kind, group or size), atol=1e-3, rtol=0)


def test_outputs_are_nearer_than_those_of_rounding():
    kernel, gram = problem(128, 32)
    format = Format("int4", 64)

    def loss(rounded: np.ndarray) -> float:
        return float(np.einsum("io,ij,jo->", rounded - kernel, gram, rounded - kernel))

    plain = decode(format, *encode(format, jnp.asarray(kernel)), 128)
    assert loss(decoded(kernel, gram, format)) < 0.8 * loss(np.asarray(plain))


def test_inputs_that_never_occur_are_rounded_to_nearest():
    kernel, gram = problem(64, 8)
    gram[5], gram[:, 5] = 0, 0
    format = Format("int8")
    scale = np.abs(kernel).max(0) / 127
    assert np.isfinite(decoded(kernel, gram, format)).all()
    assert (np.abs(decoded(kernel, gram, format)[5] - kernel[5]) <= 0.5001 * scale).all()
