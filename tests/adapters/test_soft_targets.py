"""Distillation's distance between outputs, against its formula in float64."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, log_softmax, softmax

from instructrec_jax.adapters.soft_targets import SoftOutputs, distance, soft_loss

RNG = np.random.default_rng(0)
STUDENT, FIRST, SECOND = (RNG.normal(size=(2, 5, 7)) * 3 for _ in range(3))
WEIGHTS = RNG.random((2, 5))
T = 1.7


def outputs(kind: str, values: np.ndarray) -> SoftOutputs:
    return SoftOutputs(kind, jnp.asarray(values, jnp.float32), jnp.asarray(WEIGHTS, jnp.float32))  # type: ignore[arg-type]


def expected(kind: str) -> np.ndarray:
    if kind == "numbers":
        return np.square(STUDENT - (FIRST + SECOND) / 2)[..., 0]
    if kind == "classes":
        p = (softmax(FIRST / T, -1) + softmax(SECOND / T, -1)) / 2
        return T**2 * (p * (np.log(p) - log_softmax(STUDENT / T, -1))).sum(-1)
    p, q = (expit(FIRST / T) + expit(SECOND / T)) / 2, expit(STUDENT / T)
    return T**2 * (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).mean(-1)


@pytest.mark.parametrize("kind", ["classes", "labels", "numbers"])
def test_the_formula(kind: str) -> None:
    """Of two teachers, whose probabilities (not logits) are averaged."""
    student, *teachers = (outputs(kind, values) for values in (STUDENT, FIRST, SECOND))
    np.testing.assert_allclose(distance(student, teachers, T), expected(kind), rtol=2e-5, atol=1e-6)
    total = soft_loss(student, teachers, T)
    assert float(total) == pytest.approx((WEIGHTS * expected(kind)).sum(), rel=1e-5)


@pytest.mark.parametrize("length", [5, 3000])  # 3000: several chunks
def test_over_a_vocabulary_as_with_whole_logits(length: int) -> None:
    """Value and gradients, with bias, scale and cap; also chunks that the length is not divided by."""
    hidden, theirs = (jnp.asarray(RNG.normal(size=(2, length, 4)), jnp.float32) for _ in range(2))
    table, bias = jnp.asarray(RNG.normal(size=(7, 4)), jnp.float32), jnp.asarray(RNG.normal(size=7), jnp.float32)
    weights = jnp.asarray(RNG.random((2, length)), jnp.float32)

    def layer(x: jax.Array, table: jax.Array) -> SoftOutputs:
        return SoftOutputs("classes", x, weights, table, bias, 0.5, 3.0)

    def chunked(x: jax.Array, table: jax.Array) -> jax.Array:
        return soft_loss(layer(x, table), [layer(theirs, 2 * table)], T)

    def whole(x: jax.Array, table: jax.Array) -> jax.Array:
        student, teacher = (
            replace(each, values=each.logits(), table=None)
            for each in (layer(x, table), layer(theirs, jax.lax.stop_gradient(2 * table)))
        )
        return soft_loss(student, [teacher], T)

    found, wanted = (jax.jit(jax.value_and_grad(each, argnums=(0, 1)))(hidden, table) for each in (chunked, whole))
    for mine, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-4)


def test_a_teacher_like_the_student_has_no_gradient() -> None:
    """Also where the softmax leaves out classes."""
    logits = jnp.where(jnp.arange(7) < 5, jnp.asarray(STUDENT, jnp.float32), -1e9)

    def loss(values: jax.Array) -> jax.Array:
        return soft_loss(outputs("classes", values), [outputs("classes", logits)] * 2, T)

    value, gradient = jax.value_and_grad(loss)(logits)
    np.testing.assert_allclose(value, 0, atol=1e-5)
    np.testing.assert_allclose(gradient, 0, atol=1e-6)


def test_outputs_of_another_size_are_named() -> None:
    with pytest.raises(ValueError, match="the teacher has 6 outputs, but this run 7"):
        soft_loss(outputs("classes", STUDENT), [outputs("classes", FIRST[..., :6])], T)
