import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from transformers import BertConfig, ModernBertConfig, RobertaConfig

from instructrec_jax.adapters.heads import POOLING_MODES, build_head, pool_segments
from instructrec_jax.backbones.layers import dropout_keys
from instructrec_jax.backbones.reading import build_backbone

SEGMENTS = np.array([[1, 1, 1, 2, 3, 3, 0, 0], [1, 1, 1, 1, 1, 1, 1, 1]], np.int32)
SMALL = dict(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)


def one(x: np.ndarray, mode: str) -> np.ndarray:
    """One segment's vector in float64."""
    n = len(x)
    return {
        "cls": lambda: x[0],
        "lasttoken": lambda: x[-1],
        "mean": lambda: x.mean(0),
        "max": lambda: x.max(0),
        "mean_sqrt_len": lambda: x.sum(0) / np.sqrt(n),
        "weightedmean": lambda: (x * np.arange(1, n + 1)[:, None]).sum(0) / np.arange(1, n + 1).sum(),
    }[mode]()


@pytest.mark.parametrize("mode", POOLING_MODES)
def test_pooling_is_per_segment_and_zero_where_there_is_none(mode):
    hidden = np.random.default_rng(0).normal(size=(2, 8, 5)) - 3  # negative: a zero would win a wrong maximum
    expected = np.zeros((2, 4, 5))
    for r in range(2):
        for s in range(4):
            if (SEGMENTS[r] == s + 1).any():
                expected[r, s] = one(hidden[r, SEGMENTS[r] == s + 1], mode)
    actual = jax.jit(lambda h: pool_segments(h, SEGMENTS, mode, 4))(hidden.astype(np.float32))
    np.testing.assert_allclose(actual, expected, atol=1e-6)
    gradient = jax.grad(lambda h: jnp.sum(pool_segments(h, SEGMENTS, mode, 4) ** 2))(jnp.asarray(hidden, jnp.float32))
    assert np.isfinite(gradient).all() and (np.asarray(gradient)[SEGMENTS == 0] == 0).all()


def test_unknown_pooling_is_named():
    with pytest.raises(ValueError, match="'median'"):
        pool_segments(jnp.ones((1, 2, 3)), jnp.ones((1, 2), jnp.int32), "median", 1)


def test_sequence_head_of_a_packed_row_equals_separate_rows_also_under_dropout():
    config = RobertaConfig(**SMALL, hidden_dropout_prob=0.3)
    head = build_head(config, "sequence", 3, rngs=nnx.Rngs(0))
    hidden = jax.random.normal(jax.random.key(0), (1, 8, 8))
    segments = jnp.asarray(SEGMENTS[:1])
    positions = jnp.array([[0, 1, 2, 0, 0, 1, 0, 0]])
    keys = dropout_keys(jnp.uint32(1), segments, positions)
    packed = head(None, hidden, segments, 3, dropout=keys)
    plain = head(None, hidden, segments, 3)
    assert packed.shape == (1, 3, 3) and not np.allclose(packed, plain)
    for number in (1, 2, 3):
        here = SEGMENTS[0] == number
        n = int(here.sum())
        alone = dropout_keys(jnp.uint32(1), jnp.full((1, n), number), jnp.arange(n)[None])
        rows = head(None, hidden[:, here], jnp.ones((1, n), jnp.int32), 1, dropout=alone)
        np.testing.assert_allclose(rows[0, 0], packed[0, number - 1], atol=1e-6)


def test_bert_head_goes_through_the_backbone_pooler():
    config = BertConfig(**SMALL)
    backbone = build_backbone(config, rngs=nnx.Rngs(0))
    head = build_head(config, "sequence", 2, rngs=nnx.Rngs(1))
    hidden = jax.random.normal(jax.random.key(0), (2, 8, 8))
    expected = backbone.pool(hidden[:, 0]) @ head.output.kernel[...] + head.output.bias[...]
    np.testing.assert_allclose(head(backbone, hidden, SEGMENTS, 3)[:, 0], expected, atol=1e-6)
    gradient = nnx.to_pure_dict(nnx.state(jax.grad(lambda b: jnp.sum(head(b, hidden, SEGMENTS, 3)))(backbone)))[
        "pooler"
    ]["kernel"]
    assert float(jnp.abs(gradient).max()) > 0


def test_masked_lm_head_shares_the_embedding_table():
    config = ModernBertConfig(**SMALL, pad_token_id=0)
    backbone = build_backbone(config, rngs=nnx.Rngs(0))
    head = build_head(config, "mlm", 20, rngs=nnx.Rngs(1))
    assert sorted(".".join(p) for p, _ in nnx.to_flat_state(nnx.state(head))) == [
        "bias",
        "dense.kernel",
        "norm.scale",
    ]
    hidden = jax.random.normal(jax.random.key(0), (2, 8, 8))
    everywhere = head(backbone, hidden)
    assert everywhere.shape == (2, 8, 20) and everywhere.dtype == jnp.float32
    table, bias = head.output(backbone)
    assert table is backbone.word_embedding_table
    np.testing.assert_allclose(everywhere, head.transform(hidden, None) @ table.T + bias, atol=1e-6)


def test_token_head_answers_at_every_position():
    head = build_head(BertConfig(**SMALL), "token", 5, dtype=jnp.bfloat16, rngs=nnx.Rngs(1))
    out = head(jnp.ones((2, 8, 8)))
    assert out.shape == (2, 8, 5) and out.dtype == jnp.float32


def test_unknown_head_is_named():
    with pytest.raises(ValueError, match="'nsp'.*sequence, token, span, mlm"):
        build_head(BertConfig(**SMALL), "nsp", 2, rngs=nnx.Rngs(0))
