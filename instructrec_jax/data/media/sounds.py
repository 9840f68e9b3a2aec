"""Sounds → the log-mel spectrogram that a network reads, as the folder's preprocessor_config.json says.

The numbers are those of transformers' `WhisperFeatureExtractor` (Radford et al., 2023), in float64.
"""

import io
import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from instructrec_jax.backbones.json_fields import Fields
from instructrec_jax.data.media.media_reader import processor_fields
from instructrec_jax.extras import require

EXTRACTOR = "WhisperFeatureExtractor"
HIGHEST = 8000.0  # Hz, where the mel filters end
FLOOR, RANGE = 1e-10, 8.0  # of the power; below the loudest value, in powers of ten
READ = {"feature_size", "sampling_rate", "hop_length", "n_fft", "chunk_length"}
# Fields that change no number: names, and what follows from the others.
SILENT = {
    *("feature_extractor_type", "processor_class", "nb_max_frames", "n_samples", "padding_side", "mel_filters"),
    *("return_attention_mask", "return_tensors"),
}


@dataclass(frozen=True)
class SoundSettings:
    """What is done with a sound.

    Attributes:
        rate: samples per second.
        mels: values of a frame.
        window, hop: samples of a frame, and between the starts of two.
        seconds: of every sound in the end: a shorter one is followed by silence.
    """

    rate: int
    mels: int
    window: int
    hop: int
    seconds: int

    @property
    def samples(self) -> int:
        return self.rate * self.seconds

    @property
    def frames(self) -> int:
        return self.samples // self.hop


def read_sound_settings(folder: Path) -> SoundSettings:
    """The settings of a folder's preprocessor_config.json, or of `feature_extractor` in its processor_config.json.

    Raises ValueError for a missing file, and for an extractor or setting that is not implemented.
    """
    fields = processor_fields(folder, "feature_extractor", "sounds become numbers")
    if fields.text("feature_extractor_type") != EXTRACTOR:
        fields.refuse("feature_extractor_type", EXTRACTOR)
    for name, value in fields.values.items():
        if name not in READ | SILENT and value not in (None, False, 0):
            fields.refuse(name, "absent, false or 0, because it is not implemented")
    settings = SoundSettings(
        rate=_whole(fields, "sampling_rate", 16000),
        mels=_whole(fields, "feature_size", 80),
        window=_whole(fields, "n_fft", 400),
        hop=_whole(fields, "hop_length", 160),
        seconds=_whole(fields, "chunk_length", 30),
    )
    if settings.rate < 2 * HIGHEST:
        fields.refuse("sampling_rate", f"at least {2 * HIGHEST:,.0f}, because the filters end at {HIGHEST:,.0f} Hz")
    if settings.window % 2 or settings.window > settings.samples:
        fields.refuse("n_fft", "an even number of samples, at most those of chunk_length")
    if settings.samples % settings.hop:
        fields.refuse("hop_length", "a divisor of the samples of chunk_length")
    return settings


def _whole(fields: Fields, name: str, default: int) -> int:
    found = fields.integer(name, 1)
    return default if found is None else found


def decoded_sound(data: bytes, name: str, settings: SoundSettings) -> np.ndarray:
    """float64 [samples] of a file's bytes (WAV, FLAC, Ogg, MP3), at the settings' rate; channels are averaged.

    Another rate is changed by scipy's polyphase filter.

    Raises ValueError for bytes that are no sound, and for a sound without samples, with NaN or infinity, or longer than
    the network hears.
    """
    require("soundfile", f"the sound {name}")
    import soundfile

    _check_whole(data, name)
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as opened:
            rate, count = opened.samplerate, opened.frames
            if count > settings.seconds * rate:  # before anything is decoded
                raise ValueError(
                    f"{name} lasts {count / rate:.2f} s, but the network hears at most {settings.seconds} s: cut it "
                    "into shorter ones."
                )
            samples = opened.read(dtype="float64", always_2d=True)
    except (soundfile.SoundFileError, TypeError, RuntimeError, MemoryError) as error:
        raise ValueError(f"{name} cannot be read as a sound ({type(error).__name__}: {error}).") from error
    if not len(samples) or len(samples) < count:
        held = "no samples" if not len(samples) else f"{len(samples):,} of {count:,} samples"
        raise ValueError(f"{name} has {held}: replace the file.")
    if not np.isfinite(samples).all():
        raise ValueError(f"{name} has samples that are not finite: replace the file.")
    return resampled(samples.mean(1), rate, settings.rate)[: settings.samples]


def _check_whole(data: bytes, name: str) -> None:
    """Raises ValueError for a truncated WAV, of which libsndfile would read what is left."""
    said = int.from_bytes(data[4:8], "little") if data.startswith(b"RIFF") else 0
    if said not in (0, 0xFFFFFFFF) and len(data) < 8 + said:  # these two: written into a pipe
        raise ValueError(f"{name} has {len(data):,} bytes of {8 + said:,}: it is truncated; replace the file.")


def resampled(samples: np.ndarray, rate: int, new: int) -> np.ndarray:
    """float64 [samples] at the rate `new`, in samples per second."""
    if rate == new:
        return samples
    from scipy.signal import resample_poly

    shared = math.gcd(rate, new)
    return np.asarray(resample_poly(samples, new // shared, rate // shared))


def log_mel(samples: np.ndarray, settings: SoundSettings) -> np.ndarray:
    """float32 [frames, mels]: log10 of the power in each mel filter, at most 8 below the loudest, (x + 4) / 4.

    Args:
        samples: float [n], n at most `settings.samples`.
    """
    window, hop = settings.window, settings.hop
    padded = np.zeros(settings.samples)
    padded[: len(samples)] = samples.astype(np.float32)  # as transformers reads them
    padded = np.pad(padded, window // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[::hop][: settings.frames]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    power = np.abs(np.fft.rfft(frames * hann)) ** 2
    levels = np.log10(np.maximum(power @ mel_filters(settings.rate, window, settings.mels), FLOOR))
    levels = np.maximum(levels, levels.max() - RANGE)
    return ((levels + 4.0) / 4.0).astype(np.float32)


@lru_cache(maxsize=8)
def mel_filters(rate: int, window: int, mels: int) -> np.ndarray:
    """float64 [window / 2 + 1, mels]: triangles of equal area between 0 and 8,000 Hz, on Slaney's mel scale (1998)."""
    corners = _hertz(np.linspace(0.0, _mel(HIGHEST), mels + 2))
    frequencies = np.linspace(0.0, rate // 2, window // 2 + 1)
    slopes = corners - frequencies[:, None]
    widths = np.diff(corners)
    rising, falling = -slopes[:, :-2] / widths[:-1], slopes[:, 2:] / widths[1:]
    return np.maximum(0.0, np.minimum(rising, falling)) * (2.0 / (corners[2:] - corners[:-2]))


# Slaney's scale: 3 mels per 200 Hz up to 1,000 Hz (15 mels); then 27 mels for each factor of 6.4.
_KNEE_HERTZ, _KNEE_MEL, _STEP = 1000.0, 15.0, 27.0 / math.log(6.4)


def _mel(hertz: float) -> float:
    return _KNEE_MEL + _STEP * math.log(hertz / _KNEE_HERTZ) if hertz >= _KNEE_HERTZ else 3.0 * hertz / 200.0


def _hertz(mel: np.ndarray) -> np.ndarray:
    return np.where(mel >= _KNEE_MEL, _KNEE_HERTZ * np.exp((mel - _KNEE_MEL) / _STEP), 200.0 * mel / 3.0)
