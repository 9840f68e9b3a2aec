import jax
import jax.numpy as jnp
import numpy as np

from instructrec_jax.backbones.noted import noted


def test_what_a_scan_computes_is_the_gradient_of_zeros() -> None:
    factors = jnp.arange(1.0, 4.0)
    start = jnp.array([1.0, 2.0])

    def total(zeros: dict[str, jax.Array], x: jax.Array) -> jax.Array:
        def layer(x: jax.Array, own: tuple[jax.Array, dict[str, jax.Array]]) -> tuple[jax.Array, None]:
            factor, slots = own
            return noted(x * factor, slots, {"squares": jax.lax.stop_gradient(x**2)}), None

        return jax.lax.scan(layer, x, (factors, zeros))[0].sum()

    zeros = {"squares": jnp.zeros((3, 2))}
    assert total(zeros, start) == start.sum() * 6
    found, slope = jax.jit(jax.grad(total, argnums=(0, 1)))(zeros, start)
    np.testing.assert_allclose(found["squares"], np.array([[1, 4], [1, 4], [4, 16]]))
    np.testing.assert_array_equal(slope, 0)  # no other gradient passes
