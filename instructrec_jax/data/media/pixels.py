"""Pictures of examples → pixels of a batch."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from instructrec_jax.data.media.media_reader import MediaReader
from instructrec_jax.data.media.picture import Blanked, Picture
from instructrec_jax.data.media.pictures import Preprocessing, decoded, pixels_of, read_preprocessing


@dataclass(frozen=True)
class PixelReader(MediaReader):
    """Makes pixels (height, width, channels) of pictures, as the network's preprocessor_config.json says."""

    how: Preprocessing = field(kw_only=True)

    @classmethod
    def of(cls, folder: Path, channels: int, tokens: int, vectors: int = 1) -> "PixelReader":
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
        return cls((*sides, channels), tokens, vectors, how=how)

    @property
    def form(self) -> tuple[object, ...]:
        return self.shape, self.how

    def decode(self, picture: Picture) -> np.ndarray:
        if isinstance(picture, Blanked) and picture.whole is not None:
            return picture.blank(self(picture.whole))
        try:
            return pixels_of([decoded(picture.read(), picture.name)], self.how)[0]
        except ValueError as error:
            said = str(error)
            raise ValueError(said if picture.name in said else f"{picture.name}: {said}") from error
