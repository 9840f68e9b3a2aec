"""VQGAN beside transformers' networks of the same layers: Chameleon's encoder and codes, Janus's decoder."""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from safetensors.numpy import load_file, save_file
from tiny_drawers import vqgan
from transformers import ChameleonVQVAEConfig, JanusVQVAEConfig
from transformers.models.chameleon.modeling_chameleon import ChameleonVQVAE
from transformers.models.janus.modeling_janus import JanusVQVAE

from instructrec_jax.backbones.folder import family_of, read_config
from instructrec_jax.backbones.reading import load_backbone
from instructrec_jax.backbones.tensor_names import TensorFiles
from instructrec_jax.backbones.vqgan import VQGAN
from instructrec_jax.backbones.writing import save_pretrained

TOLERANCE = 1e-4
pytestmark = pytest.mark.usefixtures("exact")


def opened(folder: Path) -> Any:
    return load_backbone(folder, images=True, rngs=nnx.Rngs(0))


def in_torch(tensors: dict[str, np.ndarray], half: str, levels: int = 0) -> dict[str, torch.Tensor]:
    """The tensors of `half` (and of the quantizer) by their names in PyTorch, in PyTorch's layouts.

    levels: of a decoder that counts them from the smallest size on, as Janus's does.
    """
    found = {}
    for name, value in tensors.items():
        parts = name.split(".")
        if parts[0] not in (half, "quantize", "quant_conv", "post_quant_conv"):
            continue
        for i, part in enumerate(parts):
            start, _, number = part.partition("_")
            if start in ("down", "up") or (i > 1 and parts[1] != "mid" and start in ("block", "attn")):
                number = str(levels - 1 - int(number)) if levels and start == "up" else number
                parts[i] = f"{start}.{number}"
        kind = parts.pop()
        kind = "weight" if kind in ("kernel", "scale", "embedding") else kind
        whole = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value
        found[".".join([*parts, kind])] = torch.tensor(np.ascontiguousarray(whole), dtype=torch.float64)
    return found


SHAPES = {
    "attention at two sizes": dict(attn_resolutions=[8, 4]),
    "no attention, one block": dict(attn_resolutions=[], num_res_blocks=1, ch_mult=[2, 1, 3, 2], z_channels=7),
    "one level": dict(ch_mult=[1], resolution=5, attn_resolutions=[5], embed_dim=3, quantized_embed_dim=3),
    "gray": dict(in_channels=1, out_ch=1, n_embed=7, attn_resolutions=[2], num_res_blocks=3),
}


@pytest.mark.parametrize("name", SHAPES)
def test_codes_are_chameleons(name: str, tmp_path: Path) -> None:
    folder = vqgan(tmp_path / "a", **SHAPES[name])
    loaded = opened(folder)
    network, config = loaded.module, loaded.config
    assert not loaded.report.unused and not loaded.report.initialized
    theirs = ChameleonVQVAE(
        ChameleonVQVAEConfig(
            embed_dim=config.embed_dim,
            num_embeddings=config.n_embed,
            latent_channels=config.z_channels,
            resolution=config.resolution,
            in_channels=config.in_channels,
            base_channels=config.ch,
            channel_multiplier=config.ch_mult,
            num_res_blocks=config.num_res_blocks,
            attn_resolutions=config.attn_resolutions,
        )
    ).double()
    theirs.load_state_dict(in_torch(load_file(folder / "model.safetensors"), "encoder"))
    side, channels = config.resolution, config.in_channels
    pixels = np.random.default_rng(1).uniform(-1, 1, (3, side, side, channels)).astype(np.float32)
    with torch.no_grad():
        expected = theirs.encode(torch.tensor(pixels, dtype=torch.float64).permute(0, 3, 1, 2))
    hidden = network.encoder(jnp.asarray(pixels))
    assert np.abs(hidden - expected.last_hidden_state.permute(0, 2, 3, 1).numpy()).max() < TOLERANCE
    codes = np.asarray(network.encode(jnp.asarray(pixels)))
    assert codes.shape == (3, network.spec.codes) and codes.dtype == np.int32
    assert np.array_equal(codes.reshape(-1), expected.image_tokens.reshape(-1))
    assert len(np.unique(codes)) > 1


