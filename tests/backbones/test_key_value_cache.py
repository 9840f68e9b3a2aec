"""Keys and values in int8 against the same rounding in float64, and against reading all tokens at once."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from flax import nnx
from tiny_networks import ENCODER_DECODERS, IDS, SIZES, VOCAB

from instructrec_jax.backbones.key_value_cache import append, read, round_last, stored
from instructrec_jax.backbones.reading import build_backbone
from instructrec_jax.backbones.seq2seq import AttentionSpec, Context, CrossAttention, SelfAttention

CONFIGS = {
    "llama": transformers.LlamaConfig,
    "gemma2": transformers.Gemma2Config,
    "gpt2": transformers.GPT2Config,
    "t5": transformers.T5Config,
    "bart": transformers.BartConfig,
}
SLOW = pytest.mark.slow
ROWS, LENGTH, HEADS, DIM = 2, 7, 4, 8
SPEC = AttentionSpec(HEADS * DIM, HEADS, DIM, DIM**-0.5, False, 0.0, 1.0, 1.0, 0.2)


def rounded(x: np.ndarray) -> np.ndarray:
    """What the codes of float64 [..., head_dim] stand for."""
    scale = np.abs(x).max(-1, keepdims=True) / 127
    return np.round(x / np.where(scale == 0, 1, scale)) * scale


def oracle(module: Any, x: np.ndarray, keys_of: np.ndarray, causal: bool) -> np.ndarray:
    """Attention of x [rows, queries, hidden] to the rounded keys and values of keys_of, in float64."""
    kernels = [np.asarray(getattr(module, n).kernel[...], np.float64) for n in ("query", "key", "value", "output")]
    q, k, v = (
        (each @ kernel).reshape(*each.shape[:2], HEADS, DIM)
        for each, kernel in zip((x, keys_of, keys_of), kernels, strict=False)
    )
    scores = np.einsum("blhd,bmhd->bhlm", q, rounded(k)) * SPEC.scale
    if causal:
        past = np.arange(keys_of.shape[1]) <= np.arange(x.shape[1])[:, None] + keys_of.shape[1] - x.shape[1]
        scores = np.where(past, scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("bhlm,bmhd->blhd", weights, rounded(v)).reshape(*x.shape[:2], -1) @ kernels[3]


def empty(length: int, *names: str) -> dict[str, jax.Array]:
    codes = {name: jnp.zeros((ROWS, length, HEADS, DIM), jnp.int8) for name in names}
    return codes | {f"{name}_scale": jnp.zeros((ROWS, length, HEADS, 1)) for name in names}


def context(first: int, last: int, **more: Any) -> Context:
    """Tokens first to last, with keys in all slots before."""
    places = np.arange(LENGTH)
    key_segments = np.broadcast_to(places < last, (ROWS, LENGTH)).astype(np.int32)
    ones = np.ones((ROWS, last - first), np.int32)
    return Context(ones, ones * places[first:last], key_segments, key_segments * places, first, **more)


def test_attention_to_codes_is_that_of_the_same_rounding_in_float64() -> None:
    module = SelfAttention(SPEC, True, jnp.float32, nnx.Rngs(0))
    x = np.random.default_rng(0).normal(size=(ROWS, LENGTH, HEADS * DIM)).astype(np.float32)
    cache = empty(LENGTH, "key", "value")
    expected = oracle(module, x.astype(np.float64), x.astype(np.float64), True)
    for first, last in ((0, 5), (5, 6), (6, 7)):  # a prompt, and two tokens
        out, entries = module(jnp.asarray(x[:, first:last]), context(first, last), None, cache)
        assert {str(entries[name].dtype) for name in ("key", "value")} == {"int8"}
        cache = {name: append(cache[name], entry, first) for name, entry in entries.items()}
        np.testing.assert_allclose(out, expected[:, first:last], atol=2e-5)


def test_cross_attention_reads_the_same_codes_at_every_step() -> None:
    module = CrossAttention(SPEC, jnp.float32, nnx.Rngs(1))
    rng = np.random.default_rng(1)
    x, encoded = (rng.normal(size=(ROWS, n, HEADS * DIM)).astype(np.float32) for n in (1, LENGTH))
    ones = np.ones((ROWS, LENGTH), np.int32)
    texts = {"encoded_segment_ids": ones, "encoded_positions": ones * np.arange(LENGTH)}
    cache = empty(LENGTH, "encoded_key", "encoded_value")
    expected = oracle(module, x.astype(np.float64), encoded.astype(np.float64), False)
    first, entries = module(jnp.asarray(x), context(0, 1, encoded=jnp.asarray(encoded), **texts), None, cache)
    later, none = module(jnp.asarray(x), context(1, 2, **texts), None, entries)
    assert not none
    for out in (first, later):
        np.testing.assert_allclose(out, expected, atol=2e-5)


def test_codes_and_scales() -> None:
    """One scale for each token and head; zeros stay zeros, and NaN stays NaN."""
    x = np.random.default_rng(0).normal(size=(ROWS, LENGTH, HEADS, DIM)).astype(np.float32)
    x[0, 1], x[1, 2, 0] = 0, np.nan
    entries = stored(empty(LENGTH, "key"), {"key": jnp.asarray(x)})
    assert entries["key"].shape == x.shape and entries["key_scale"].shape == (ROWS, LENGTH, HEADS, 1)
    (values,) = read(entries, jnp.float32)
    np.testing.assert_allclose(values, rounded(x), rtol=1e-6)
    assert np.isnan(values[1, 2, 0]).all() and np.isfinite(np.delete(values[1], 2, 0)).all()
    assert stored({"key": jnp.zeros(3)}, {"key": x}).keys() == {"key"}, "a cache of floats stays one"
    np.testing.assert_array_equal(round_last(jnp.full((1, 3), -2.0))[0], -127)


@partial(nnx.jit, static_argnums=2)
def read_tokens(network: Any, tokens: np.ndarray, pieces: tuple[int, ...]) -> jax.Array:
    """The hidden states of tokens [rows, length] that a cache reads in pieces."""
    pair, length = hasattr(network, "decode"), tokens.shape[1]
    ones, places = jnp.ones_like(tokens), jnp.arange(length) * jnp.ones_like(tokens)
    cache = network.empty_cache(len(tokens), length, *([length] if pair else []))
    more = (network.encode(tokens[:, ::-1], ones, places), ones) if pair else ()
    found = []
    for first, last in zip((0, *pieces), (*pieces, length), strict=True):
        part = [x[:, first:last] for x in (tokens, ones, places)]
        if pair:
            hidden, cache = network.decode(*part, *more, cache=cache)
            more = ()
        else:
            hidden, cache = network(*part, 0 * part[0], cache=cache)
        found.append(hidden)
    return jnp.concatenate(found, axis=1)


@pytest.mark.parametrize(
    "kind", [kind if kind in ("llama", "t5") else pytest.param(kind, marks=SLOW) for kind in CONFIGS]
)
def test_a_cache_of_every_family_in_int8(kind: str) -> None:
    """A quarter of the bytes; in pieces as at once; and near the cache of floats."""
    start = {"decoder_start_token_id": 3} if kind in ENCODER_DECODERS else {}
    network: Any = build_backbone(CONFIGS[kind](**(IDS | SIZES[kind] | start)), rngs=nnx.Rngs(0))
    tokens = np.random.default_rng(0).integers(4, VOCAB, (2, 9)).astype(np.int32)
    sizes = (2, 16, 16) if kind in ENCODER_DECODERS else (2, 16)
    exact = np.asarray(read_tokens(network, tokens, ()))
    bytes_of = []
    for codes in (False, True):
        network.cache_codes = codes
        layers = jax.eval_shape(lambda: network.empty_cache(*sizes)["layers"])
        bytes_of.append(sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(layers)))
    assert bytes_of[1] == bytes_of[0] * (DIM + 4) / (4 * DIM)  # a head has 8 features, and a scale in 4 bytes
    once, split = (np.asarray(read_tokens(network, tokens, pieces)) for pieces in ((), (5, 8)))
    np.testing.assert_allclose(split, once, atol=2e-4 * np.abs(once).max())
    gap = np.abs(once - exact).max() / np.abs(exact).max()
    assert 1e-6 < gap < 0.03
