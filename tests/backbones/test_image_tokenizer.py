"""The image tokenizer: its convolutions beside PyTorch's, its folder, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from tiny_pictures import image_tokenizer

from instructrec_jax.backbones.family import TOKENIZER
from instructrec_jax.backbones.folder import family_of, read_config
from instructrec_jax.backbones.image_tokenizer import Convolution, ImageTokenizer
from instructrec_jax.backbones.reading import load_backbone
from instructrec_jax.backbones.tensor_names import TensorFiles
from instructrec_jax.backbones.writing import export_tensors, save_pretrained


def opened(folder: Path) -> Any:
    return load_backbone(folder, images=True, rngs=nnx.Rngs(0))


def test_a_convolution_is_pytorchs() -> None:
    layer = Convolution(5, 0.3, jnp.float32, nnx.Rngs(0))
    layer.bias[...] = jnp.arange(5.0)
    x = np.random.default_rng(0).normal(size=(2, 4, 6, 5)).astype(np.float32)
    kernel = torch.tensor(np.asarray(layer.kernel[...]), dtype=torch.float64).permute(3, 2, 0, 1)
    expected = torch.nn.functional.conv2d(
        torch.tensor(x, dtype=torch.float64).permute(0, 3, 1, 2),
        kernel,
        torch.arange(5.0, dtype=torch.float64),
        padding=1,
    )
    assert np.allclose(layer(jnp.asarray(x)), expected.permute(0, 2, 3, 1), atol=1e-5)


def test_a_written_folder_reads_as_the_same_bytes(tmp_path: Path) -> None:
    folder = image_tokenizer(tmp_path / "a")
    first = opened(folder)
    assert family_of(first.config).kind == TOKENIZER and not first.report.initialized
    save_pretrained(tmp_path / "b", first.module, first.config)
    second = opened(tmp_path / "b")
    one, other = (export_tensors(each.module, each.config) for each in (first, second))
    with TensorFiles(tmp_path / "b") as files:
        assert set(files.names) == set(one)
        assert files.shape("encoder.layers.1.inner.weight") == (16, 16, 3, 3)
    assert all(np.array_equal(one[name], other[name]) for name in one)
    written = json.loads((tmp_path / "b" / "config.json").read_text())
    assert written["model_type"] == "fsq_tokenizer" and written["levels"] == [4, 4]


def test_images_are_codes_and_codes_are_images(tmp_path: Path) -> None:
    network: ImageTokenizer = opened(image_tokenizer(tmp_path / "a")).module
    pixels = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (3, 16, 16, 3)), jnp.float32)
    codes = network.encode(pixels)
    drawn, same = network.reconstruct(pixels)
    assert codes.shape == (3, 4) and codes.dtype == jnp.int32 and np.array_equal(codes, same)
    assert len(np.unique(codes)) > 2 and 0 <= codes.min() and codes.max() < 16
    assert np.allclose(network.decode(codes), drawn, atol=1e-6)
    # the code of a patch stands where the patch does: others beside it move it through convolutions only
    assert drawn.shape == pixels.shape and not np.allclose(drawn[0, :8, :8], drawn[0, 8:, 8:])
    with pytest.raises(ValueError, match=r"8 × 16 × 3 values, but the image tokenizer reads 16 × 16 × 3"):
        network.encode(pixels[:, :8])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"levels": None}, "levels=None, but must list numbers of at least 3"),
        ({"levels": [8, 2]}, "levels"),
        ({"levels": [1000, 1000, 1000]}, "1,000,000,000 codes"),
        ({"hidden_size": 0}, "hidden_size"),
        ({"num_channels": "3"}, "num_channels"),
        ({"patch_size": 5}, "image_size, 16, must be a multiple of patch_size, 5"),
        ({"hidden_act": "nothing"}, "nothing"),
    ],
)
def test_impossible_settings_are_named(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    folder = image_tokenizer(tmp_path / "a")
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=said):
        opened(folder)


def test_a_network_of_texts_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds a network of images"):
        read_config(image_tokenizer(tmp_path / "a"))
