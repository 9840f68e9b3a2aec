"""Pictures of examples → pixels of a batch, decoded in threads; a few are kept."""

import os
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from threading import Lock

import numpy as np

from instructrec_jax.data.picture import Picture
from instructrec_jax.data.pictures import Preprocessing, decoded, pixels_of, read_preprocessing

KEPT = 1 << 28  # bytes of pixels that are kept, for data sets of few pictures


class _Kept:
    """Pixels by digest, those used last; empty in another process."""

    def __init__(self) -> None:
        self.lock, self.found, self.size = Lock(), OrderedDict[str, np.ndarray](), 0

    def get(self, digest: str) -> np.ndarray | None:
        with self.lock:
            if (pixels := self.found.get(digest)) is not None:
                self.found.move_to_end(digest)
            return pixels

    def put(self, digest: str, pixels: np.ndarray) -> None:
        with self.lock:
            if digest in self.found or pixels.nbytes > KEPT:
                return
            self.found[digest] = pixels
            self.size += pixels.nbytes
            while self.size > KEPT:
                self.size -= self.found.popitem(last=False)[1].nbytes

    def __reduce__(self) -> tuple[type["_Kept"], tuple[()]]:
        return _Kept, ()


@dataclass(frozen=True)
class PixelReader:
    """Makes pixels of pictures, as the network's preprocessor_config.json says.

    Attributes:
      shape: (height, width, channels) of every picture in the end.
      tokens: what the network computes of a picture, in tokens.
    """

    how: Preprocessing
    shape: tuple[int, int, int]
    tokens: int
    _kept: _Kept = field(default_factory=_Kept, repr=False, compare=False)

    @classmethod
    def of(cls, folder: Path, channels: int, tokens: int) -> "PixelReader":
        """The reader of a network's folder.

        Raises ValueError for a missing or unusable preprocessor_config.json, and for one that leaves pictures of
        different sizes, which no batch holds.
        """
        how = read_preprocessing(folder)
        sides = how.resize if how.crop is None else how.crop
        if not isinstance(sides, tuple):
            raise ValueError(
                f"{folder}: preprocessor_config.json leaves pictures of different sizes, but a batch needs one size: "
                "set a height and a width in `size`, or do_center_crop with a crop_size."
            )
        return cls(how, (*sides, channels), tokens)

    def __call__(self, picture: Picture) -> np.ndarray:
        """float32 [height, width, channels].

        Raises ValueError for a picture that is gone or changed, cannot be decoded, is too large, or has another form
        than the network reads.
        """
        if (known := self._kept.get(picture.digest)) is not None:
            return known
        try:
            pixels = pixels_of([decoded(picture.read(), picture.name)], self.how)[0]
        except ValueError as error:
            said = str(error)
            raise ValueError(said if picture.name in said else f"{picture.name}: {said}") from error
        if pixels.shape != self.shape:
            raise ValueError(
                f"{picture.name} becomes {' × '.join(map(str, pixels.shape))} values, but the network reads "
                f"{' × '.join(map(str, self.shape))}: see num_channels in config.json and preprocessor_config.json."
            )
        self._kept.put(picture.digest, pixels)
        return pixels

    def into(self, pixels: np.ndarray, slots: Sequence[tuple[int, int]], pictures: Sequence[Picture]) -> None:
        """Fills pixels[slot], float32 [rows, images, height, width, channels], for each picture."""

        def fill(slot: tuple[int, int], picture: Picture) -> None:
            pixels[slot] = self(picture)

        for _ in _threads().map(fill, slots, pictures):
            pass


@cache
def _threads() -> ThreadPoolExecutor:
    """Pillow decodes outside of Python's lock."""
    return ThreadPoolExecutor(min(16, os.cpu_count() or 1), "pictures")
