"""Pictures of items: which there are, their vectors against transformers', and what is not read twice."""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from helpers import data_uri
from tiny_pictures import png, zipped

from instructrec_jax.data.media.picture import picture
from instructrec_jax.ranking import item_pictures as module
from instructrec_jax.ranking.catalogue import Catalogue
from instructrec_jax.ranking.item_pictures import (
    ItemPictures,
    PictureNetwork,
    item_pictures,
    looks_like,
    picture_folder,
)


def catalogue_of(images: list[Any]) -> Catalogue:
    names = [f"i{number}" for number in range(len(images))]
    return Catalogue(names, names, names, {"image": images})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A catalogue's folder with pictures as files, in an archive and written out; two items have none."""
    own = tmp_path / "catalogue"
    (own / "pictures").mkdir(parents=True)
    (own / "pictures" / "a.png").write_bytes(png(1))
    zipped(own / "more.zip", {"b.png": png(2)})
    catalogue_of(["pictures/a.png", None, "more.zip/b.png", "", data_uri(png(3))]).save(own)
    return own


def opened(network: Path, folder: Path) -> ItemPictures:
    catalogue = Catalogue.load(folder)
    return ItemPictures(PictureNetwork(str(network)), catalogue, picture_folder(str(folder)), folder / "vectors")


def theirs(kind: str, network: Path, files: list[bytes]) -> np.ndarray:
    """What transformers computes, of length 1, in float32."""
    read = PictureNetwork(str(network)).read
    pixels = torch.tensor(np.stack([read(picture(file)) for file in files])).permute(0, 3, 1, 2)
    with torch.no_grad():
        model = transformers.AutoModel.from_pretrained(network).eval()
        if kind in ("clip", "siglip"):
            found = model.get_image_features(pixels)
            vectors = getattr(found, "pooler_output", found)
        else:
            hidden = model(pixels).last_hidden_state
            vectors = hidden[:, 0]
            if kind == "dinov2":  # as its classifier reads them
                vectors = torch.cat([vectors, hidden[:, 1:].mean(1)], -1)
    return (vectors / vectors.norm(dim=-1, keepdim=True)).numpy()


@pytest.mark.parametrize("kind", ["vit", "dinov2", "clip", "siglip"])
def test_vectors_are_those_of_transformers(kind: str, image_networks: dict[str, Path], folder: Path) -> None:
    pictures = opened(image_networks[kind], folder)
    found = pictures.vectors
    expected = theirs(kind, image_networks[kind], [png(1), png(2), png(3)])
    assert found.shape == (5, pictures.network.size) and found.dtype == np.float32
    assert pictures.there.tolist() == [True, False, True, False, True]
    np.testing.assert_allclose(found[[0, 2, 4]], expected, atol=1e-5)
    assert not found[[1, 3]].any()
    np.testing.assert_allclose(pictures.of(picture(png(2)), "it"), expected[1], atol=1e-5)


def test_likeness_is_the_cosine(image_networks: dict[str, Path], folder: Path) -> None:
    pictures = opened(image_networks["clip"], folder)
    vector = pictures.of(picture(png(2)), "it")
    found = looks_like(vector, pictures.vectors)
    assert found[2] == pytest.approx(1, abs=1e-5) and found.argmax() == 2
    assert np.isneginf(found[[1, 3]]).all()
    for item in (0, 2, 4):
        assert found[item] == pytest.approx(float(sum(vector * pictures.vectors[item])), abs=1e-6)


def test_more_pictures_than_a_block(image_networks: dict[str, Path], monkeypatch: Any) -> None:
    network = PictureNetwork(str(image_networks["vit"]))
    files = [picture(png(number)) for number in range(7)]
    names = ["x"] * 7
    alone = np.stack([network([each], ["x"])[0] for each in files])
    monkeypatch.setattr(module, "BATCH", 3)
    np.testing.assert_allclose(PictureNetwork(str(image_networks["vit"]))(files, names), alone, atol=1e-6)


# ---------------------------------------------------------------- what was read before


