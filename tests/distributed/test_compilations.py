"""A counter of compilations."""

from pathlib import Path

import jax
import jax.numpy as jnp
from program_caches import programs_in

from instructrec_jax.distributed.compilations import Compilations


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


def test_programs_that_the_cache_has_are_not_compiled(tmp_path: Path) -> None:
    with programs_in(tmp_path):
        jax.clear_caches()
        square = jax.jit(lambda x: x * x - 3)
        with Compilations() as first:
            square(jnp.zeros(7)).block_until_ready()
        jax.clear_caches()
        with Compilations() as second:
            square(jnp.zeros(7)).block_until_ready()
    assert first.compiled == first.count >= 1
    assert second.compiled == 0 and second.count >= 1
