"""Rotary embeddings against transformers: scaling rules, older config files, the rotation itself."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from flax import nnx
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from instructrec_jax.backbones.folder import read_config
from instructrec_jax.backbones.reading import build_backbone
from instructrec_jax.backbones.rope import read_rope, rotate, rotation
from instructrec_jax.backbones.tensor_names import abstract_module

BASE = dict(vocab_size=61, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48)


DECODER = BASE | dict(num_key_value_heads=2, max_position_embeddings=48)


GEMMA = DECODER | dict(head_dim=6, query_pre_attn_scalar=20, sliding_window=4)


CONFIGS = {
    "llama": transformers.LlamaConfig(**DECODER | dict(num_key_value_heads=1)),
    "gemma3_text": transformers.Gemma3TextConfig(**GEMMA, sliding_window_pattern=2),
}


def shapes(config, **options):
    return abstract_module(lambda key: build_backbone(config, rngs=nnx.Rngs(params=key), **options))


LLAMA3 = dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64)


YARN = dict(factor=4.0, original_max_position_embeddings=64)


ROPES = [
    dict(rope_type="linear", factor=2.5),
    dict(rope_type="dynamic", factor=3.0),
    dict(rope_type="llama3", **LLAMA3),
    dict(rope_type="llama3", rope_theta=500000.0, **LLAMA3 | dict(original_max_position_embeddings=8192)),
    dict(rope_type="yarn", **YARN),
    dict(rope_type="yarn", **YARN, truncate=False, beta_fast=16.0, beta_slow=2.0),
    dict(rope_type="yarn", **YARN, attention_factor=1.25),
    dict(rope_type="yarn", **YARN, mscale=0.7, mscale_all_dim=1.3),
    dict(rope_type="yarn", **YARN | dict(factor=1.0)),
    dict(rope_type="yarn", factor=32.0, rope_theta=1e6),  # the original length is then max_position_embeddings
]


@pytest.mark.parametrize("parameters", ROPES, ids=lambda p: p["rope_type"])
@pytest.mark.parametrize("head_dim", [8, 128])
def test_rope_against_transformers(parameters, head_dim):
    def config():
        rope = {"rope_theta": 10000.0} | parameters
        return transformers.LlamaConfig(
            **DECODER | dict(max_position_embeddings=256), head_dim=head_dim, rope_parameters=rope
        )

    frequencies, scale = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config())
    rope = read_rope(config())
    np.testing.assert_allclose(rope.frequencies, frequencies.numpy(), rtol=1e-6)
    assert rope.scale == pytest.approx(scale, rel=1e-12)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (dict(rope_theta=77.0), dict(rope_type="default", rope_theta=77.0)),
        (
            dict(rope_theta=77.0, rope_scaling={"type": "linear", "factor": 2.0}),
            dict(rope_type="linear", factor=2.0, rope_theta=77.0),
        ),
        (
            dict(rope_scaling={"rope_type": "yarn", "factor": 2.0}, original_max_position_embeddings=16),
            dict(rope_type="yarn", factor=2.0, rope_theta=10000.0, original_max_position_embeddings=16),
        ),
        (dict(rope_scaling=None), dict(rope_type="default", rope_theta=10000.0)),
    ],
)
def test_rope_of_older_config_files(tmp_path, old, new):
    """Files from before transformers 5 say rope_theta and rope_scaling."""
    content = CONFIGS["llama"].to_dict()
    del content["rope_parameters"]
    (tmp_path / "config.json").write_text(json.dumps(content | old))
    expected = transformers.LlamaConfig(**DECODER | dict(num_key_value_heads=1), rope_parameters=new)
    assert read_rope(read_config(tmp_path)) == read_rope(expected)


def test_rope_of_older_gemma3_files(tmp_path):
    content = CONFIGS["gemma3_text"].to_dict()
    del content["rope_parameters"], content["layer_types"]
    content |= dict(rope_theta=900.0, rope_local_base_freq=30.0, sliding_window_pattern=2)
    content |= dict(rope_scaling={"rope_type": "linear", "factor": 8.0})
    (tmp_path / "config.json").write_text(json.dumps(content))
    spec = shapes(read_config(tmp_path)).spec
    assert spec.layer_types == ("sliding_attention", "full_attention", "sliding_attention")
    exponents = np.arange(0, 6, 2) / 6
    np.testing.assert_allclose(dict(spec.ropes)["sliding_attention"].frequencies, 30.0**-exponents, rtol=1e-6)
    np.testing.assert_allclose(dict(spec.ropes)["full_attention"].frequencies, 900.0**-exponents / 8, rtol=1e-6)


def test_rotation_keeps_lengths_and_depends_on_distance():
    rope = read_rope(CONFIGS["llama"])
    rng = np.random.default_rng(0)
    q, k = rng.normal(size=(2, 1, 1, 1, 8)).astype(np.float32)

    def score(i: int, j: int) -> float:
        a, b = (rotate(x, rotation(jnp.array([[at]]), rope)) for x, at in ((q, i), (k, j)))
        np.testing.assert_allclose(jnp.linalg.norm(a), np.linalg.norm(q), rtol=1e-6)
        return float(jnp.sum(a * b))

    assert score(3, 1) == pytest.approx(score(30, 28), abs=1e-4)
    assert abs(score(3, 1) - score(3, 2)) > 1e-2
