"""Files of llama.cpp open as folders, once; what cannot be read is named."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_cpp_folders import folder_of

from instructrec_jax.backbones.folder import find_folder, read_config
from instructrec_jax.backbones.llama_cpp import reading
from instructrec_jax.backbones.llama_cpp.reading import write_folder
from instructrec_jax.backbones.llama_cpp.writing import write_gguf
from instructrec_jax.backbones.tensor_names import TensorFiles
from instructrec_jax.files import read_json

gguf = pytest.importorskip("gguf")
BYTES = [chr(n) for n in range(33, 127)]


def small(file: Path, change: Callable[[dict[str, Any], dict[str, Any]], object] = lambda keys, tensors: None) -> Path:
    """A GGUF file of a llama with one layer, after `change(metadata, tensors)`; a tensor is (array, quantization)."""
    rng = np.random.default_rng(0)
    tokens = ["<s>", "</s>", *BYTES]
    keys: dict[str, Any] = {
        "general.architecture": "llama",
        "llama.context_length": 32,
        "llama.embedding_length": 256,
        "llama.block_count": 1,
        "llama.feed_forward_length": 256,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3, 3, *([1] * len(BYTES))],
        "tokenizer.ggml.merges": ["a b", "ab c"],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.chat_template": "{{ messages[0]['content'] }}",
    }
    keys["tokenizer.ggml.tokens"] = tokens + ["ab", "abc"]
    keys["tokenizer.ggml.token_type"] += [1, 1]
    shapes = {"token_embd": (len(tokens) + 2, 256), "blk.0.attn_k": (128, 256), "blk.0.attn_v": (128, 256)}
    shapes |= {f"blk.0.{name}": (256, 256) for name in ("attn_q", "attn_output", "ffn_gate", "ffn_up", "ffn_down")}
    tensors: dict[str, Any] = {f"{n}.weight": (rng.normal(size=s).astype(np.float32), "F32") for n, s in shapes.items()}
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        tensors[f"{name}.weight"] = (np.ones(256, np.float32), "F32")
    change(keys, tensors)
    writer = gguf.GGUFWriter(file, keys.pop("general.architecture", "llama"))
    for key, value in keys.items():
        {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32, list: writer.add_array}[
            type(value)
        ](key, value)
    for name, (values, kind) in tensors.items():
        if values.dtype == np.uint8:
            writer.add_tensor(name, values, raw_dtype=gguf.GGMLQuantizationType[kind])
        else:
            writer.add_tensor(name, gguf.quantize(values, gguf.GGMLQuantizationType[kind]))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q6_K", "Q5_0", "Q5_K"])
def test_every_quantization_is_read(tmp_path: Path, kind: str) -> None:
    """As the package dequantizes it; those that it cannot write are random bytes with finite scales."""
    size, count = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    rng = np.random.default_rng(1)
    blocks = rng.integers(0, 64, (256 * 256 // size, count), np.uint8)  # as float16: 2e-3 at most
    stored = blocks.reshape(256, -1)
    file = small(tmp_path / "a.gguf", lambda keys, tensors: tensors.update({"blk.0.ffn_up.weight": (stored, kind)}))
    write_folder(file, tmp_path / "hf")
    want = gguf.dequantize(stored, gguf.GGMLQuantizationType[kind])
    assert np.isfinite(want).all() and np.abs(want).max() > 0
    with TensorFiles(tmp_path / "hf") as files:
        np.testing.assert_array_equal(files.read("model.layers.0.mlp.up_proj.weight"), want)


def test_halves_of_a_float_stay_as_they_are(tmp_path: Path) -> None:
    folder_of("qwen2", tmp_path / "hf")
    for kind in ("F16", "BF16"):
        write_gguf(tmp_path / "hf", tmp_path / f"{kind}.gguf", kind)
        write_folder(tmp_path / f"{kind}.gguf", tmp_path / kind)
        with TensorFiles(tmp_path / kind) as files:
            assert files.dtype("model.layers.0.mlp.up_proj.weight") == kind


def test_a_folder_is_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = small(tmp_path / "model.gguf")
    first = find_folder(file)
    assert first.name == "model" and read_config(file).hidden_size == 256
    left = first.with_name(".partial")  # of a process that was killed
    left.mkdir()
    monkeypatch.setattr(reading, "write_folder", lambda *_: pytest.fail("it is there already"))
    assert find_folder(str(file)) == first
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    small(file, lambda keys, tensors: keys.update({"llama.context_length": 16}))
    os.utime(file, ns=(1, 1))
    assert find_folder(file) != first and read_config(file).max_position_embeddings == 16


def test_ends_of_turns_stop_the_generation(tmp_path: Path) -> None:
    def change(keys: dict[str, Any], tensors: dict[str, Any]) -> None:
        keys["tokenizer.ggml.tokens"][5] = "<|im_end|>"
        keys["tokenizer.ggml.eot_token_id"] = 7

    write_folder(small(tmp_path / "a.gguf", change), tmp_path / "hf")
    assert read_json(tmp_path / "hf" / "generation_config.json", dict)["eos_token_id"] == [1, 7, 5]


@pytest.mark.parametrize("kind, factor", [("linear", 4.0), ("yarn", 8.0)])
def test_scaled_positions(tmp_path: Path, kind: str, factor: float) -> None:
    scaling = {"type": kind, "factor": factor, "original_context_length": 8}
    file = small(
        tmp_path / "a.gguf",
        lambda keys, tensors: keys.update({f"llama.rope.scaling.{k}": v for k, v in scaling.items()}),
    )
    write_folder(file, tmp_path / "hf")
    rope = read_config(tmp_path / "hf").rope_parameters
    assert (rope["rope_type"], rope["factor"]) == (kind, factor)


def set_key(name: str, value: object) -> Callable[[dict[str, Any], dict[str, Any]], object]:
    return lambda keys, tensors: keys.pop(name) if value is None else keys.update({name: value})


@pytest.mark.parametrize(
    "change, named",
    [
        (set_key("general.architecture", "mamba"), "general.architecture is 'mamba'"),
        (set_key("llama.context_length", None), "llama.context_length is missing"),
        (set_key("llama.attention.layer_norm_rms_epsilon", None), "layer_norm_rms_epsilon is missing"),
        (set_key("tokenizer.ggml.model", "t5"), "tokenizer.ggml.model is 't5'"),
        (set_key("tokenizer.ggml.model", None), "tokenizer.ggml.model is missing"),
        (set_key("tokenizer.ggml.pre", "viking"), "tokenizer.ggml.pre is 'viking'"),
        (set_key("tokenizer.ggml.pre", None), "tokenizer.ggml.pre is missing"),
        (set_key("tokenizer.ggml.merges", None), "tokenizer.ggml.merges is missing"),
        (set_key("tokenizer.ggml.tokens", None), "tokenizer.ggml.tokens is missing"),
        (set_key("tokenizer.ggml.tokens", [str(n) for n in range(500)]), "500 tokens, but the table .* only 98 rows"),
        (set_key("tokenizer.ggml.token_type", [1, 1]), "token_type"),
        (set_key("tokenizer.ggml.eos_token_id", 400), "eos_token_id is 400"),
        (set_key("llama.rope.scaling.type", "longrope"), "rope.scaling.type is 'longrope'"),
        (set_key("llama.rope.dimension_count", 16), None),
        (set_key("split.count", 3), "split.count is 3"),
        (lambda keys, tensors: tensors.pop("token_embd.weight"), "token_embd.weight"),
        (
            lambda keys, tensors: tensors.update({"blk.0.ffn_gate_exps.weight": (np.ones((4, 4), np.float32), "F32")}),
            "blk.0.ffn_gate_exps.weight",
        ),
        (
            lambda keys, tensors: tensors.update(
                {"rope_freqs.weight": (np.linspace(1, 3, 32, dtype=np.float32), "F32")}
            ),
            "rope_freqs.weight",
        ),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, change: Any, named: str | None) -> None:
    if named is None:
        change = lambda keys, tensors: keys.update(  # noqa: E731
            {"llama.rope.dimension_count": 16, "llama.attention.key_length": 64}
        )
        named = "rope.dimension_count is 16"
    file = small(tmp_path / "a.gguf", change)
    with pytest.raises(ValueError, match=named) as raised:
        write_folder(file, tmp_path / "hf")
    assert "a.gguf" in str(raised.value) and not (tmp_path / "hf").exists()


def test_damaged_files_are_named(tmp_path: Path) -> None:
    file = small(tmp_path / "model.gguf")
    whole = file.read_bytes()
    for size in (6, 40, 700, len(whole) // 2):
        file.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"model.gguf cannot be read .* truncated"):
            find_folder(file)
    file.write_bytes(b"PK\3\4" + whole)
    with pytest.raises(ValueError, match=r"model.gguf is not a GGUF file"):
        find_folder(file)


def test_an_unknown_quantization_is_named(tmp_path: Path) -> None:
    file = small(tmp_path / "model.gguf")
    whole = bytearray(file.read_bytes())
    name = whole.index(b"blk.0.ffn_up.weight") + len(b"blk.0.ffn_up.weight")
    at = name + 4 + 2 * 8  # behind the number of dimensions and two dimensions
    assert whole[at : at + 4] == bytes(4)
    whole[at] = 250
    file.write_bytes(whole)
    with pytest.raises(ValueError, match="model.gguf has an unknown quantization .*250"):
        find_folder(file)


def test_the_package_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = small(tmp_path / "model.gguf")
    monkeypatch.setattr("instructrec_jax.extras.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"instructrec_jax\[gguf\]"):
        find_folder(file)
    assert "gguf" in sys.modules
