import jax
import numpy as np

from instructrec_jax.service.compilations import Compilations


def test_compilations_are_counted_until_the_end() -> None:
    twice = jax.jit(lambda x: 2 * x)
    with Compilations() as compilations:
        twice(np.ones(3))
        once = compilations.count
        twice(np.ones(3))
        assert once >= 1 and compilations.count == once and compilations.seconds > 0
        twice(np.ones(4))
        assert compilations.count > once
    after = compilations.count
    twice(np.ones(5))
    assert compilations.count == after
