"""Sounds of examples → spectrograms of a batch."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from instructrec_jax.data.media.media_reader import MediaReader
from instructrec_jax.data.media.picture import Picture, Sound
from instructrec_jax.data.media.sounds import SoundSettings, decoded_sound, log_mel, read_sound_settings


@dataclass(frozen=True)
class SoundReader(MediaReader):
    """Makes spectrograms of sounds, as the network's preprocessor_config.json says; `shape` is (frames, mels)."""

    how: SoundSettings = field(kw_only=True)
    kind = Sound

    @classmethod
    def of(cls, folder: Path, shape: tuple[int, int], tokens: int, vectors: int = 1) -> "SoundReader":
        """The reader of a network's folder, which reads spectrograms of `shape`.

        Raises ValueError for a missing or unusable preprocessor_config.json, and for one that makes others.
        """
        how = read_sound_settings(folder)
        if (how.frames, how.mels) != shape:
            raise ValueError(
                f"{folder}: preprocessor_config.json makes spectrograms of {how.frames} × {how.mels} (chunk_length · "
                f"sampling_rate / hop_length, and feature_size), but the network reads {shape[0]} × {shape[1]} (2 · "
                "max_source_positions, and num_mel_bins, in config.json): they must agree."
            )
        return cls(shape, tokens, vectors, how=how)

    def decode(self, picture: Picture) -> np.ndarray:
        return log_mel(decoded_sound(picture.read(), picture.name, self.how), self.how)
