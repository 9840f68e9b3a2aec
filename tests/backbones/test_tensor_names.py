"""Tensors in files: rectangles that are read, files that are written."""

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from transformers import BertConfig

from instructrec_jax.backbones import tensor_names as tensors
from instructrec_jax.backbones.reading import LoadReport, build_backbone, load_backbone
from instructrec_jax.backbones.tensor_names import TensorFiles
from instructrec_jax.backbones.writing import export_tensors, save_pretrained
from instructrec_jax.distributed.mesh import make_mesh, parameter_sharding
from instructrec_jax.distributed.mesh_config import MeshConfig


@pytest.mark.parametrize("read_bytes", [1, 60, 1 << 20], ids=["rows", "blocks", "whole"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16], ids=str)
def test_any_rectangle_of_a_tensor_is_read(read_bytes, dtype, tmp_path, monkeypatch):
    monkeypatch.setattr(tensors, "READ_BYTES", read_bytes)
    rng = np.random.default_rng(0)
    shapes = [(), (7,), (5, 6), (4, 3, 5), (2, 3, 4, 5), (0, 3)]
    stored = {f"t{i}": rng.normal(size=shape).astype(dtype) for i, shape in enumerate(shapes)}
    save_file(stored, tmp_path / "model.safetensors")
    with TensorFiles(tmp_path) as files:
        for name, whole in stored.items():
            assert files.shape(name) == whole.shape
            np.testing.assert_array_equal(files.read(name), whole)
            for _ in range(20):
                index = tuple(slice(*sorted(rng.choice(n + 2, 2).tolist())) for n in whole.shape)
                found = files.read(name, index)
                assert found.dtype == whole.dtype
                np.testing.assert_array_equal(found, whole[index])


def test_equal_tensors(tmp_path):
    one = np.arange(12, dtype=np.float32).reshape(4, 3)
    save_file({"a": one, "b": one.copy(), "c": one + (one == 11), "d": one.T.copy()}, tmp_path / "model.safetensors")
    with TensorFiles(tmp_path) as files:
        assert [files.equal("a", other) for other in "bcd"] == [True, False, False]


def network():
    config = BertConfig(vocab_size=16, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16)
    return build_backbone(config, rngs=nnx.Rngs(0)), config


def test_files_of_several_dtypes_are_valid_and_aligned(tmp_path):
    module, config = network()
    names = sorted(export_tensors(module, config))
    report = LoadReport(used={name: ("F32", "BF16", "F16")[i % 3] for i, name in enumerate(names)})
    expected = export_tensors(module, config, report=report)
    assert {str(t.dtype) for t in expected.values()} == {"float32", "float16", "bfloat16"}
    save_pretrained(tmp_path, module, config, report=report)
    found = load_file(tmp_path / "model.safetensors")  # the library checks the header
    assert set(found) == set(names)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        np.testing.assert_array_equal(found[name], tensor)
    with safe_open(tmp_path / "model.safetensors", framework="np") as file:
        assert file.metadata() == {"format": "pt"}
    with TensorFiles(tmp_path) as files:
        for name in names:
            stored = files.names[name]
            assert stored.offset % tensors.FILE_DTYPES[stored.dtype].itemsize == 0


def test_parameters_spread_over_devices_are_written_as_they_were_read(tmp_path):
    module, config = network()
    save_pretrained(tmp_path / "a", module, config)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    spread = load_backbone(
        tmp_path / "a", rngs=nnx.Rngs(0), shardings=lambda _, shape, axes: parameter_sharding(mesh, shape, axes)
    )
    state = jax.tree.leaves(nnx.state(spread.module))
    assert any(len({str(shard.index) for shard in x.addressable_shards}) == 4 for x in state)
    save_pretrained(tmp_path / "b", spread.module, config, report=spread.report)
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in "ab")
    assert one == two


def test_a_new_model_leaves_nothing_of_an_old_one(tmp_path):
    """A reader would open model.safetensors, and not the shards beside it."""
    module, config = network()
    save_pretrained(tmp_path, module, config)
    save_pretrained(tmp_path, module, config, max_shard_bytes=2000)
    several = sorted(file.name for file in tmp_path.glob("*.safetensors"))
    assert len(several) > 2 and "model.safetensors" not in several
    assert load_backbone(tmp_path, rngs=nnx.Rngs(1)).report.initialized == ()
    save_pretrained(tmp_path, module, config)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_a_value_that_does_not_fit_leaves_no_half_file(tmp_path):
    module, config = network()
    module.embedding_norm.scale[...] = np.full(8, 1e6, np.float32)
    with pytest.raises(ValueError, match="LayerNorm.weight.*float16"):
        save_pretrained(tmp_path, module, config, dtype="float16")
    assert not list(tmp_path.iterdir())
