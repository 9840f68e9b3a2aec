"""Spectrograms against transformers' own extractor, and settings and sounds that are refused."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import transformers
from tiny_sounds import samples, wav

from instructrec_jax.data.media.sounds import SoundSettings, decoded_sound, log_mel, read_sound_settings, resampled

SECOND = SoundSettings(rate=16000, mels=80, window=400, hop=160, seconds=1)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"chunk_length": 1},
        {"chunk_length": 2, "feature_size": 128},
        {"chunk_length": 1, "feature_size": 20, "n_fft": 512, "hop_length": 200},
        {"chunk_length": 1, "sampling_rate": 22050, "n_fft": 300, "hop_length": 150},
    ],
)
def test_spectrograms_are_those_of_transformers(settings: dict[str, Any], tmp_path: Path) -> None:
    extractor = transformers.WhisperFeatureExtractor(**settings)
    extractor.save_pretrained(tmp_path)
    how = read_sound_settings(tmp_path)
    for sound in (samples(0)[:, 0], samples(1, how.samples)[:, 0], np.zeros(10), 1e-4 * samples(2)[:, 0]):
        expected = extractor(sound, sampling_rate=how.rate, return_tensors="np")["input_features"][0].T
        found = log_mel(sound, how)
        assert found.shape == (how.frames, how.mels) and found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_settings_may_lie_in_the_file_of_a_whole_processor(tmp_path: Path) -> None:
    own = transformers.WhisperFeatureExtractor(chunk_length=1).to_dict()
    (tmp_path / "processor_config.json").write_text(json.dumps({"feature_extractor": own}))
    assert read_sound_settings(tmp_path) == SECOND


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"dither": 0.1}, "dither is 0.1"),
        ({"do_normalize": True}, "do_normalize is True"),
        ({"padding_value": 1.0}, "padding_value is 1.0"),
        ({"feature_extractor_type": "Wav2Vec2FeatureExtractor"}, "must be WhisperFeatureExtractor"),
        ({"sampling_rate": 8000}, "at least 16,000"),
        ({"n_fft": 401}, "n_fft"),
        ({"hop_length": 123}, "hop_length"),
        ({"chunk_length": 0}, "chunk_length"),
    ],
)
def test_settings_that_would_give_other_numbers_are_refused(
    settings: dict[str, Any], said: str, tmp_path: Path
) -> None:
    own = {"feature_extractor_type": "WhisperFeatureExtractor"} | settings
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(own))
    with pytest.raises(ValueError, match=said):
        read_sound_settings(tmp_path)


def test_a_folder_without_settings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no preprocessor_config.json"):
        read_sound_settings(tmp_path)


@pytest.mark.parametrize(("format", "subtype"), [("WAV", "FLOAT"), ("WAV", "PCM_16"), ("FLAC", "PCM_24")])
def test_channels_are_averaged(format: str, subtype: str) -> None:
    found = decoded_sound(wav(3, channels=2, format=format, subtype=subtype), "a", SECOND)
    np.testing.assert_allclose(found, samples(3, channels=2).mean(1), atol=1e-4)


@pytest.mark.parametrize("rate", [8000, 44100])
def test_another_rate_is_changed(rate: int) -> None:
    """A tone keeps its pitch and its level."""
    time = np.arange(rate // 2) / rate
    file = io.BytesIO()
    soundfile.write(file, 0.5 * np.sin(2 * np.pi * 440 * time), rate, format="WAV", subtype="FLOAT")
    found = decoded_sound(file.getvalue(), "a", SECOND)
    assert len(found) == 8000
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(8000) / 16000)
    np.testing.assert_allclose(found[500:-500], expected[500:-500], atol=2e-3)
    assert resampled(found, 16000, 16000) is found


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "a cannot be read as a sound"),
        (b"RIFF and no more", "a has 16 bytes of"),
        (b"no sound", "a cannot be read as a sound"),
        (wav(1)[:-2000], "a has 4,044 bytes of 6,044: it is truncated"),
        (wav(1, format="FLAC")[:-2000], "a (has .* samples|cannot be read)"),
        (wav(1, 0), "a has no samples"),
        (wav(1, 16001), "lasts 1.00 s, but the network hears at most 1 s"),
        (wav(1, 40000, rate=32000), "lasts 1.25 s"),
    ],
)
def test_sounds_that_cannot_be_heard_are_named(data: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        decoded_sound(data, "a", SECOND)


def test_a_sound_that_is_not_a_number_is_named() -> None:
    file = io.BytesIO()
    soundfile.write(file, np.array([0.0, np.nan]), 16000, format="WAV", subtype="FLOAT")
    with pytest.raises(ValueError, match="not finite"):
        decoded_sound(file.getvalue(), "a", SECOND)
