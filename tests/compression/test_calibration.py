"""Statistics of the inputs of linear layers against the same inputs, computed outside of the network."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from transformers import BertConfig

from instructrec_jax.adapters.quantized import Format, linears, quantize_backbone
from instructrec_jax.backbones.reading import build_backbone
from instructrec_jax.compression import calibration
from instructrec_jax.compression.calibration import compared, gram, largest, observe
from instructrec_jax.compression.calibration_rows import full_rows
from instructrec_jax.data.batch import Text
from instructrec_jax.distributed.mesh import make_mesh
from instructrec_jax.distributed.mesh_config import MeshConfig
from instructrec_jax.runs.model import SplitModel
from instructrec_jax.tasks.base import Model

BERT = BertConfig(
    vocab_size=61, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, pad_token_id=0
)
TEXTS = [Text(np.random.default_rng(n).integers(3, 61, 4 + 3 * n).astype(np.int32)) for n in range(5)]
MESH = make_mesh(MeshConfig(data=1), jax.devices()[:1])


@pytest.fixture(scope="module")
def model() -> SplitModel:
    graphdef, state = nnx.split(Model(build_backbone(BERT, rngs=nnx.Rngs(0)), nnx.Linear(1, 1, rngs=nnx.Rngs(0))))
    return SplitModel(graphdef, nnx.to_pure_dict(state), {}, None, lambda path: False)  # type: ignore[arg-type]


def inputs_of_the_first_layer(network: Any, batch: Any) -> np.ndarray:
    """The embeddings, [tokens, hidden]: the inputs of the first query, key and value."""
    backbone = network.backbone
    x = backbone.word_embeddings(batch.texts.tokens) + backbone.position_embeddings(batch.texts.positions)
    x = backbone.embedding_norm(x + backbone.token_type_embeddings(batch.token_types))
    return np.asarray(x, np.float64).reshape(-1, 16)


def test_rows_are_full_and_their_texts_begin_at_position_0():
    batches = full_rows(TEXTS, 16, 2)
    tokens = np.concatenate([batch.texts.tokens for batch in batches])
    segments = np.concatenate([batch.texts.segment_ids for batch in batches])
    positions = np.concatenate([batch.texts.positions for batch in batches])
    assert tokens.shape == (4, 16) and (segments > 0).all()  # 50 tokens in four rows, two for each of two shards
    assert ((positions == 0).sum(1) == segments.max(1)).all()
    known = {tuple(text.tokens[:3]) for text in TEXTS}
    starts = np.argwhere(positions[:, :-2] == 0)
    assert {tuple(tokens[row, at : at + 3]) for row, at in starts} >= {tuple(TEXTS[0].tokens[:3])}
    whole = [(row, at) for row, at in starts if positions[row, at + 2] == 2]
    assert all(tuple(tokens[row, at : at + 3]) in known for row, at in whole)


def test_pairs_fill_their_rows():
    (batch,) = full_rows([Text(np.array([5, 6, 7], np.int32), target=np.array([8, 9], np.int32))], 8, 1)
    np.testing.assert_array_equal(batch.texts.tokens, [[5, 6, 7, 5, 6, 7, 5, 6]])
    np.testing.assert_array_equal(batch.targets.tokens, [[8, 9] * 4])
    assert (batch.targets.segment_ids == 1).all()


def test_statistics_of_a_stack_come_layer_by_layer(model, monkeypatch):
    monkeypatch.setattr(calibration, "GRAM_BYTES", 4 * 2 * 16 * 16 * 2)  # of two layers: so there are several passes
    batches = full_rows(TEXTS, 16, 1)
    network = model.network
    every = linears(network.backbone)
    place = next(i for i, linear in enumerate(every) if linear is network.backbone.layers.block0.attention.query)
    pooler = next(i for i, linear in enumerate(every) if linear is network.backbone.pooler)
    grams = observe(model, MESH, batches, dict.fromkeys(range(len(every)), gram))
    x = np.concatenate([inputs_of_the_first_layer(network, batch) for batch in batches])
    assert grams[place]["gram"].shape == (2, 16, 16)
    np.testing.assert_allclose(grams[place]["gram"][0], x.T @ x, rtol=1e-4, atol=1e-4)
    first = np.concatenate(
        [np.asarray(network.hidden(batch), np.float64)[batch.texts.positions == 0] for batch in batches]
    )
    np.testing.assert_allclose(grams[pooler]["gram"], first.T @ first, rtol=1e-4, atol=1e-4)
    found = observe(model, MESH, batches, {place: largest})
    np.testing.assert_allclose(found[place]["largest"][0], np.abs(x).max(0), rtol=1e-5)


def test_two_kernels_are_compared_on_the_same_inputs(model):
    (batch,) = full_rows(TEXTS[:2], 11, 1)
    network, other = model.network, model.network
    quantize_backbone(other.backbone, Format("int4", 32, "int8"))
    query, codes = (each.backbone.layers.block0.attention.query.kernel for each in (network, other))
    place = next(i for i, linear in enumerate(linears(network.backbone)) if linear.kernel is query)
    found = observe(model, MESH, [batch], {place: lambda linear: compared(linear, codes)})[place]
    x = inputs_of_the_first_layer(network, batch)
    y = x @ np.asarray(query[...][0], np.float64)
    scale = np.abs(x).max(1, keepdims=True) / 127
    z = (np.round(x / scale) * scale) @ np.asarray(codes.dequantize()[0], np.float64)
    np.testing.assert_allclose(found["power"][0], np.square(y).sum(), rtol=1e-4)
    np.testing.assert_allclose(found["error"][0], np.square(z - y).sum(), rtol=1e-2)
    assert jnp.all(found["error"] > 0)
