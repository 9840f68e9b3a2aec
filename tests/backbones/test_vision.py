"""Image networks: patches, interpolated positions, wrong pixels and wrong folders."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from safetensors.numpy import load_file, save_file

from instructrec_jax.backbones.folder import read_config
from instructrec_jax.backbones.reading import load_backbone
from instructrec_jax.backbones.vision import VisionEncoder, bicubic_weights, patches_of, resize_table
from instructrec_jax.backbones.writing import save_pretrained
from instructrec_jax.distributed.mesh import make_mesh, parameter_sharding
from instructrec_jax.distributed.mesh_config import MeshConfig


@pytest.fixture(scope="module")
def registers(make_checkpoint: Callable[..., Path]) -> Path:
    return make_checkpoint("dinov2_with_registers", "Model", layerscale_value=0.5)


def load(folder: Path, **options: Any) -> VisionEncoder:
    module = load_backbone(folder, rngs=nnx.Rngs(0), images=True, **options).module
    assert isinstance(module, VisionEncoder)
    return module


def edited(folder: Path, target: Path, tensors: Callable[..., Any] = lambda w: w, **config: Any) -> Path:
    shutil.copytree(folder, target, dirs_exist_ok=True)
    fields = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(fields | config))
    save_file(tensors(load_file(folder / "model.safetensors")), target / "model.safetensors")
    return target


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("grid", [(3, 3), (7, 4), (2, 9), (1, 1), (5, 6)])
def test_positions_are_interpolated_as_in_pytorch(antialias: bool, grid: tuple[int, int]) -> None:
    table = np.random.default_rng(0).normal(size=(25, 6)).astype(np.float32)
    square = torch.tensor(table).reshape(1, 5, 5, 6).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(square, size=grid, mode="bicubic", antialias=antialias)
    found = resize_table(jnp.asarray(table), 5, grid, antialias=antialias)
    np.testing.assert_allclose(found, expected.permute(0, 2, 3, 1).reshape(-1, 6), rtol=0, atol=2e-6)
    np.testing.assert_allclose(bicubic_weights(5, grid[1], antialias=antialias).sum(1), 1.0, atol=1e-12)


def test_patches_run_from_left_to_right_and_leave_the_rest_out() -> None:
    pixels = np.arange(5 * 7 * 2).reshape(1, 5, 7, 2)
    patches = patches_of(jnp.asarray(pixels), 2)
    assert patches.shape == (1, 6, 8)
    np.testing.assert_array_equal(patches[0, 4], pixels[0, 2:4, 2:4].reshape(-1))


@pytest.mark.parametrize(
    ("shape", "named"),
    [
        ((1, 17, 17, 1), "1 channels.*3.*num_channels"),
        ((1, 3, 17, 17), "17 channels"),
        ((1, 4, 17, 3), "4 × 17.*patch_size"),
        ((17, 17, 3), "rows, height, width, channels"),
    ],
)
def test_pixels_of_a_wrong_shape(registers: Path, shape: tuple[int, ...], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        load(registers)(jnp.zeros(shape))


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"image_size": [17, 20]}, "image_size"),
        ({"image_size": 4}, "image_size, 4, is smaller than patch_size, 5"),
        ({"image_size": 0}, "image_size"),
        ({"patch_size": 0}, "patch_size"),
        ({"patch_size": [5, 4]}, "patch_size"),
        ({"num_attention_heads": 5}, "attention heads"),
        ({"hidden_act": "laplace"}, "laplace"),
        ({"drop_path_rate": 0.1}, "drop_path_rate"),
        ({"apply_layernorm": False}, "apply_layernorm"),
        ({"num_channels": 1}, r"projection.weight.*\[32, 3, 5, 5\].*\[32, 1, 5, 5\]"),
        ({"image_size": 30}, r"position_embeddings.*\[1, 10, 32\].*\[1, 37, 32\]"),
        ({"num_register_tokens": 4}, r"register_tokens.*\[1, 3, 32\].*\[1, 4, 32\]"),
        ({"num_channels": 0}, "num_channels"),
        ({"mlp_ratio": "4"}, "mlp_ratio"),
        ({"use_swiglu_ffn": True}, "mlp.weights_in"),
    ],
)
def test_a_config_that_is_not_implemented_or_does_not_fit(
    registers: Path, tmp_path: Path, config: dict[str, Any], named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        load(edited(registers, tmp_path, **config))


@pytest.mark.parametrize(
    ("vision", "named"),
    [
        ({"hidden_size": "32"}, "vision_config.*hidden_size"),
        ({"num_attention_heads": 5}, "config.json.*attention heads"),
        ({"num_hidden_layers": 1}, "vision_model.encoder.layers.1"),
        ({"num_hidden_layers": 3}, "vision_model.encoder.layers.2"),
        ({"image_size": [17, 16]}, "image_size"),
    ],
)
def test_a_wrong_config_inside_of_a_pair(
    make_checkpoint: Callable[..., Path], tmp_path: Path, vision: dict[str, Any], named: str
) -> None:
    folder = make_checkpoint("clip")
    inner = json.loads((folder / "config.json").read_text())["vision_config"]
    with pytest.raises(ValueError, match=named):
        load_backbone(edited(folder, tmp_path, vision_config=inner | vision), rngs=nnx.Rngs(0), images=True)


def test_missing_tensors_are_named(registers: Path, tmp_path: Path) -> None:
    name = "embeddings.cls_token"
    with pytest.raises(ValueError, match=name):
        load(edited(registers, tmp_path, lambda w: {n: t for n, t in w.items() if n != name}))


@pytest.mark.parametrize("model_type", ["vit", "clip"])
def test_a_folder_of_images_is_no_network_of_texts(make_checkpoint: Callable[..., Path], model_type: str) -> None:
    folder = make_checkpoint(model_type)
    for opened in (read_config, lambda folder: load_backbone(folder, rngs=nnx.Rngs(0))):
        with pytest.raises(ValueError, match=f"network of images.*{model_type}.*bert"):
            opened(folder)


def test_spread_over_devices_it_is_the_same_network(registers: Path, tmp_path: Path) -> None:
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    spread = load_backbone(
        registers,
        rngs=nnx.Rngs(0),
        images=True,
        shardings=lambda _, shape, axes: parameter_sharding(mesh, shape, axes),
    )
    state = jax.tree.leaves(nnx.state(spread.module))
    assert any(len({str(shard.index) for shard in x.addressable_shards}) == 4 for x in state)
    save_pretrained(tmp_path, spread.module, spread.config, report=spread.report)
    one, two = (load_file(folder / "model.safetensors") for folder in (registers, tmp_path))
    assert one.keys() == two.keys() and all(np.array_equal(one[name], two[name]) for name in one)


def test_gradients_are_those_of_pytorch(registers: Path, exact: None) -> None:
    import transformers

    pixels = np.random.default_rng(0).normal(size=(2, 22, 16, 3)).astype(np.float32)
    model = transformers.Dinov2WithRegistersModel.from_pretrained(registers)
    model(torch.tensor(pixels).permute(0, 3, 1, 2)).last_hidden_state.square().mean().backward()
    gradients = nnx.grad(lambda module: jnp.square(module(pixels)).mean())(load(registers))
    pairs = {
        "positions": model.embeddings.position_embeddings.grad[0],
        "class_token": model.embeddings.cls_token.grad[0, 0],
        "registers": model.embeddings.register_tokens.grad[0],
    }
    for name, expected in pairs.items():
        np.testing.assert_allclose(gradients[name][...], expected, rtol=1e-4, atol=1e-6)
    kernel = model.embeddings.patch_embeddings.projection.weight.grad
    np.testing.assert_allclose(gradients["patches"]["kernel"][...], kernel.permute(2, 3, 1, 0), rtol=1e-4, atol=1e-6)
    assert not gradients["mask_token"][...].any()