@pytest.mark.parametrize("factors", [[1, 2, 1], [2, 1], [1]])
def test_drawings_are_januss(factors: list[int], tmp_path: Path) -> None:
    """Whose attention is at the smallest size. Its vectors of codes are normalized, so ours are, too, in this test."""
    side = 4 << (len(factors) - 1)
    folder = vqgan(tmp_path / "a", ch_mult=factors, attn_resolutions=[4], resolution=side)
    tensors = load_file(folder / "model.safetensors")
    table = tensors["quantize.embedding.embedding"]
    tensors["quantize.embedding.embedding"] = table / np.linalg.norm(table, axis=1, keepdims=True)
    save_file(tensors, folder / "model.safetensors")
    loaded = opened(folder)
    config = loaded.config
    theirs = JanusVQVAE(
        JanusVQVAEConfig(
            embed_dim=config.embed_dim,
            num_embeddings=config.n_embed,
            latent_channels=config.z_channels,
            base_channels=config.ch,
            channel_multiplier=factors,
            num_res_blocks=config.num_res_blocks,
            num_patches=4,
        )
    ).double()
    missing, unexpected = theirs.load_state_dict(in_torch(tensors, "decoder", len(factors)), strict=False)
    assert not unexpected and all(name.startswith("encoder.") for name in missing)
    codes = np.random.default_rng(1).integers(0, config.n_embed, (3, 16))
    with torch.no_grad():
        expected = theirs.decode(torch.tensor(codes)).permute(0, 2, 3, 1).numpy()
    drawn = loaded.module.decode(jnp.asarray(codes))
    assert drawn.shape == (3, side, side, 3) and drawn.dtype == jnp.float32
    assert np.abs(drawn - expected).max() < TOLERANCE


def test_a_written_folder_has_the_same_bytes(tmp_path: Path) -> None:
    folder = vqgan(tmp_path / "a", dtype=np.float16)
    loaded = opened(folder)
    save_pretrained(tmp_path / "b", loaded.module, loaded.config, report=loaded.report)
    with TensorFiles(folder) as one, TensorFiles(tmp_path / "b") as other:
        assert set(one.names) == set(other.names) and "encoder.down_0.block_0.norm1.scale" in one.names
        for name in one.names:
            assert one.dtype(name) == other.dtype(name) == "F16"
            assert one.read(name).tobytes() == other.read(name).tobytes()
    first, second = (json.loads((each / "config.json").read_text()) for each in (folder, tmp_path / "b"))
    assert second == second | first and second["architectures"] == ["VQModel"]


def test_the_table_is_that_of_the_configs_levels(tmp_path: Path) -> None:
    small, large = (family_of(read_config(vqgan(tmp_path / str(n), num_res_blocks=n), images=True)) for n in (1, 2))
    assert len(small.mapping) < len(large.mapping) and small.whole and not small.trained


def test_a_code_that_is_not_there_draws_nothing(tmp_path: Path) -> None:
    network: VQGAN = opened(vqgan(tmp_path / "a")).module
    assert np.isnan(network.quantize.vectors(jnp.array([network.spec.code_count]))).all()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ch": 48}, "ch is 48, but must be a multiple of 32"),
        ({"ch": "32"}, "ch='32', but needs a whole number"),
        ({"n_embed": 0}, "n_embed=0"),
        ({"n_embed": 1 << 21}, "more than 1,048,576 codes"),
        ({"ch_mult": []}, "ch_mult"),
        ({"ch_mult": [1, 2.5]}, "ch_mult"),
        ({"ch_mult": None}, "ch_mult=None"),
        ({"attn_resolutions": 4}, "attn_resolutions=4"),
        ({"resolution": 14}, "resolution is 14, but the 3 levels"),
        ({"double_z": True}, "double_z=True"),
        ({"give_pre_end": True}, "give_pre_end=True"),
        ({"resamp_with_conv": False}, "resamp_with_conv=False"),
        ({"quantized_embed_dim": 9}, "quantized_embed_dim=9"),
        ({"num_resolutions": 2}, "num_resolutions=2"),
        ({"out_ch": 1}, "out_ch=1"),
        ({"num_res_blocks": 1}, "no parameter for tensor decoder.up_0.block_2"),
        ({"num_res_blocks": 3}, "tensors of the network are missing"),
        ({"z_channels": 9}, "config.json needs"),
    ],
)
def test_configs_that_do_not_fit_are_named(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    folder = vqgan(tmp_path / "a")
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=said):
        opened(folder)


def test_images_of_another_size_are_named(tmp_path: Path) -> None:
    network = opened(vqgan(tmp_path / "a")).module
    with pytest.raises(ValueError, match=r"8 × 16 × 3 values, but the image tokenizer reads 16 × 16 × 3"):
        network.encode(jnp.zeros((1, 8, 16, 3)))
