"""Projections keep inner products on average, within the variance of a count-sketch; without one all numbers stay."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from instructrec_jax.explanation.projection import check_dimension, projected


def gradients(rng: np.random.Generator) -> dict[str, dict[str, jax.Array]]:
    """Two parameters: one of several blocks, with a remainder, and one shorter than a block."""
    return {
        "a": {"x": jnp.asarray(rng.normal(size=(3, 37, 2)), jnp.float32)},
        "b": {"y": jnp.asarray(rng.normal(size=5))},
    }


def test_inner_products_are_unbiased() -> None:
    rng = np.random.default_rng(0)
    x, y = gradients(rng), gradients(rng)
    y = jax.tree.map(lambda one, other: 0.5 * one + other, x, y)
    whole = [np.asarray(projected(each, 0, 0), np.float64) for each in (x, y)]
    exact, seeds = float(whole[0] @ whole[1]), 600
    assert len(whole[0]) == 3 * 37 * 2 + 5
    of_seeds = jax.jit(jax.vmap(lambda seed: (projected(x, 64, seed), projected(y, 64, seed))))
    ones, others = (np.asarray(each, np.float64) for each in of_seeds(jnp.arange(seeds)))
    assert ones.shape == (seeds, 64)
    found = (ones * others).sum(1)
    variance = 0.0  # of a count-sketch: what is in one block never meets
    blocks = [np.split(each[:222], (64, 128, 192)) for each in whole]
    blocks = [[*each, full[222:]] for each, full in zip(blocks, whole, strict=True)]
    for n, (a, b) in enumerate(zip(*blocks, strict=True)):
        for m, (c, d) in enumerate(zip(*blocks, strict=True)):
            variance += (n != m) * ((a @ a) * (d @ d) + (a @ b) * (c @ d)) / 64
    assert abs(np.mean(found) - exact) < 4 * np.sqrt(variance / seeds)
    assert np.std(found) == pytest.approx(np.sqrt(variance), rel=0.1)


def test_a_projection_is_linear_and_a_function_of_the_seed() -> None:
    rng = np.random.default_rng(1)
    x, y = gradients(rng), gradients(rng)
    project = jax.jit(projected, static_argnums=1)
    both = project(jax.tree.map(lambda one, other: one - 2 * other, x, y), 32, 7)
    np.testing.assert_allclose(both, project(x, 32, 7) - 2 * project(y, 32, 7), atol=1e-5)
    assert not np.allclose(project(x, 32, 7), project(x, 32, 8))


@pytest.mark.parametrize("dimension", [-32, 33, 1])
def test_a_bad_dimension_is_named(dimension: int) -> None:
    with pytest.raises(ValueError, match="a multiple of 32, or 0"):
        check_dimension(dimension)
