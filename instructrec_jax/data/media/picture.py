"""A picture or a sound of an example: by reference to a file or to a member of an archive, or as the file's bytes.

It is decoded when a batch is made (`data.media.media_reader`); an example holds no pixels.
"""

import base64
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, TypeVar

import numpy as np
import xxhash

from instructrec_jax.data.media.archives import archive_in, read_member

MARK = "<image>"  # the place of a picture in a text
Media = TypeVar("Media", bound="Picture")


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture of an example. Equal ones have the same bytes.

    Attributes:
      digest: XXH3 (128 bits, hex) of the bytes of its file.
      path: of the file, or of a member of an archive (`a.zip/b.png`); "": none.
      data: the bytes where there is no path.
    """

    digest: str
    path: str = field(default="", compare=False)
    data: bytes = field(default=b"", compare=False, repr=False)
    noun: ClassVar[str] = "picture"

    @property
    def name(self) -> str:
        return self.path or f"the {self.noun} of {len(self.data):,} bytes"

    def read(self) -> bytes:
        """The bytes of the file. Raises ValueError where it is gone, or is another one than when the data were read."""
        if not self.path:
            return self.data
        try:
            data = bytes_of(Path(self.path))
        except OSError as error:
            raise ValueError(f"the {self.noun} {self.path} cannot be read ({error.strerror or error}).") from error
        if digest_of(data) != self.digest:
            raise ValueError(
                f"the {self.noun} {self.path} is another one than when the data were read: put the old one back, or "
                "read the data again (set data.store to a new folder; a run cannot be resumed with other data)."
            )
        return data

    def to_record(self) -> dict[str, str]:
        """As JSON; `from_record` is the inverse."""
        if self.path:
            return {"path": self.path, "digest": self.digest}
        return {"bytes": base64.b64encode(self.data).decode(), "digest": self.digest}

    @classmethod
    def from_record(cls: type[Media], record: Mapping[str, str]) -> Media:
        """Raises KeyError or ValueError for another record than one of `to_record`."""
        data = b"" if "path" in record else base64.b64decode(record["bytes"], validate=True)
        return cls(record["digest"], record.get("path", ""), data)

    @classmethod
    def of(cls: type[Media], data: bytes) -> Media:
        """That of a file's bytes."""
        return cls(digest_of(data), data=data)


@dataclass(frozen=True, slots=True)
class Sound(Picture):
    """A sound of an example."""

    noun: ClassVar[str] = "sound"


@dataclass(frozen=True, slots=True)
class Blanked(Picture):
    """A picture without some squares: the network reads zeros, the mean color, in their places.

    Attributes:
      whole: the picture.
      corners: (top, left) of each square, in pixels that the network reads.
      side: of a square, in pixels.
    """

    whole: Picture | None = None
    corners: tuple[tuple[int, int], ...] = ()
    side: int = 0

    @classmethod
    def without(cls, whole: Picture, corners: Iterable[tuple[int, int]], side: int) -> "Blanked":
        chosen = tuple(sorted(corners))
        return cls(digest_of(f"{whole.digest} {side} {chosen}".encode()), whole.path, whole.data, whole, chosen, side)

    def blank(self, pixels: np.ndarray) -> np.ndarray:
        """The pixels [height, width, channels] of the whole picture without the squares."""
        left = pixels.copy()
        for top, start in self.corners:
            left[top : top + self.side, start : start + self.side] = 0
        return left


def digest_of(data: bytes) -> str:
    return xxhash.xxh3_128_hexdigest(data)


def picture(data: bytes) -> Picture:
    """The picture of a file's bytes."""
    return Picture.of(data)


def picture_of(path: Path) -> Picture:
    """The picture of a file, or of a member of an archive. Raises OSError where it is missing."""
    return Picture(digest_of(bytes_of(path)), str(path))


def bytes_of(path: Path) -> bytes:
    inside = None if path.is_file() else archive_in(path)
    return path.read_bytes() if inside is None else read_member(*inside)
