"""The layers of the sequence head against PyTorch's, on the same weights, and against NumPy in float64."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from instructrec_jax.adapters.adapter_config import Kind
from instructrec_jax.adapters.next_item_layers import LayerSpec, new_layer
from instructrec_jax.backbones.decoder import Context

WIDTH, HEADS, LENGTH = 8, 2, 6


def made(kind: Kind, **settings: Any) -> Any:
    spec = LayerSpec(WIDTH, HEADS, num_layers=2, max_length=LENGTH + 1, dropout=0.0, **settings)
    graphdef, params = nnx.split(new_layer(kind, spec, jnp.float32, nnx.Rngs(3)))
    noise = np.random.default_rng(0)  # biases and norms away from what they begin as
    return nnx.merge(graphdef, jax.tree.map(lambda x: x + 0.2 * noise.normal(size=x.shape).astype(np.float32), params))


def inputs(rows: int = 2, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, LENGTH, WIDTH)).astype(np.float32)


def context(segments: np.ndarray, positions: np.ndarray) -> Context:
    segments, positions = jnp.asarray(segments, jnp.int32), jnp.asarray(positions, jnp.int32)
    return Context(segments, positions, segments, positions, 0, {})


def alone(rows: int = 2) -> Context:
    return context(np.ones((rows, LENGTH)), np.tile(np.arange(LENGTH), (rows, 1)))


def weights(layer: Any) -> dict[str, np.ndarray]:
    return {"/".join(map(str, path)): np.asarray(x[...]) for path, x in nnx.to_flat_state(nnx.state(layer))}


def stacked(x: np.ndarray) -> torch.Tensor:
    """[in, parts, out] or [parts, out] -> PyTorch's [parts * out, in] or [parts * out]."""
    return torch.from_numpy(np.moveaxis(x, 0, -1).reshape(-1, len(x)).copy() if x.ndim == 3 else x.reshape(-1).copy())


def torch_transformer(layer: Any) -> torch.nn.TransformerEncoderLayer:
    spec, w = layer.spec, weights(layer)
    oracle = torch.nn.TransformerEncoderLayer(
        WIDTH,
        HEADS,
        spec.mlp_factor * WIDTH,
        dropout=0.0,
        activation=spec.activation,
        layer_norm_eps=1e-6,
        batch_first=True,
        norm_first=spec.norm == "pre",
    )
    state = {"self_attn.in_proj_weight": stacked(w["qkv/kernel"]), "self_attn.in_proj_bias": stacked(w["qkv/bias"])}
    linears = {"self_attn.out_proj": "attention_output", "linear1": "mlp_in", "linear2": "mlp_out"}
    for theirs, ours in linears.items():
        state[f"{theirs}.weight"] = torch.from_numpy(w[f"{ours}/kernel"].T.copy())
        state[f"{theirs}.bias"] = torch.from_numpy(w[f"{ours}/bias"].copy())
    for theirs, ours in {"norm1": "attention_norm", "norm2": "mlp_norm"}.items():
        state[f"{theirs}.weight"] = torch.from_numpy(w[f"{ours}/scale"].copy())
        state[f"{theirs}.bias"] = torch.from_numpy(w[f"{ours}/bias"].copy())
    oracle.load_state_dict(state)
    return oracle.train()  # the fast path of eval() takes no bias of scores


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize(
    ("settings", "causal"),
    [
        ({"norm": "pre", "activation": "relu", "mlp_factor": 1}, True),  # SASRec
        ({"norm": "post", "activation": "relu", "mlp_factor": 1}, True),
        ({"norm": "post", "activation": "gelu"}, False),  # BERT4Rec
    ],
)
def test_a_transformer_layer_is_pytorchs(settings: dict[str, Any], causal: bool, relative: bool) -> None:
    layer, x = made("transformer", causal=causal, relative_positions=relative, **settings), inputs()
    scores = np.zeros((HEADS, LENGTH, LENGTH), np.float32)
    if relative:
        table = weights(layer)["relative/table"]
        for query in range(LENGTH):
            for key in range(query + 1 if causal else LENGTH):
                scores[:, query, key] = table[query - key + (0 if causal else LENGTH)]
    if causal:
        scores[:, np.triu(np.ones((LENGTH, LENGTH), bool), 1)] = -np.inf
    with torch.no_grad():
        expected = torch_transformer(layer)(torch.from_numpy(x), src_mask=torch.from_numpy(np.tile(scores, (2, 1, 1))))
    np.testing.assert_allclose(layer(x, alone(), None), expected.numpy(), atol=1e-5)


