"""What can be pruned of which network, and the parameters that are left."""

from typing import Any

import numpy as np
import pytest
from conftest import tiny_config
from transformers import (
    CLIPConfig,
    Dinov2Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    LlavaConfig,
    ModernBertConfig,
    SiglipVisionConfig,
    T5Config,
    ViTConfig,
    WhisperConfig,
)

from instructrec_jax.compression.pruning import Pruning, keep_heads, keep_layers, keep_width, pruned_config

LLAMA = LlamaConfig(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2)


@pytest.mark.parametrize(
    ("config", "settings", "message"),
    [
        (LLAMA, {"layers": 0}, "--layers is 0, but should be from 1 to 2: the network has 3"),
        (LLAMA, {"layers": 3}, "--layers is 3"),
        (LLAMA, {"width": -1}, "--width is -1"),
        (LLAMA, {"heads": 1}, "--heads is 1, but 2 heads share a key"),
        (LLAMA, {"heads": 8}, "--heads is 8"),
        (tiny_config(99), {"heads": 2}, "--heads: in bert, transformers takes the size of a head"),
        (GPT2Config(), {"heads": 2}, "--heads: in gpt2"),
        (T5Config(), {"layers": 1}, "an encoder–decoder .t5."),
        (ModernBertConfig(), {"layers": 2}, "the first layer of modernbert"),
        (ModernBertConfig(), {"width": 2}, "--width is not implemented for modernbert"),
        (Dinov2Config(), {"width": 2}, "--width is not implemented for dinov2: transformers takes the width"),
        (SiglipVisionConfig(), {"width": 2}, "--width is not implemented for siglip_vision_model: its pooling"),
        (ViTConfig(), {"heads": 2}, "--heads: in vit, transformers takes the size of a head"),
        (ViTConfig(), {"layers": 12}, "--layers is 12, but should be from 1 to 11"),
        (ViTConfig(), {"vocabulary": True}, "--vocabulary is not implemented for vit: it reads no words"),
        (LlavaConfig(text_config=LLAMA), {"layers": 3}, "--layers is 3, but should be from 1 to 2"),
        (CLIPConfig(), {"width": 2}, "prune the layers of one network, but clip is two side by side"),
        (CLIPConfig(), {"vocabulary": True}, "for clip: it cuts the tokens of one network"),
        (WhisperConfig(), {"layers": 2}, "an encoder–decoder .whisper."),
        (WhisperConfig(), {"vocabulary": True}, "for whisper: generation_config.json names the tokens"),
    ],
)
def test_what_cannot_be_pruned_is_named(config: Any, settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Pruning(**settings).check(config)  # type: ignore[arg-type]


def test_settings_that_do_not_go_together_are_named() -> None:
    with pytest.raises(ValueError, match="--criterion loss is for --layers alone"):
        Pruning(width=3, criterion="loss")
    with pytest.raises(ValueError, match="unknown criterion 'best'"):
        Pruning(layers=1, criterion="best")  # type: ignore[arg-type]


def test_the_parameters_that_are_left() -> None:
    """Three layers, four heads of two features, two of which share a key."""
    rng = np.random.default_rng(0)
    shapes = {"query": 8, "key": 4, "value": 4}
    values: Any = {
        (f"layers.{{layer}}.attention.{n}.kernel", i): rng.random((6, w)) for n, w in shapes.items() for i in range(3)
    }
    for i in range(3):
        values["layers.{layer}.attention.output.kernel", i] = rng.random((8, 6))
        values["layers.{layer}.attention.output.bias", i] = rng.random(6)
        values["layers.{layer}.mlp_in.kernel", i], values["layers.{layer}.mlp_in.bias", i] = (
            rng.random((6, 5)),
            rng.random(5),
        )
        values["layers.{layer}.mlp_out.kernel", i], values["layers.{layer}.mlp_out.bias", i] = (
            rng.random((5, 6)),
            rng.random(6),
        )
    values["final_norm.scale", None] = rng.random(6)
    heads, features = [np.array([1]), np.array([0]), np.array([1])], [np.array([0, 3])] * 3
    left = keep_layers(keep_width(keep_heads(values, heads, 2, 2), features), (0, 2))
    assert {layer for _, layer in left} == {None, 0, 1}
    for new, old in enumerate((0, 2)):
        for name, columns in (("query", slice(4, 8)), ("key", slice(2, 4)), ("value", slice(2, 4))):
            path = f"layers.{{layer}}.attention.{name}.kernel"
            np.testing.assert_array_equal(left[path, new], values[path, old][:, columns])
        path = "layers.{layer}.attention.output.kernel"
        np.testing.assert_array_equal(left[path, new], values[path, old][4:8])
        for name, axis in (("mlp_in.kernel", 1), ("mlp_in.bias", 0), ("mlp_out.kernel", 0)):
            path = f"layers.{{layer}}.{name}"
            np.testing.assert_array_equal(left[path, new], np.take(values[path, old], [0, 3], axis))
        for path in ("layers.{layer}.attention.output.bias", "layers.{layer}.mlp_out.bias"):
            np.testing.assert_array_equal(left[path, new], values[path, old])


def test_the_config_of_a_network_with_kinds_of_layers() -> None:
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    config = Gemma3TextConfig(num_hidden_layers=3, layer_types=kinds, num_attention_heads=4, num_key_value_heads=2)
    found = pruned_config(config, Pruning(layers=2, heads=2, width=7), (1, 2), None)
    assert (found.num_hidden_layers, found.layer_types) == (2, kinds[1:])
    assert (found.num_attention_heads, found.num_key_value_heads, found.intermediate_size) == (2, 1, 7)
    assert found.head_dim == config.head_dim and config.num_hidden_layers == 3
