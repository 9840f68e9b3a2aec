import jax
import jax.numpy as jnp
import numpy as np
import pytest

from instructrec_jax.backbones.attention import attention
from instructrec_jax.backbones.layers import attention_dropout_bits, dropout_keys

ROWS, LENGTH, HEADS, DIM = 2, 9, 3, 4
SEGMENTS = np.array([[1, 1, 1, 2, 2, 2, 2, 0, 0], [1, 1, 1, 1, 1, 1, 1, 1, 1]], np.int32)
POSITIONS = np.array([[0, 1, 2, 0, 1, 2, 3, 0, 0], range(9)], np.int32)
# tokens that see each other: a number of one segment means nothing in another, padding sees nothing
GROUPS = np.array([[1, 1, 0, 1, 1, 0, 0, 1, 1], [0, 1, 1, 1, 0, 2, 2, 1, 0]], np.int32)


def inputs(seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(ROWS, LENGTH, HEADS, DIM)).astype(np.float32) for _ in range(3)]


def oracle(q, k, v, *, bias=None, window=None, causal=False, keep=None, rate=0.0, groups=None):
    """One query at a time, in float64."""
    out = np.zeros(q.shape)
    for r in range(ROWS):
        for h in range(HEADS):
            for i in range(LENGTH):
                seen = [
                    j
                    for j in range(LENGTH)
                    if SEGMENTS[r, i] == SEGMENTS[r, j] != 0
                    and (
                        (window is None or abs(POSITIONS[r, i] - POSITIONS[r, j]) <= window)
                        and (not causal or POSITIONS[r, j] <= POSITIONS[r, i])
                        or (groups is not None and groups[r, i] == groups[r, j] > 0)
                    )
                ]
                if not seen:
                    continue
                scores = np.array([q[r, i, h].astype(np.float64) @ k[r, j, h] / np.sqrt(DIM) for j in seen])
                if bias is not None:
                    scores += bias[0, h, i, seen]
                weights = np.exp(scores - scores.max())
                weights /= weights.sum()
                if keep is not None:
                    weights = weights * keep[r, h, i, seen] / (1 - rate)
                out[r, i, h] = weights @ v[r, seen, h]
    return out


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"window": 1},
        {"causal": True},
        {"window": 2, "causal": True},
        {"bias": True},
        {"causal": True, "groups": GROUPS},
        {"window": 1, "causal": True, "groups": GROUPS},
    ],
    ids=lambda o: "+".join(o) or "plain",
)
def test_against_brute_force(options):
    if "bias" in options:
        options = {"bias": np.random.default_rng(7).normal(size=(1, HEADS, LENGTH, LENGTH)).astype(np.float32)}
    q, k, v = inputs()
    actual = jax.jit(lambda q, k, v: attention(q, k, v, segment_ids=SEGMENTS, positions=POSITIONS, **options))(q, k, v)
    np.testing.assert_allclose(actual, oracle(q, k, v, **options), atol=2e-6)
    assert (np.asarray(actual)[SEGMENTS == 0] == 0).all()


def test_groups_of_a_cache_are_those_of_its_keys():
    """The queries are the last tokens, the keys all of them."""
    q, k, v = inputs()
    numbers = dict(segment_ids=SEGMENTS, positions=POSITIONS, groups=GROUPS)
    whole = attention(q, k, v, causal=True, **numbers)
    last = {name: values[:, 4:] for name, values in numbers.items()}
    keys = {f"key_{name}": values for name, values in numbers.items()}
    part = attention(q[:, 4:], k, v, causal=True, **last, **keys)
    np.testing.assert_allclose(part, whole[:, 4:], atol=1e-6)


def test_dropout_hits_the_probabilities():
    q, k, v = inputs()
    rate = 0.4
    keys = dropout_keys(jnp.uint32(5), jnp.asarray(SEGMENTS), jnp.asarray(POSITIONS))
    keep = np.asarray(attention_dropout_bits(keys, HEADS, jnp.asarray(POSITIONS))) >= rate * 2**32
    actual = attention(q, k, v, segment_ids=SEGMENTS, positions=POSITIONS, dropout_rate=rate, dropout_keys=keys)
    np.testing.assert_allclose(actual, oracle(q, k, v, keep=keep, rate=rate), atol=2e-6)


def test_gradients_are_finite_with_padding_and_large_scores():
    q, k, v = inputs()

    def loss(q, k, v):
        return jnp.sum(attention(q, k, v, segment_ids=SEGMENTS, positions=POSITIONS) ** 2)

    for gradient in jax.grad(loss, argnums=(0, 1, 2))(q * 1e3, k * 1e3, v):
        assert np.isfinite(gradient).all()
    for gradient in jax.grad(loss, argnums=(0, 1, 2))(q, k, v):
        assert (np.asarray(gradient)[SEGMENTS == 0] == 0).all()


def test_bf16_keeps_its_dtype_and_an_fp32_softmax():
    q, k, v = (x.astype(jnp.bfloat16) for x in inputs())
    actual = attention(q, k, v, segment_ids=SEGMENTS, positions=POSITIONS)
    assert actual.dtype == jnp.bfloat16
    expected = oracle(*(np.asarray(x, np.float32) for x in (q, k, v)))
    np.testing.assert_allclose(np.asarray(actual, np.float32), expected, atol=0.03)