def test_a_gru_layer_is_pytorchs() -> None:
    layer, x = made("gru"), inputs()
    oracle, w = torch.nn.GRU(WIDTH, WIDTH, batch_first=True), weights(layer)
    oracle.load_state_dict(
        {
            f"{kind}_{part}_l0": stacked(w[f"{ours}/{name}"])
            for kind, name in (("weight", "kernel"), ("bias", "bias"))
            for part, ours in (("ih", "inputs"), ("hh", "states"))
        }
    )
    with torch.no_grad():
        expected, _ = oracle(torch.from_numpy(x))
    np.testing.assert_allclose(layer(x, alone(), None), expected.numpy(), atol=1e-5)


def normalized(x: np.ndarray, scale: np.ndarray, bias: np.ndarray) -> np.ndarray:
    centered = x - x.mean(-1, keepdims=True)
    return centered / np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-6) * scale + bias


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def test_a_gated_feed_forward_layer_equals_numpy() -> None:
    layer, x = made("transformer", activation="swiglu", mlp_factor=3), inputs(1)
    w = {name: value.astype(np.float64) for name, value in weights(layer).items()}
    y = np.einsum("lh,hpm->plm", x[0].astype(np.float64), w["mlp_in/kernel"]) + w["mlp_in/bias"][:, None]
    expected = (silu(y[0]) * y[1]) @ w["mlp_out/kernel"] + w["mlp_out/bias"]
    np.testing.assert_allclose(layer._transformed(jnp.asarray(x))[0], expected, atol=1e-5)


@pytest.mark.parametrize("causal", [True, False])
def test_an_hstu_layer_equals_numpy(causal: bool) -> None:
    layer, x = made("hstu", relative_positions=True, causal=causal), inputs(1)
    w = {name: value.astype(np.float64) for name, value in weights(layer).items()}
    y = normalized(x[0].astype(np.float64), w["norm/scale"], w["norm/bias"])
    u, v, q, k = silu(np.einsum("lh,hpm->plm", y, w["uvqk/kernel"]) + w["uvqk/bias"][:, None])
    mixed = np.zeros_like(u)
    for head in range(HEADS):
        part = slice(head * WIDTH // HEADS, (head + 1) * WIDTH // HEADS)
        for query in range(LENGTH):
            for key in range(query + 1 if causal else LENGTH):
                bias = w["relative/table"][query - key + (0 if causal else LENGTH), head]
                weight = silu(q[query, part] @ k[key, part] + bias) / (LENGTH + 1)
                mixed[query, part] += weight * v[key, part]
    gated = normalized(mixed, w["attention_norm/scale"], w["attention_norm/bias"]) * u
    expected = x[0] + gated @ w["output/kernel"] + w["output/bias"]
    np.testing.assert_allclose(layer(x, alone(1), None)[0], expected, atol=1e-5)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("transformer", {"relative_positions": True, "norm": "post", "activation": "swiglu"}),
        ("hstu", {"relative_positions": True}),
        ("gru", {}),
    ],
)
def test_a_packed_sequence_is_what_it_is_alone(kind: Kind, settings: dict[str, Any], causal: bool) -> None:
    layer, x = made(kind, causal=causal, **settings), inputs(1)
    packed = context(np.array([[1, 1, 2, 2, 2, 0]]), np.array([[0, 1, 0, 1, 2, 0]]))
    found = np.asarray(layer(x, packed, None))
    assert np.isfinite(found).all()  # padding, too
    for start, end in ((0, 2), (2, 5)):
        count = end - start
        by_itself = layer(x[:, start:end], context(np.ones((1, count)), np.arange(count)[None]), None)
        np.testing.assert_allclose(found[:, start:end], by_itself, atol=1e-6)
