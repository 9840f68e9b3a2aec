"""Pictures of a catalogue's items, and their vectors by a frozen network of images (CLIP, SigLIP, ViT, DINOv2).

The column `image` of items.parquet names a picture: a path below the catalogue's folder (or below another one, which
the task's `picture_folder` names), a member of an archive, base64 or a data URI. URLs are never fetched.

    CATALOGUE/picture_vectors/{hash}.npy      vectors read before, by everything that they depend on; may be deleted
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from instructrec_jax.backbones.family import PAIR, Backbone
from instructrec_jax.backbones.folder import family_of, find_folder, read_config, weights_fingerprint
from instructrec_jax.backbones.image_text import ImageText
from instructrec_jax.backbones.reading import build_backbone, input_limit, load_backbone
from instructrec_jax.backbones.vision import VisionEncoder
from instructrec_jax.data.example import BadExample, show
from instructrec_jax.data.media.archives import archive_in
from instructrec_jax.data.media.picture import Picture
from instructrec_jax.data.media.picture_references import PictureFolder, read_pictures
from instructrec_jax.data.media.pixels import PixelReader
from instructrec_jax.distributed.launch import exchange, is_first
from instructrec_jax.files import replacing
from instructrec_jax.ranking.catalogue import Catalogue

logger = logging.getLogger(__name__)

COLUMN = "image"
BATCH = 64  # pictures that the network reads at a time


def picture_folder(catalogue: str, folder: str = "") -> PictureFolder:
    """Where paths of the column `image` start: in `folder`, else in the catalogue's folder."""
    start = Path(folder or catalogue).expanduser()
    return PictureFolder(start, (Path(catalogue).expanduser(),))


def item_pictures(catalogue: Catalogue, folder: PictureFolder) -> list[Picture | None]:
    """The picture of each item; None for an item without one. Files are read once, for their hashes.

    Raises ValueError for a catalogue without the column `image`, and, naming the item, for a value that is no picture.
    """
    return [_picture(item, value, folder) for item, value in zip(catalogue.ids, picture_column(catalogue), strict=True)]


def picture_column(catalogue: Catalogue) -> Sequence[Any]:
    """The values of the column `image`. Raises ValueError for a catalogue without it."""
    if COLUMN not in catalogue.facts:
        raise ValueError(
            f"the catalogue has no column {COLUMN!r} with the pictures of its items; it has "
            f"{', '.join(['id', 'title', 'text', *catalogue.facts])}. Add it to items.parquet (a path per item, empty "
            "for an item without a picture), or read no pictures."
        )
    return catalogue.facts[COLUMN]


def _picture(item: str, value: object, folder: PictureFolder) -> Picture | None:
    try:
        found = read_pictures(value, folder)
    except BadExample as error:
        raise ValueError(
            f"item {item!r}: {COLUMN} {error.detail} Correct the column {COLUMN!r} of items.parquet, or leave it empty "
            "for an item without a picture."
        ) from None
    if len(found) > 1:
        raise ValueError(f"item {item!r} has {len(found)} pictures ({show(value)}), but an item has one: choose it.")
    return found[0] if found else None


# ---------------------------------------------------------------- the network


class PictureNetwork:
    """A frozen network of images: pictures → vectors of length 1.

    Of a pair (CLIP, SigLIP) the projected vector, which texts are compared with; of ViT and DINOv2 what a head reads.

    Raises ValueError for a folder with another network, or without preprocessor_config.json.
    """

    def __init__(self, path: str):
        self.folder = find_folder(path)
        self.config = read_config(self.folder, images=True)
        family = family_of(self.config)
        if family.kind not in ("image", PAIR):
            raise ValueError(
                f"{path} holds no network of images (model_type {self.config.model_type!r}): name a folder of CLIP, "
                "SigLIP, ViT or DINOv2."
            )
        vision = family.tower(self.config) if family.tower is not None else self.config
        self.read = PixelReader.of(self.folder, vision.num_channels, input_limit(vision))

    @cached_property
    def size(self) -> int:
        """The width of a vector."""

        def one(pixels: jax.Array) -> jax.Array:
            return _vectors(build_backbone(self.config, rngs=nnx.Rngs(0)), pixels)

        return jax.eval_shape(one, jax.ShapeDtypeStruct((1, *self.read.shape), jnp.float32)).shape[-1]

    def fingerprint(self) -> str:
        """64 hex digits of everything that a picture's vector depends on."""
        digest = hashlib.sha256(weights_fingerprint(self.folder).encode())
        for name in ("config.json", "preprocessor_config.json", "processor_config.json"):
            file = self.folder / name
            digest.update(file.read_bytes() if file.is_file() else b"-")
        return digest.hexdigest()

    def __call__(self, pictures: Sequence[Picture], names: Sequence[str]) -> np.ndarray:
        """float32 [pictures, size]. Raises ValueError, with its name, for a picture that cannot be read."""
        found = np.zeros((len(pictures), self.size), np.float32)
        for start in range(0, len(pictures), BATCH):
            block = slice(start, min(start + BATCH, len(pictures)))
            pixels = np.zeros((BATCH if len(pictures) > 1 else 1, 1, *self.read.shape), np.float32)
            try:
                self.read.into(pixels, [(row, 0) for row in range(block.stop - start)], pictures[block])
            except ValueError:
                for picture, name in zip(pictures[block], names[block], strict=True):
                    self._check(picture, name)
                raise
            found[block] = np.asarray(self._run(pixels[:, 0]))[: block.stop - start]
        return found

    def compile(self) -> None:
        """Runs the network once in the shape of one picture."""
        self._run(np.zeros((1, *self.read.shape), np.float32))

    def _check(self, picture: Picture, name: str) -> None:
        try:
            self.read(picture)
        except ValueError as error:
            raise ValueError(f"{name}: {error} Replace the file, or leave {COLUMN!r} empty.") from error

    @cached_property
    def _run(self) -> Any:
        module = load_backbone(self.folder, rngs=nnx.Rngs(0), images=True).module
        graphdef, params = nnx.split(module)
        run = jax.jit(lambda params, pixels: _vectors(nnx.merge(graphdef, params), pixels))
        return lambda pixels: run(params, pixels)

    def __reduce__(self) -> tuple[type["PictureNetwork"], tuple[str]]:
        return PictureNetwork, (str(self.folder),)  # without the weights, for worker processes


