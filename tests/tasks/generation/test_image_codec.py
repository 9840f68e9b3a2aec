"""An image tokenizer beside a language model: codes and pictures, copies, and folders of other kinds."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from tiny_pictures import image_tokenizer, png

from instructrec_jax.backbones.reading import load_backbone
from instructrec_jax.data.media.picture import picture
from instructrec_jax.tasks.generation.image_codec import BATCH, FOLDER, ImageCodec


def test_codes_and_drawings_are_the_networks(drawing: dict[str, Path]) -> None:
    """More pictures than are computed together; also in a worker process, which gets the folder alone."""
    codec = ImageCodec.find(drawing["draw llama"], "")
    assert codec.folder == drawing["draw llama"] / FOLDER
    pictures = [picture(png(n)) for n in range(BATCH + 3)]
    codes = codec.codes(pictures)
    network = load_backbone(codec.folder, images=True, rngs=nnx.Rngs(0)).module
    pixels = np.stack([codec.read(one) for one in pictures])
    assert codes.shape == (BATCH + 3, 4) and np.array_equal(codes, network.encode(pixels))  # type: ignore[attr-defined]
    drawn = np.stack(codec.draw(codes))
    expected = np.asarray(network.decode(codes))  # type: ignore[attr-defined]
    assert np.abs(drawn - np.clip((expected * 0.5 + 0.5) * 255, 0, 255)).max() <= 0.51
    other = pickle.loads(pickle.dumps(codec))
    assert other == codec and np.array_equal(other.codes(pictures[:2]), codes[:2])
    assert codec.codes([]).shape == (0, 4) and codec.draw([]) == []


def test_the_copy_in_the_networks_folder_counts(drawing: dict[str, Path], tmp_path: Path) -> None:
    named = str(drawing["fsq"])
    assert ImageCodec.find(tmp_path, named).folder == drawing["fsq"]
    assert ImageCodec.find(drawing["draw t5"], named).folder == drawing["draw t5"] / FOLDER


def test_folders_of_other_kinds_are_named(
    drawing: dict[str, Path], image_networks: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="task.tokenizer is not set"):
        ImageCodec.find(tmp_path, "")
    with pytest.raises(ValueError, match="holds a vit: name the folder of an image tokenizer"):
        ImageCodec.find(tmp_path, str(image_networks["vit"]))
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(ValueError, match="a run directory: write its folder with .*export"):
        ImageCodec.find(tmp_path / "none", str(tmp_path))
    folder = image_tokenizer(tmp_path / "other")
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(settings | {"size": {"height": 24, "width": 24}}))
    with pytest.raises(ValueError, match="makes pictures of 24 × 24 pixels, but the image tokenizer reads 16 × 16"):
        ImageCodec.find(tmp_path / "none", str(folder)).codes([picture(png(0))])
