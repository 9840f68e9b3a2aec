"""Pictures or sounds of examples → arrays of a batch, decoded in threads; a few are kept."""

import os
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from threading import Lock
from typing import ClassVar

import numpy as np

from instructrec_jax.backbones.json_fields import Fields, read_fields
from instructrec_jax.data.media.picture import Picture

KEPT = 1 << 28  # bytes of arrays that are kept, for data sets of few files


class _Kept:
    """Arrays by digest, those used last; empty in another process."""

    def __init__(self) -> None:
        self.lock, self.found, self.size = Lock(), OrderedDict[str, np.ndarray](), 0

    def get(self, digest: str) -> np.ndarray | None:
        with self.lock:
            if (array := self.found.get(digest)) is not None:
                self.found.move_to_end(digest)
            return array

    def put(self, digest: str, array: np.ndarray) -> None:
        with self.lock:
            if digest in self.found or array.nbytes > KEPT:
                return
            self.found[digest] = array
            self.size += array.nbytes
            while self.size > KEPT:
                self.size -= self.found.popitem(last=False)[1].nbytes

    def __reduce__(self) -> tuple[type["_Kept"], tuple[()]]:
        return _Kept, ()


@dataclass(frozen=True)
class MediaReader:
    """Makes the arrays that a network reads. Subclasses decode.

    Attributes:
      shape: of every array in the end.
      tokens: what the network computes of one, in tokens.
      vectors: V, the tokens of one in a row, see `backbones.row_images`.
      kind: of files that it reads.
    """

    shape: tuple[int, ...]
    tokens: int
    vectors: int = 1
    _kept: _Kept = field(default_factory=_Kept, repr=False, compare=False, kw_only=True)
    kind: ClassVar[type[Picture]] = Picture

    @property
    def form(self) -> tuple[object, ...]:
        """What decides about the arrays: readers of one form make the same ones."""
        return (self.shape,)

    def decode(self, picture: Picture) -> np.ndarray:
        """The array of a file. Raises ValueError for one that cannot be read."""
        raise TypeError(f"{type(self).__name__} has no decode().")

    def __call__(self, picture: Picture) -> np.ndarray:
        """float32 [*shape].

        Raises ValueError for a file that is gone or changed, cannot be decoded, is too large, or has another form than
        the network reads.
        """
        if (known := self._kept.get(picture.digest)) is not None:
            return known
        array = self.decode(picture)
        if array.shape != self.shape:
            raise ValueError(
                f"{picture.name} becomes {' × '.join(map(str, array.shape))} values, but the network reads "
                f"{' × '.join(map(str, self.shape))}: see config.json and preprocessor_config.json."
            )
        self._kept.put(picture.digest, array)
        return array

    def into(self, arrays: np.ndarray, slots: Sequence[tuple[int, int]], pictures: Sequence[Picture]) -> None:
        """Fills arrays[slot], float32 [rows, images, *shape], for each picture."""

        def fill(slot: tuple[int, int], picture: Picture) -> None:
            arrays[slot] = self(picture)

        for _ in _threads().map(fill, slots, pictures):
            pass


def form_of(read: MediaReader | None) -> tuple[object, ...] | None:
    """The form of a reader's arrays, None without one."""
    return None if read is None else read.form


@cache
def _threads() -> ThreadPoolExecutor:
    """Pillow, libsndfile and NumPy work outside of Python's lock."""
    return ThreadPoolExecutor(min(16, os.cpu_count() or 1), "media")


def processor_fields(folder: Path, part: str, what: str) -> Fields:
    """The fields of a folder's preprocessor_config.json, or of `part` in its processor_config.json.

    Raises ValueError for a folder without either; `what`: what the file says, in its message.
    """
    file, whole = folder / "preprocessor_config.json", folder / "processor_config.json"
    fields = read_fields(file) if file.is_file() else None
    if fields is None and whole.is_file():
        fields = read_fields(whole).object(part)
    if fields is None:
        raise ValueError(
            f"{folder} has no preprocessor_config.json, which says how {what}: copy it from the checkpoint."
        )
    return fields
