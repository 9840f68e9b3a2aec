"""A counter of compilations."""

import jax
import jax.numpy as jnp

from instructrec_jax.service.compilations import Compilations


def test_new_shapes_count_and_known_ones_do_not() -> None:
    double = jax.jit(lambda x: 2 * x + 1)
    with Compilations() as compilations:
        double(jnp.zeros(3)).block_until_ready()
        first = compilations.count
        double(jnp.zeros(3)).block_until_ready()
        assert compilations.count == first >= 1
        double(jnp.zeros(4)).block_until_ready()
        assert compilations.count > first and compilations.seconds > 0
    after = compilations.count
    double(jnp.zeros(5))
    assert compilations.count == after
