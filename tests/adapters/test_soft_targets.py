"""Distillation's distance between outputs, against its formula in float64."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from scipy.special import expit, log_softmax, softmax

from instructrec_jax.adapters.soft_targets import SoftOutputs, agreement_loss, disagreement, distance, soft_loss

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


@pytest.mark.parametrize("kind", ["classes", "labels", "numbers"])
def test_agreement_is_half_of_both_divergences(kind: str) -> None:
    """Value and the gradients of both sides, against PyTorch in float64."""
    p, q = (torch.tensor(each, requires_grad=True) for each in (FIRST, SECOND))
    if kind == "numbers":
        each = (p - q)[..., 0] ** 2
    else:
        pair = [torch.stack([z, 0 * z], -1) if kind == "labels" else z for z in (p, q)]
        a, b = (torch.distributions.Categorical(logits=z) for z in pair)
        both = torch.distributions.kl_divergence(a, b) + torch.distributions.kl_divergence(b, a)
        each = both.mean(-1) / 2 if kind == "labels" else both / 2
    (torch.tensor(WEIGHTS) * each).sum().backward()

    def loss(one: jax.Array, other: jax.Array) -> jax.Array:
        return agreement_loss(outputs(kind, one), outputs(kind, other))  # type: ignore[arg-type]

    found = jax.grad(loss, argnums=(0, 1))(jnp.asarray(FIRST, jnp.float32), jnp.asarray(SECOND, jnp.float32))
    np.testing.assert_allclose(disagreement(outputs(kind, FIRST), outputs(kind, SECOND)), each.detach(), rtol=3e-5)
    for mine, theirs in zip(found, (p.grad, q.grad), strict=True):
        assert theirs is not None
        np.testing.assert_allclose(mine, theirs, rtol=1e-3, atol=1e-5)


def test_agreement_over_a_vocabulary_has_the_gradients_of_both_sides() -> None:
    """Also that of the shared table; 3000 tokens are several chunks."""
    hidden, theirs = (jnp.asarray(RNG.normal(size=(2, 3000, 4)), jnp.float32) for _ in range(2))
    table = jnp.asarray(RNG.normal(size=(7, 4)), jnp.float32)
    weights = jnp.asarray(RNG.random((2, 3000)), jnp.float32)

    def loss(one: jax.Array, other: jax.Array, table: jax.Array, whole: bool) -> jax.Array:
        both = [SoftOutputs("classes", x, weights, table) for x in (one, other)]
        return agreement_loss(*(replace(e, values=e.logits(), table=None) if whole else e for e in both))

    value = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)), static_argnums=3)
    found, wanted = (value(hidden, theirs, table, whole) for whole in (False, True))
    for mine, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-3)
