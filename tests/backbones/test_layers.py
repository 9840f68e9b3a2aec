import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from instructrec_jax.backbones import layers
from instructrec_jax.backbones.attention import attention
from instructrec_jax.backbones.layers import (
    REMAT_POLICIES,
    Linear,
    Stack,
    StackOptions,
    dropout,
    dropout_keys,
    normal,
)


def keys_for(rows: int, length: int, seed: int = 3) -> layers.DropoutKeys:
    example = jnp.broadcast_to(jnp.arange(rows)[:, None], (rows, length))
    return dropout_keys(jnp.uint32(seed), example, jnp.broadcast_to(jnp.arange(length), (rows, length)))


def test_norms_and_softmax_in_bfloat16_are_rounded_once():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(3, 2, size=(4, 64)), jnp.bfloat16)
    for make in (layers.LayerNorm, layers.RMSNorm):
        expected = make(64, eps=1e-6)(x.astype(jnp.float32))
        found = make(64, eps=1e-6, dtype=jnp.bfloat16)(x)
        np.testing.assert_allclose(found.astype(jnp.float32), expected, rtol=2**-8, atol=1e-6)
    q, k = (jnp.asarray(rng.normal(size=(1, 32, 2, 16)), jnp.bfloat16) for _ in range(2))
    v = jnp.broadcast_to(jnp.ones((), jnp.bfloat16), k.shape)  # the sum of the probabilities
    place = jnp.arange(32)[None]
    sums = attention(q, k, v, segment_ids=jnp.ones_like(place), positions=place)
    np.testing.assert_allclose(sums.astype(jnp.float32), 1.0, rtol=2**-8)


def test_linear_parts_are_the_slices_of_one_matrix():
    linear = Linear(5, 7, axes=("embed", "heads"), init=normal(1.0), parts=3, rngs=nnx.Rngs(1))
    x = np.random.default_rng(0).normal(size=(2, 4, 5)).astype(np.float32)
    assert linear.kernel.shape == (5, 3, 7) and linear.bias.shape == (3, 7)
    flat = x @ np.asarray(linear.kernel[...]).reshape(5, 21)
    np.testing.assert_allclose(linear(x), flat.reshape(2, 4, 3, 7), atol=1e-5)


def test_layer_norm_without_bias_against_torch():
    x = np.random.default_rng(0).normal(2, 3, size=(3, 6)).astype(np.float32)
    norm = layers.LayerNorm(6, eps=1e-3, use_bias=False)
    expected = torch.nn.LayerNorm(6, eps=1e-3, bias=False)(torch.tensor(x)).detach().numpy()
    np.testing.assert_allclose(norm(jnp.asarray(x)), expected, atol=1e-6)
    assert norm.bias is None


def test_embedding_of_an_unknown_id_is_nan_not_a_neighbor():
    table = layers.Embedding(4, 2, init=normal(1.0), rngs=nnx.Rngs(0))
    out = table(jnp.array([[3, 4]]))
    assert np.isfinite(out[0, 0]).all() and np.isnan(out[0, 1]).all()


def test_truncated_normal_stays_inside():
    draw = np.asarray(layers.truncated_normal(0.5, 2.0)(jax.random.key(0), (20000,)))
    assert np.abs(draw).max() <= 1.0
    assert draw.std() == pytest.approx(0.5 * 0.8796, rel=0.03)  # the standard deviation of a normal cut at ±2


# ---------------------------------------------------------------- dropout


def test_hash_is_lowbias32():
    def reference(x: int) -> int:
        x ^= x >> 16
        x = x * 0x7FEB352D % 2**32
        x ^= x >> 15
        x = x * 0x846CA68B % 2**32
        return x ^ x >> 16

    values = [0, 1, 2, 12345, 2**31, 2**32 - 1]
    actual = layers._hash(jnp.array(values, jnp.uint32))
    assert np.asarray(actual).tolist() == [reference(v) for v in values]


def test_dropout_keeps_the_mean_and_has_the_right_variance():
    rate, x = 0.3, jnp.ones((16, 32, 64))
    y = np.asarray(dropout(x, rate, keys_for(16, 32)))
    n = y.size
    assert set(np.unique(y)) == {0.0, np.float32(1 / 0.7)}
    assert abs(y.mean() - 1) < 5 * np.sqrt(rate / (1 - rate) / n)
    assert y.var() == pytest.approx(rate / (1 - rate), rel=0.02)
    # no row, position or feature is favored: the worst mean of each axis stays within 5 standard errors
    for axes in [(1, 2), (0, 2), (0, 1)]:
        means = y.mean(axis=axes)
        error = np.sqrt(rate / (1 - rate) * len(means) / n)
        assert np.abs(means - 1).max() < 5 * error


@pytest.mark.parametrize("shift", ["site", "step", "example", "position", "feature"])
def test_dropout_bits_are_independent(shift):
    """Chi-square of the 2×2 table of (kept, kept elsewhere) stays below 25, five deviations squared."""
    keys, x = keys_for(32, 32), jnp.ones((32, 32, 32))
    one = np.asarray(dropout(x, 0.5, keys.fold(1))) > 0
    other = {
        "site": lambda: np.asarray(dropout(x, 0.5, keys.fold(2))) > 0,
        "step": lambda: np.asarray(dropout(x, 0.5, keys_for(32, 32, seed=4).fold(1))) > 0,
        "example": lambda: np.roll(one, 1, axis=0),
        "position": lambda: np.roll(one, 1, axis=1),
        "feature": lambda: np.roll(one, 1, axis=2),
    }[shift]()
    n = one.size
    table = np.array([[(a & b).sum() for b in (other, ~other)] for a in (one, ~one)])
    expected = np.outer(table.sum(1), table.sum(0)) / n
    assert ((table - expected) ** 2 / expected).sum() < 25


