"""Spectrograms of a batch: those of transformers' extractor; sounds of records by path, bytes and data set."""

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
import transformers
from tiny_sounds import FRAMES, SETTINGS, samples, wav

from instructrec_jax.data.example import BadExample, Example
from instructrec_jax.data.fields import FieldMapper, FieldsConfig
from instructrec_jax.data.fingerprints import fingerprint
from instructrec_jax.data.media.picture import Sound
from instructrec_jax.data.media.picture_references import PictureFolder
from instructrec_jax.data.media.spectrograms import SoundReader
from instructrec_jax.data.source_config import SourceConfig
from instructrec_jax.data.sources import open_sources
from instructrec_jax.data.storage import Storage

SHAPE = (FRAMES, SETTINGS["feature_size"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    transformers.WhisperFeatureExtractor(**SETTINGS).save_pretrained(tmp_path)
    (tmp_path / "a.wav").write_bytes(wav(1))
    return tmp_path


def test_spectrograms_are_those_of_the_extractor(folder: Path) -> None:
    read = SoundReader.of(folder, SHAPE, 10)
    extractor = transformers.WhisperFeatureExtractor(**SETTINGS)
    heard = soundfile.read(io.BytesIO(wav(1)))[0]
    expected = extractor(heard, sampling_rate=16000, return_tensors="np")["input_features"][0].T
    np.testing.assert_allclose(read(Sound.of(wav(1))), expected, atol=1e-4)


def test_a_network_of_another_length_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="spectrograms of 20 × 8 .* reads 30 × 8"):
        SoundReader.of(folder, (30, 8), 15)


def test_a_sound_is_a_path_bytes_or_both(folder: Path) -> None:
    mapper = FieldMapper(FieldsConfig(output="label"))
    made = [
        mapper({"audio": audio, "label": "x"}, folder=PictureFolder(folder))
        for audio in ("a.wav", wav(1), {"bytes": wav(1), "path": None}, {"bytes": None, "path": "a.wav"}, ["a.wav"])
    ]
    assert [e.sounds for e in made] == [(Sound.of(wav(1)),)] * 5
    assert [e.sounds[0].read() == wav(1) for e in made] == [True] * 5
    assert {fingerprint([e]) for e in made} == {fingerprint(made[:1])}
    assert [Example.from_record(e.to_record()) for e in made] == made


@pytest.mark.parametrize(
    ("audio", "said"),
    [
        ("b.wav", "no such sound"),
        ("../a.wav", "no such sound"),
        ("https://example.org/a.wav", "URL"),
        (5, "wrong type"),
        ({"array": [0.0], "sampling_rate": 16000}, "wrong type"),
    ],
)
def test_sounds_that_are_not_there_are_named(audio: object, said: str, folder: Path) -> None:
    with pytest.raises(BadExample, match=said):
        FieldMapper(FieldsConfig())({"audio": audio}, folder=PictureFolder(folder / "inside"))


def test_sounds_of_data_sets_are_read_as_they_are_stored(folder: Path) -> None:
    """No decoder of `datasets` is needed."""
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_dict({"audio": [str(folder / "a.wav")], "output": ["one"]})
    table.cast_column("audio", datasets.Audio(decode=False)).save_to_disk(folder / "set")
    config = SourceConfig(kind="datasets", path=str(folder / "set"), images=str(folder))
    (source,) = open_sources([config], storage=Storage()).sources
    assert source[0].sounds[0].read() == wav(1)


def test_a_sound_that_changed_is_named(folder: Path) -> None:
    mapper = FieldMapper(FieldsConfig(output=None))
    example = mapper({"audio": "a.wav"}, folder=PictureFolder(folder))
    (folder / "a.wav").write_bytes(wav(2, samples(2).size))
    with pytest.raises(ValueError, match="the sound .*a.wav is another one"):
        SoundReader.of(folder, SHAPE, 10)(example.sounds[0])
