"""BART: its bias of the logits, its table of positions, and configs that are refused."""

import json

import numpy as np
import pytest
import transformers
from flax import nnx
from seq2seq_networks import (
    LM,
    edited,
    load,
    load_both,
    texts,
)

from instructrec_jax.backbones.reading import build_backbone
from instructrec_jax.backbones.tensor_names import TensorFiles, read_slice


@pytest.fixture(scope="module")
def bart(make_checkpoint):
    return make_checkpoint("bart", LM)


def test_weights_that_do_not_belong_to_the_config(bart, tmp_path):
    with pytest.raises(ValueError, match=r"model\.encoder\.layers\.1\."):
        load(edited(bart, tmp_path / "shallower", encoder_layers=1))
    with pytest.raises(ValueError, match=r"embed_positions\.weight.*\[42, 32\]"):
        load(edited(bart, tmp_path / "long", max_position_embeddings=50))


def test_slices_of_final_logits_bias(bart):
    """The file has a row [1, vocab]; each device reads its own part."""
    with TensorFiles(bart) as files:
        part = read_slice(files, "final_logits_bias", "row", (61,), (slice(7, 19),))
        np.testing.assert_array_equal(part, files.read("final_logits_bias")[0, 7:19])


def test_bart_without_final_logits_bias(bart, tmp_path):
    folder = edited(bart, tmp_path, lambda tensors: {n: t for n, t in tensors.items() if n != "final_logits_bias"})
    _, head, report = load_both(folder)
    assert report.initialized == ("bias",) and not np.asarray(head.bias[...]).any()


def test_too_long_for_bart(bart):
    network = load(bart).module
    assert network.max_length == 40
    with pytest.raises(ValueError, match="41 .*40"):
        network.encode(*texts((41,), 41))
    encoded = network.encode(*texts((5,), 5))
    with pytest.raises(ValueError, match="41 .*40"):
        network.decode(*texts((41,), 41), encoded, texts((5,), 5)[1])
    one, late = np.array([[1]], np.int32), np.array([[40]], np.int32)
    assert np.isnan(nnx.jit(lambda network, late: network.encode(one, one, late))(network, late)).all()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("encoder_layerdrop", 0.1),
        ("decoder_layerdrop", 0.1),
        ("tie_word_embeddings", False),
        ("normalize_before", True),
        ("static_position_embeddings", True),
        ("activation_function", "selu"),
        ("decoder_attention_heads", 3),
        ("is_decoder", True),
    ],
)
def test_refused(bart, field, value):
    settings = json.loads((bart / "config.json").read_text())
    for derived in ("dense_act_fn", "is_gated_act"):
        settings.pop(derived, None)
    config = transformers.AutoConfig.for_model(**(settings | {field: value}))
    with pytest.raises(ValueError, match=f"{field}|selu"):
        build_backbone(config, rngs=nnx.Rngs(0))
