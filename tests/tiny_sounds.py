"""Small sounds, as the bytes of their files."""

import io
from typing import Any

import numpy as np
import soundfile


def samples(number: int, count: int = 3000, channels: int = 1) -> np.ndarray:
    """float64 [count, channels]: a tone and some noise, in [-1, 1]."""
    rng, time = np.random.default_rng(number), np.arange(count)[:, None]
    tone = np.sin(time * (0.02 + 0.03 * number % 1) * np.arange(1, channels + 1))
    return 0.5 * tone + rng.uniform(-0.2, 0.2, (count, channels))


def wav(
    number: int, count: int = 3000, *, rate: int = 16000, channels: int = 1, format: str = "WAV", **how: Any
) -> bytes:
    """The file of such a sound."""
    file = io.BytesIO()
    soundfile.write(file, samples(number, count, channels), rate, format=format, **how)
    return file.getvalue()
