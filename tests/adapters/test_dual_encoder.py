"""The dual-encoder head: pooled, projected, of unit length; its temperature stays in bounds."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from instructrec_jax.adapters.dual_encoder import MAX_SCALE, RetrievalHead, unit_length
from instructrec_jax.arrays import Array


def test_a_temperature_beyond_the_cap_can_come_back():
    head = RetrievalHead(8, None, pooling="mean", temperature=0.05, rngs=nnx.Rngs(0))
    for temperature, scale in ((0.05, 20.0), (0.01, 100.0), (0.001, 100.0)):
        head.log_temperature[...] = jnp.log(jnp.float32(temperature))
        found, gradient = nnx.value_and_grad(lambda head: head.scale())(head)
        assert float(found) == pytest.approx(scale, rel=1e-5)
        assert float(gradient.log_temperature[...]) == pytest.approx(-scale, rel=1e-5)


HIDDEN = np.random.default_rng(0).normal(size=(2, 5, 8)).astype(np.float32)
SEGMENTS = np.array([[1, 1, 1, 2, 0], [1, 1, 1, 1, 1]], np.int32)


def head(projection: int | None, **settings: Any) -> RetrievalHead:
    return RetrievalHead(8, projection, **({"pooling": "mean", "temperature": 0.05} | settings), rngs=nnx.Rngs(0))


def means() -> np.ndarray:
    """float64 [rows, 2 segments, hidden], zeros for an absent segment."""
    found = np.zeros((2, 2, 8))
    for row, number in ((0, 1), (0, 2), (1, 1)):
        found[row, number - 1] = HIDDEN[row, SEGMENTS[row] == number].astype(np.float64).mean(0)
    return found


def normalized(vectors: np.ndarray) -> np.ndarray:
    size = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.divide(vectors, size, out=np.zeros_like(vectors), where=size > 0)


@pytest.mark.parametrize("projection", [None, 8, 3, 12])
def test_vectors_against_float64(projection: int | None) -> None:
    own = head(projection)
    if own.projection is None:
        expected = normalized(means())
    else:
        if projection == 8:
            np.testing.assert_array_equal(own.projection[...], np.eye(8))  # an untuned model is the pretrained one
        own.projection[...] = jnp.asarray(np.random.default_rng(1).normal(size=(8, projection)), jnp.float32)
        expected = normalized(means() @ np.asarray(own.projection[...], np.float64))
    as_arrays: list[Array] = [SEGMENTS, jnp.asarray(SEGMENTS)]  # NumPy's or jax's
    for segments in as_arrays:
        np.testing.assert_allclose(own(jnp.asarray(HIDDEN), segments, 2), expected, atol=1e-6)


@pytest.mark.parametrize("projection", [3, 12])
def test_a_new_projection_keeps_lengths_and_angles_as_far_as_it_can(projection: int) -> None:
    kernel = np.asarray(head(projection).projection[...], np.float64)  # type: ignore[index]
    small = min(kernel.shape)
    gram = kernel.T @ kernel if kernel.shape[0] > small else kernel @ kernel.T
    np.testing.assert_allclose(gram, np.eye(small), atol=1e-5)


def test_vectors_are_float32_whatever_the_projection_is_computed_in() -> None:
    exact, rounded = head(8), head(8, dtype=jnp.bfloat16)
    vectors = rounded(jnp.asarray(HIDDEN, jnp.bfloat16), SEGMENTS, 2)
    assert vectors.dtype == jnp.float32
    np.testing.assert_allclose(vectors, exact(jnp.asarray(HIDDEN), SEGMENTS, 2), atol=0.02)
    np.testing.assert_allclose(np.linalg.norm(vectors[1, 0]), 1, atol=1e-6)


def test_unit_length() -> None:
    vectors = np.random.default_rng(2).normal(size=(50, 7)) * np.logspace(-4, 15, 50)[:, None]
    np.testing.assert_allclose(unit_length(jnp.asarray(vectors, jnp.float32)), normalized(vectors), atol=1e-6)
    value, gradient = jax.value_and_grad(lambda x: jnp.sum(unit_length(x)))(jnp.zeros(7))
    assert value == 0 and np.isfinite(gradient).all()


@pytest.mark.parametrize("temperature", [0.0, 0.0099, -1.0, float("nan")])
def test_a_temperature_beyond_the_cap_is_named(temperature: float) -> None:
    with pytest.raises(ValueError, match="task.temperature"):
        head(None, temperature=temperature)
    assert float(head(None, temperature=1 / MAX_SCALE).scale()) == pytest.approx(MAX_SCALE)