def test_vectors_are_read_once_until_something_changes(image_networks: dict[str, Path], folder: Path) -> None:
    first = opened(image_networks["vit"], folder).vectors
    (file,) = (folder / "vectors").glob("*.npy")
    again = opened(image_networks["vit"], folder)
    object.__setattr__(again, "network", Unread(str(image_networks["vit"])))
    np.testing.assert_array_equal(again.vectors, first)
    (folder / "pictures" / "a.png").write_bytes(png(9))
    os.utime(folder / "pictures" / "a.png", ns=(1, 1))
    changed = opened(image_networks["vit"], folder).vectors
    assert np.abs(changed[0] - first[0]).max() > 1e-4
    np.testing.assert_allclose(changed[1:], first[1:], atol=1e-6)
    file.write_bytes(b"\x93NUMPY damaged")
    shutil.copy(folder / "pictures" / "a.png", folder / "pictures" / "b.png")
    os.utime(folder / "pictures" / "b.png", ns=(1, 1))
    np.testing.assert_allclose(opened(image_networks["vit"], folder).vectors, changed, atol=1e-6)


class Unread(PictureNetwork):
    def __call__(self, *_: Any) -> np.ndarray:
        raise AssertionError("the pictures were read again")


def test_another_network_has_vectors_of_its_own(image_networks: dict[str, Path], folder: Path) -> None:
    _ = opened(image_networks["vit"], folder).vectors
    _ = opened(image_networks["dinov2"], folder).vectors
    assert len(list((folder / "vectors").glob("*.npy"))) == 2


def test_a_damaged_cache_is_read_again(image_networks: dict[str, Path], folder: Path, caplog: Any) -> None:
    first = opened(image_networks["vit"], folder).vectors
    (file,) = (folder / "vectors").glob("*.npy")
    file.write_bytes(file.read_bytes()[:40])
    np.testing.assert_array_equal(opened(image_networks["vit"], folder).vectors, first)
    assert "damaged" in caplog.text


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("pictures/gone.png", "item 'i1'.*is no file in.*column 'image'"),
        ("../outside.png", "item 'i1'.*lies outside"),
        ("/etc/hostname", "item 'i1'.*lies outside"),
        ("link.png", "item 'i1'.*lies outside"),
        ("https://example.org/a.png", "item 'i1'.*URLs are never fetched"),
        ("more.zip/gone.png", "item 'i1'.*has no file 'gone.png'"),
        ("data:image/png,abc", "item 'i1'.*data URI"),
        ("pictures/a.png\x00", "item 'i1'"),
        (["pictures/a.png", "more.zip/b.png"], "item 'i1' has 2 pictures"),
        (3.5, "item 'i1'.*expected a path"),
        (data_uri(png(1)[:60]), "item 'i1'.*cannot be read as a picture.*Replace the file"),
        (data_uri(b"no picture"), "item 'i1'.*cannot be read as a picture"),
        ("broken.png", "item 'i1'.*broken.png cannot be read as a picture"),
    ],
)
def test_an_unusable_picture_names_its_item(
    value: Any, said: str, image_networks: dict[str, Path], folder: Path
) -> None:
    (folder.parent / "outside.png").write_bytes(png(1))
    (folder / "link.png").symlink_to(folder.parent / "outside.png")
    (folder / "broken.png").write_bytes(png(1)[:50])
    catalogue = catalogue_of(["pictures/a.png", value])
    where = picture_folder(str(folder))
    with pytest.raises(ValueError, match=said):
        _ = ItemPictures(PictureNetwork(str(image_networks["vit"])), catalogue, where, folder / "v").vectors
    assert not (folder / "v").exists()


def test_paths_may_start_in_another_folder(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "outside.png").write_bytes(png(5))
    (found,) = item_pictures(catalogue_of(["outside.png"]), picture_folder(str(folder), str(tmp_path)))
    assert found == picture(png(5))


def test_a_catalogue_without_the_column_says_what_it_has(folder: Path) -> None:
    plain = Catalogue(["a"], ["A"], ["A"], {"year": [1990]})
    with pytest.raises(ValueError, match="no column 'image'.*id, title, text, year"):
        item_pictures(plain, picture_folder(str(folder)))


def test_a_network_of_words_is_refused(checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="no network of images.*'bert'.*CLIP"):
        PictureNetwork(str(checkpoint))