def test_folds_of_folds_differ():
    keys = keys_for(8, 8)
    folds = [np.asarray(keys.fold(a).fold(b).tokens) for a in range(4) for b in range(4)]
    assert len(np.unique(np.stack(folds))) == 16 * 64


def test_traced_fold_is_the_python_fold():
    keys = keys_for(2, 3)
    traced = jax.jit(lambda keys, site: keys.fold(site).tokens)(keys, 5)
    np.testing.assert_array_equal(traced, keys.fold(5).tokens)


def test_packed_and_unpacked_rows_drop_the_same():
    lengths, numbers = [3, 5], [40, 7]
    x = jnp.ones((1, 8, 6))
    example = jnp.array([[40] * 3 + [7] * 5])
    positions = jnp.array([[0, 1, 2, 0, 1, 2, 3, 4]])
    segments = jnp.array([[1] * 3 + [2] * 5])
    packed_keys = dropout_keys(jnp.uint32(9), example, positions)
    packed = dropout(x, 0.4, packed_keys)
    bits = layers.attention_dropout_bits(packed_keys, 2, positions)
    pooled = layers.segment_keys(packed_keys, segments, 2)
    start = 0
    for i, (length, number) in enumerate(zip(lengths, numbers, strict=True)):
        place = jnp.arange(length)[None]
        keys = dropout_keys(jnp.uint32(9), jnp.full((1, length), number), place)
        stop = start + length
        np.testing.assert_array_equal(dropout(x[:, :length], 0.4, keys), packed[:, start:stop])
        alone = layers.attention_dropout_bits(keys, 2, place)
        np.testing.assert_array_equal(alone, bits[:, :, start:stop, start:stop])
        first = layers.segment_keys(keys, jnp.ones((1, length), int), 1)
        np.testing.assert_array_equal(first.tokens[0, 0], pooled.tokens[0, i])
        start = stop


def test_dropout_off_is_the_identity_and_bad_rates_are_refused():
    x = jnp.arange(6.0).reshape(1, 2, 3)
    assert dropout(x, 0.5, None) is x and dropout(x, 0.0, keys_for(1, 2)) is x
    with pytest.raises(ValueError, match="dropout"):
        dropout(x, 1.0, keys_for(1, 2))


# ---------------------------------------------------------------- the stack


class Affine(nnx.Module):
    """A layer whose code depends on its kind, and which uses its dropout keys."""

    def __init__(self, kind: str, rngs: nnx.Rngs):
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), (4, 4)) / 2, axes=("embed", None))
        self.first = nnx.Param(jnp.ones(4), axes=("embed",)) if kind == "first" else None
        self.kind = kind

    def __call__(self, x, context, keys):
        y = jnp.tanh(x @ self.kernel[...])
        y = y * 2 if self.kind == "local" else y + context
        return dropout(y if self.first is None else y * self.first[...], 0.3, keys)


@pytest.mark.parametrize("remat", list(REMAT_POLICIES))
def test_stack_is_its_layers_one_after_the_other(remat):
    kinds = ["first", "local", "local", "global", "local", "local", "global", "local"]
    stack = Stack(kinds, Affine, options=StackOptions(remat), rngs=nnx.Rngs(5))
    graphdef, state = nnx.split(stack)
    x, context, keys = jax.random.normal(jax.random.key(1), (2, 3, 4)), jnp.float32(0.1), keys_for(2, 3)

    def unrolled(state, x):
        stack = nnx.merge(graphdef, state)
        for i, kind in enumerate(kinds):
            name, index = stack.locate(i)
            layer, params = nnx.split(getattr(stack, name))
            assert nnx.merge(layer, params).kind == kind
            x = nnx.merge(layer, jax.tree.map(lambda a, i=index: a[i], params))(x, context, keys.fold(i + 1))
        return x

    def scanned(state, x):
        return nnx.merge(graphdef, state)(x, context, keys)

    np.testing.assert_allclose(jax.jit(scanned)(state, x), unrolled(state, x), atol=1e-6)
    loss = [jax.grad(lambda s, f=f: jnp.sum(f(s, x) ** 2))(state) for f in (scanned, unrolled)]
    for a, b in zip(*map(jax.tree.leaves, loss), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_stack_layers_start_different_and_keep_their_axes():
    stack = Stack(["x"] * 3, Affine, rngs=nnx.Rngs(0))
    kernel = stack.block0.kernel
    assert kernel.shape == (3, 4, 4) and kernel.get_metadata()["axes"] == ("embed", None)
    assert not np.allclose(kernel[...][0], kernel[...][1])


def test_unknown_remat_is_named():
    with pytest.raises(ValueError, match="'half'.*none, attention, dots, offload, full"):
        Stack(["x"], Affine, options=StackOptions("half"), rngs=nnx.Rngs(0))
