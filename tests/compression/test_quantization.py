"""Codes of whole networks: every family, SmoothQuant's divisors, and the layers that are kept."""

import re
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
import transformers
from flax import nnx
from tiny_networks import IDS, SIZES, VOCAB

from instructrec_jax.adapters.quantized import Format, Quantized, decode, encode, linears
from instructrec_jax.backbones.reading import build_backbone
from instructrec_jax.compression import quantization
from instructrec_jax.compression.calibration_rows import full_rows
from instructrec_jax.compression.quantization import Quantization, quantized, smoothing
from instructrec_jax.data.batch import Text
from instructrec_jax.distributed.mesh import make_mesh
from instructrec_jax.distributed.mesh_config import MeshConfig
from instructrec_jax.runs.model import SplitModel
from instructrec_jax.tasks.base import Model

MESH = make_mesh(MeshConfig(data=1), jax.devices()[:1])
CONFIGS = {
    "llama": transformers.LlamaConfig,
    "gemma2": transformers.Gemma2Config,
    "gpt2": transformers.GPT2Config,
    "t5": transformers.T5Config,
    "bart": transformers.BartConfig,
}


def split(kind: str) -> tuple[SplitModel, Any]:
    """A random network, and calibration rows for it."""
    config = CONFIGS[kind](**IDS, **SIZES[kind])
    rng = np.random.default_rng(0)
    pairs = kind in ("t5", "bart")
    texts = [Text(rng.integers(3, VOCAB, 12).astype(np.int32)) for _ in range(4)]
    texts = [Text(text.tokens, target=text.tokens[::-1].copy() if pairs else None) for text in texts]
    graphdef, state = nnx.split(Model(build_backbone(config, rngs=nnx.Rngs(0)), nnx.Linear(1, 1, rngs=nnx.Rngs(0))))
    source: Any = SimpleNamespace(config=config)
    return SplitModel(graphdef, nnx.to_pure_dict(state), {}, source, lambda path: False), full_rows(texts, 16, 1)


@pytest.mark.parametrize("kind", CONFIGS)
def test_codes_of_every_family_give_nearly_the_same_hidden_states(kind):
    model, batches = split(kind)
    network, kept, report = quantized(model, MESH, batches, Quantization(activations="int8"))
    assert kept == [] and all(isinstance(linear.kernel, Quantized) for linear in linears(network.backbone))
    assert len({layer["layer"] for layer in report}) == len(report)
    assert all(0 < layer["error"] < 0.03 for layer in report), report
    hidden, expected = network.hidden(batches[0]), model.network.hidden(batches[0])
    scale = np.abs(expected).max()
    np.testing.assert_allclose(hidden, expected, atol=0.06 * scale)


def test_smoothing_is_equation_4():
    kernel = np.array([[[1.0, -4.0]], [[0.0, 0.0]], [[2.0, 0.5]]], np.float32)
    np.testing.assert_allclose(smoothing(kernel, np.array([16.0, 3.0, 0.0]), 0.5), [16**0.5 / 4**0.5, 1, 1])
    np.testing.assert_allclose(smoothing(kernel, np.array([16.0, 3.0, 0.0]), 0.75), [16**0.75 / 4**0.25, 1, 1])


def outliers(model: SplitModel) -> SplitModel:
    """The network with a few inputs that are a hundred times larger than the others, by its norms' scales."""
    network = model.network
    for norm in (network.backbone.layers.block0.attention_norm, network.backbone.layers.block0.mlp_norm):
        norm.scale[...] = norm.scale[...].at[:, :2].set(100.0)
    graphdef, state = nnx.split(network)
    return SplitModel(graphdef, nnx.to_pure_dict(state), {}, model.source, model.is_frozen)


def test_smoothquant_makes_up_for_outliers_of_the_inputs():
    model, batches = split("llama")
    model = outliers(model)
    errors = []
    for method in ("rtn", "smoothquant"):
        network, _, report = quantized(model, MESH, batches, Quantization(activations="int8", method=method))
        errors.append(np.mean([e["error"] for e in report if "q_proj" in e["layer"] or "up_proj" in e["layer"]]))
    assert errors[1] < 0.7 * errors[0]
    kernel = network.backbone.layers.block0.mlp_in.kernel
    original = model.network.backbone.layers.block0.mlp_in.kernel[...]
    half = kernel.scales[...] / 2 / kernel.smooth[...][..., None]  # of a code, of the kernel without its divisors
    assert (np.abs(kernel.dequantize() - original) <= 1.001 * half).all()


def test_smoothquant_takes_the_best_strength_of_each_layer(monkeypatch):
    model, batches = split("llama")
    model = outliers(model)

    def errors(*strengths: float) -> np.ndarray:
        monkeypatch.setattr(quantization, "ALPHAS", strengths)
        how = Quantization(activations="int8", method="smoothquant")
        return np.array([layer["error"] for layer in quantized(model, MESH, batches, how)[2]])

    alone = np.array([errors(0.4), errors(0.6)])
    assert len(set(alone.argmin(0))) == 2  # layers differ in what suits them
    np.testing.assert_allclose(errors(0.4, 0.6), alone.min(0), rtol=1e-6)


@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_codes_are_put_layer_by_layer(method):
    model, batches = split("gpt2")
    network, *_ = quantized(model, MESH, batches, Quantization("int4", group=32, method=method))
    number = next(i for i, linear in enumerate(linears(network.backbone)) if linear.kernel.codes.ndim > 2)
    codes = linears(network.backbone)[number].kernel
    kernel = np.asarray(linears(model.network.backbone)[number].kernel[...])
    assert codes.dequantize().shape == kernel.shape
    for layer in range(2):
        plain = np.asarray(decode(Format("int4", 32), *encode(Format("int4", 32), kernel[layer]), kernel.shape[1]))
        same = np.allclose(codes.dequantize()[layer], plain, atol=1e-6)
        assert same == (method == "rtn")


def test_layers_with_large_errors_are_kept_by_their_names():
    model, batches = split("llama")
    _, _, report = quantized(model, MESH, batches, Quantization("int4", group=32))
    worst = max(report, key=lambda layer: layer["error"])
    how = Quantization("int4", group=32, keep_above=worst["error"] * 0.999)
    network, kept, again = quantized(model, MESH, batches, how)
    assert len(kept) == 1 and re.fullmatch(kept[0], f"model.{worst['layer']}")
    dense = [linear for linear in linears(network.backbone) if not isinstance(linear.kernel, Quantized)]
    assert len(dense) == 1 and sum(layer["kept"] for layer in again) == 2  # of both layers of the stack
    named = quantization.find_places(model.network.backbone, model.source.config, kept)
    assert len(named) == 1


def test_a_kept_layer_is_not_looked_at():
    model, batches = split("llama")
    network, kept, report = quantized(model, MESH, batches, Quantization(keep=("q_proj", "mlp.down_proj")))
    assert kept == ["q_proj", "mlp.down_proj"] and not any("q_proj" in layer["layer"] for layer in report)
    assert sum(not isinstance(linear.kernel, Quantized) for linear in linears(network.backbone)) == 2


def test_methods_that_need_texts_say_so():
    model, _ = split("llama")
    for how in (Quantization(method="gptq"), Quantization(keep_above=0.1)):
        with pytest.raises(ValueError, match="needs calibration texts"):
            quantized(model, MESH, [], how)
    with pytest.raises(ValueError, match="unknown method 'awq'"):
        Quantization(method="awq")  # type: ignore[arg-type]
