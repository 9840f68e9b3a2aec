"""Plain and quantized tables against NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from instructrec_jax.adapters.quantized import QuantizedTable, dense_tables, quantize_tables
from instructrec_jax.backbones.layers import Embedding, normal
from instructrec_jax.backbones.tables import dense_table, table_logits


def embedding() -> Embedding:
    return Embedding(13, 8, init=normal(1.0), padding_id=0, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("activations", ["none", "int8"])
def test_rows_and_logits_are_those_of_the_codes(activations):
    words = embedding()
    table = np.asarray(words.table[...], np.float64)
    quantize_tables(words, activations)
    assert isinstance(words.table, QuantizedTable) and words.table.shape == (13, 8)
    steps = np.abs(table).max(1, keepdims=True) / 127
    dense = np.asarray(dense_table(words.table), np.float64)
    assert (np.abs(dense - table) <= 0.5001 * steps).all() and (dense[0] == 0).all()
    np.testing.assert_allclose(words(jnp.array([[3, 0]])), dense[[[3, 0]]], rtol=1e-6)
    assert np.isnan(words(jnp.array([13]))).all()
    x = np.random.default_rng(0).normal(size=(2, 3, 8))
    scale = np.abs(x).max(-1, keepdims=True) / 127
    rounded = np.round(x / scale) * scale if activations == "int8" else x
    np.testing.assert_allclose(table_logits(words.table, jnp.asarray(x, jnp.float32)), rounded @ dense.T, atol=1e-4)
    dense_tables(words)
    np.testing.assert_allclose(words.table[...], dense, rtol=1e-6)


def test_a_plain_table_is_multiplied_as_it_is():
    words, x = embedding(), np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)
    assert dense_table(words.table) is not None
    np.testing.assert_allclose(table_logits(words.table, jnp.asarray(x)), x @ np.asarray(words.table[...]).T, atol=1e-5)
