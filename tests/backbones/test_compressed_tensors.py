"""transformers computes with the quantized folders, through the package compressed-tensors."""

from pathlib import Path

import numpy as np
import pytest
import torch
from llama_cpp_folders import folder_of
from safetensors.numpy import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM

from instructrec_jax.backbones.compressed_tensors import (
    SCHEMES,
    Quantized,
    compress_folder,
    packed,
    rounded,
    write_compressed_tensors,
)
from instructrec_jax.backbones.folder import read_config
from instructrec_jax.files import read_json


def test_rounding_is_to_the_nearest_value() -> None:
    weight = np.random.default_rng(0).normal(size=(6, 256)).astype(np.float32)
    for bits, group in ((8, None), (4, 128), (4, 32)):
        found = rounded(weight, bits, group)
        assert found.codes.dtype == np.int8 and np.abs(found.codes).max() == 2 ** (bits - 1) - 1
        assert found.scales.shape == (6, 256 // (group or 256))
        step = np.repeat(found.scales, group or 256, axis=1)
        assert (np.abs(found.dequantized() - weight) <= step / 2 * 1.0001).all()
    assert (rounded(np.zeros((2, 32), np.float32), 4, 32).dequantized() == 0).all()


def test_packing_is_that_of_the_package() -> None:
    library = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    codes = np.random.default_rng(0).integers(-8, 8, (5, 64)).astype(np.int8)
    np.testing.assert_array_equal(packed(codes), library.pack_to_int32(torch.from_numpy(codes), 4).numpy())


@pytest.mark.parametrize("kind", ["llama", "bert"])
@pytest.mark.parametrize("scheme", sorted(SCHEMES))
def test_transformers_computes_with_it(tmp_path: Path, kind: str, scheme: str) -> None:
    pytest.importorskip("compressed_tensors")
    cls = AutoModel if kind == "bert" else AutoModelForCausalLM
    dense = folder_of(kind, tmp_path / "hf", intermediate_size=128)
    before = load_file(tmp_path / "hf" / "model.safetensors")
    if kind == "bert":  # as old checkpoints
        old = before | {"embeddings.position_ids": np.arange(64)[None]}
        save_file(old, tmp_path / "hf" / "model.safetensors", metadata={"format": "pt"})
    compress_folder(tmp_path / "hf", tmp_path / "small", scheme)
    stored = load_file(tmp_path / "small" / "model.safetensors")
    bits = SCHEMES[scheme].bits
    name = "encoder.layer.1.output.dense" if kind == "bert" else "model.layers.1.mlp.down_proj"
    assert stored[f"{name}.weight" if bits == 8 else f"{name}.weight_packed"].dtype == (
        np.int8 if bits == 8 else np.int32
    )
    with torch.no_grad():
        for weight_name, weight in dense.named_parameters():
            if f"{weight_name}_scale" in stored:
                weight.copy_(
                    torch.from_numpy(rounded(before[weight_name], bits, None if bits == 8 else 64).dequantized())
                )
        ids = torch.arange(5, 25)[None]
        want = dense(ids)[0].numpy()
        found = cls.from_pretrained(tmp_path / "small")(ids)[0].numpy()
    # with W8A8 activations are rounded, too: half a step of 1/127 of the largest one in each layer
    apart = np.abs(found - want).max() / np.abs(want).max()
    assert apart < (0.1 if SCHEMES[scheme].activations else 1e-4)
    assert (tmp_path / "small" / "tokenizer.json").is_file()


def test_layers_whose_names_have_more_numbers_are_found(language_models: dict[str, Path], tmp_path: Path) -> None:
    """T5's: decoder.block.1.layer.2.DenseReluDense.wo."""
    compress_folder(language_models["t5"], tmp_path, "W8A8")
    stored = load_file(tmp_path / "model.safetensors")
    assert sum(name.endswith("weight_scale") for name in stored) == 2 * (4 + 2) + 2 * (8 + 2)
    assert stored["decoder.block.1.layer.2.DenseReluDense.wo.weight"].dtype == np.int8


def test_given_codes_are_written(tmp_path: Path) -> None:
    """As those of a method that calibrates."""
    folder_of("llama", tmp_path / "hf")
    tensors: dict[str, np.ndarray | Quantized] = dict(load_file(tmp_path / "hf" / "model.safetensors"))
    name = "model.layers.0.mlp.up_proj.weight"
    codes = np.random.default_rng(0).integers(-8, 8, tensors[name].shape).astype(np.int8)
    tensors[name] = Quantized(codes, np.ones((len(codes), 2), np.float32))
    out = tmp_path / "out"
    out.mkdir()
    write_compressed_tensors(out, read_config(tmp_path / "hf"), tensors, SCHEMES["W4A16"], ignored=["lm_head"])
    stored = load_file(out / "model.safetensors")
    np.testing.assert_array_equal(stored["model.layers.0.mlp.up_proj.weight_packed"], packed(codes))
    assert stored["model.layers.0.mlp.up_proj.weight_shape"].tolist() == list(codes.shape)
    declared = read_json(out / "config.json", dict)["quantization_config"]
    assert declared["config_groups"]["group_0"]["weights"]["group_size"] == codes.shape[1] // 2
    assert declared["ignore"] == ["lm_head"]
    del tensors[name]
    with pytest.raises(ValueError, match="no linear layer"):
        write_compressed_tensors(out, read_config(tmp_path / "hf"), tensors, SCHEMES["W4A16"], ignored=[])


def test_what_cannot_be_rounded_is_named(tmp_path: Path) -> None:
    folder_of("llama", tmp_path / "hf", intermediate_size=100)
    with pytest.raises(ValueError, match="--dtype W4A16: the rows of .*down_proj.weight have 100"):
        compress_folder(tmp_path / "hf", tmp_path / "a", "W4A16")
    with pytest.raises(ValueError, match="--dtype is 'Q8_0'"):
        compress_folder(tmp_path / "hf", tmp_path / "b", "Q8_0")
