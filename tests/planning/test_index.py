"""Memory of an index of item vectors on many devices."""

import jax
import pytest

from instructrec_jax.distributed.mesh import make_mesh
from instructrec_jax.planning.index import plan_index
from instructrec_jax.runs.config import Config


def test_the_index_is_spread_over_all_devices() -> None:
    mesh = make_mesh(Config().mesh, jax.devices()[:8])
    assert plan_index(100_001, 16, mesh).vectors == 12_544 * 16 * 4  # 12,501, padded to a multiple of 64
    found = plan_index(8_000_001, 16, mesh)
    assert found.vectors == 1_000_001 * 16 * 4
    assert found.vectors < found.peak < 2 * found.vectors  # no device has all vectors
    with pytest.raises(ValueError, match="--items"):
        plan_index(9, 16, mesh)
