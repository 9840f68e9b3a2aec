"""Parts of encoders: buckets of distances, sinusoids, and positions beyond the table."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx

from instructrec_jax.backbones.encoder import check_positions, relative_bias, relative_buckets, sinusoids
from instructrec_jax.backbones.layers import Embedding


def test_buckets():
    distance = np.arange(-3000, 3001)
    bucket = transformers.models.t5.modeling_t5.T5Attention._relative_position_bucket
    for buckets, reach in [(4, 3), (8, 20), (10, 17), (32, 128), (32, 100), (33, 129), (64, 256), (256, 5000)]:
        for both in (True, False):
            options = dict(num_buckets=buckets, max_distance=reach, bidirectional=both)
            expected = bucket(torch.tensor(distance), both, buckets, reach).numpy()
            np.testing.assert_array_equal(relative_buckets(distance, **options), expected)
            np.testing.assert_array_equal(relative_buckets(distance.clip(-reach, reach), **options), expected)


def test_near_distances_have_a_bucket_of_their_own_and_farther_ones_never_less():
    distance = np.arange(0, 400)
    buckets = relative_buckets(-distance)
    assert buckets[:8].tolist() == list(range(8)) and (np.diff(buckets) >= 0).all() and buckets.max() == 15
    assert (relative_buckets(distance[1:]) == relative_buckets(-distance[1:]) + 16).all()  # keys behind the query
    one_sided = relative_buckets(distance, bidirectional=False)
    assert not one_sided.any()  # a key after the query shares the bucket of distance 0


def test_a_bias_depends_on_the_distance_of_positions_alone():
    buckets = relative_buckets(np.arange(-4, 5), num_buckets=8, max_distance=4)
    table = Embedding(8, 3, init=nnx.initializers.normal(), rngs=nnx.Rngs(0))
    values = np.asarray(table.table[...])
    positions = np.array([[0, 1, 2, 0, 1], [0, 1, 2, 3, 9]], np.int32)  # two packed texts; a far token
    bias = relative_bias(table, buckets, jnp.asarray(positions), jnp.asarray(positions))
    assert bias.shape == (2, 3, 5, 5)
    for row, query, key in np.ndindex(2, 5, 5):
        distance = int(np.clip(positions[row, key] - positions[row, query], -4, 4))
        np.testing.assert_array_equal(bias[row, :, query, key], values[buckets[distance + 4]])
    np.testing.assert_array_equal(bias[0, :, :3, :3], bias[1, :, :3, :3])


def test_sinusoids_are_those_of_vaswani():
    found = sinusoids(50, 12)
    assert found.dtype == np.float32
    for position, pair in np.ndindex(50, 6):
        angle = position / 10000 ** (2 * pair / 12)
        np.testing.assert_allclose(found[position, 2 * pair : 2 * pair + 2], [np.sin(angle), np.cos(angle)], atol=1e-6)


def test_positions_beyond_the_table_are_named():
    check_positions(jnp.array([[0, 3]]), 4)
    check_positions(jnp.zeros((0, 4), jnp.int32), 4)
    with pytest.raises(ValueError, match="5 tokens.* 4 positions"):
        check_positions(jnp.array([[0, 4], [1, 2]]), 4)
    jax.jit(lambda positions: check_positions(positions, 4))(jnp.array([9]))  # unknown inside jit