def _vectors(module: Backbone, pixels: jax.Array) -> jax.Array:
    if isinstance(module, ImageText):
        vectors = module.embed_images(pixels)
    else:
        assert isinstance(module, VisionEncoder)
        vectors = module.vectors(module(pixels))
    vectors = vectors.astype(jnp.float32)
    return vectors / jnp.maximum(jnp.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


# ---------------------------------------------------------------- the items


@dataclass(frozen=True)
class ItemPictures:
    """The pictures of a catalogue's items as vectors.

    Attributes:
      folder: where the paths of pictures start, and may lead.
      cache: folder of vectors read before.
    """

    network: PictureNetwork
    catalogue: Catalogue
    folder: PictureFolder
    cache: Path

    @cached_property
    def there(self) -> np.ndarray:
        """bool [items]: whether an item has a picture."""
        return np.array([value not in (None, "", []) for value in picture_column(self.catalogue)], bool)

    @cached_property
    def vectors(self) -> np.ndarray:
        """float32 [items, size], of length 1; zeros for an item without a picture.

        Each process reads its share of the pictures; all processes call it alike.

        Raises ValueError, naming the item, for a picture that is missing, leads elsewhere or cannot be read.
        """
        file = self.cache / f"{self._key()}.npy"
        known = self._known(file) if is_first() else None
        if exchange(b"" if known is None else b"1")[0]:
            own = exchange(b"" if known is None else known.tobytes())[0]
            return np.frombuffer(own, np.float32).reshape(len(self.catalogue), self.network.size)
        vectors = self._read()
        if is_first():
            try:
                with replacing(file) as opened:
                    np.save(opened, vectors)
            except OSError as error:  # such as a read-only folder
                logger.warning("the vectors of pictures cannot be cached: %s", error)
        return vectors

    def of(self, picture: Picture, name: str) -> np.ndarray:
        """float32 [size]: the vector of another picture, which errors call `name`."""
        return self.network([picture], [name])[0]

    def compile(self) -> None:
        """Reads the items' pictures, and compiles the network for one more."""
        _ = self.vectors
        self.network.compile()

    def _read(self) -> np.ndarray:
        numbers = np.flatnonzero(self.there)
        share = np.array_split(numbers, jax.process_count())[jax.process_index()]
        some = item_pictures(self.catalogue.take(share), self.folder)
        names = [f"item {self.catalogue.ids[number]!r}" for number in share]
        read = [(picture, name) for picture, name in zip(some, names, strict=True) if picture is not None]
        own = self.network([picture for picture, _ in read], [name for _, name in read])
        vectors = np.zeros((len(self.catalogue), self.network.size), np.float32)
        vectors[numbers] = np.frombuffer(b"".join(exchange(own.tobytes())), np.float32).reshape(
            len(numbers), self.network.size
        )
        return vectors

    def _known(self, file: Path) -> np.ndarray | None:
        if not file.is_file():
            return None
        try:
            known = np.load(file, allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            logger.warning("%s: damaged (%s); reading the pictures again.", file, error)
            return None
        shape = (len(self.catalogue), self.network.size)
        return known if known.dtype == np.float32 and known.shape == shape else None

    def _key(self) -> str:
        """Hash of the network and of what the items' files are known by: path, size and time of the last change."""
        digest = hashlib.sha256(self.network.fingerprint().encode())
        for item, value in zip(self.catalogue.ids, picture_column(self.catalogue), strict=True):
            digest.update(json.dumps([item, self._mark(value)], default=str).encode())
        return digest.hexdigest()[:32]

    def _mark(self, value: object) -> object:
        if not value or not isinstance(value, str) or self.folder.start is None or value.startswith("data:"):
            return value
        path = self.folder.start / value
        try:
            inside = None if path.is_file() else archive_in(path)
            file = path if inside is None else inside[0]
            seen = file.stat()
        except (OSError, ValueError):  # missing, or no path at all
            return value
        return [value, seen.st_size, seen.st_mtime_ns]


def looks_like(vector: np.ndarray, pictures: np.ndarray) -> np.ndarray:
    """float32 [items]: cosines of a picture's vector [size] and those of items [items, size], all of length 1 or 0.

    −inf for an item without a picture (a vector of zeros).
    """
    return np.where(pictures.any(1), pictures @ vector, -np.inf).astype(np.float32)
