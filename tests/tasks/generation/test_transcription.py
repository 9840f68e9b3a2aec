"""Transcription: targets, scores, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_sounds import wav, whisper

from instructrec_jax.backbones.backbone_config import BackboneConfig
from instructrec_jax.data.data_config import DataConfig
from instructrec_jax.data.example import Example
from instructrec_jax.data.media.picture import Sound
from instructrec_jax.runs.config import Config
from instructrec_jax.runs.model import open_task
from instructrec_jax.tasks.base import Task
from instructrec_jax.tasks.generation.writing_config import TranscriptionConfig
from instructrec_jax.tasks.task_config import TaskConfig
from instructrec_jax.tasks.text.text_config import ClassificationConfig

HEARD = Example(instruction="", sounds=(Sound.of(wav(1)),), output=("a good film", "a film"))


def task(folder: Path, config: TaskConfig | None = None, length: int = 10) -> Task:
    settings = Config(
        backbone=BackboneConfig(str(folder)), task=config or TranscriptionConfig(), data=DataConfig(max_length=length)
    )
    return open_task(settings, folder)


def test_the_target_is_the_first_reference_behind_forced_tokens(
    language_models: dict[str, Path], tmp_path: Path
) -> None:
    folder = whisper(tmp_path, language_models["bart"])
    forced = dict(forced_decoder_ids=[[1, 20]], no_timestamps_token_id=21, decoder_start_token_id=3)
    (folder / "generation_config.json").write_text(json.dumps(forced))
    made = task(folder)
    (encoded,) = made.encode([HEARD])
    words = made.context.tokenizer("a good film", add_special_tokens=False)["input_ids"]
    end = made.context.tokenizer.eos_token_id
    assert encoded.target.labels.tolist() == [20, 21, *words, end]
    assert encoded.text.target is not None and encoded.text.target.tolist() == [3, 20, 21, *words]
    assert len(encoded.text.tokens) == 10
    (seen,) = made.seen([encoded.text])  # type: ignore[attr-defined]
    assert seen.places.tolist() == [list(range(10))] and seen.pixels.shape == (1, 1, 20, 8)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sounds": ()}, "no sound"),
        ({"sounds": HEARD.sounds * 2}, "2 sounds, but one is transcribed"),
        ({"instruction": "Write it down."}, "the words 'Write it down.'"),
        ({"output": None}, "no answer"),
        ({"sounds": (Sound.of(b"RIFF"),)}, "truncated|cannot be read"),
        ({"output": "film " * 60}, "task.max_target_length is 10"),
    ],
)
def test_unusable_examples_are_named(change: dict[str, object], said: str, hearing: Path) -> None:
    with pytest.raises(ValueError, match=said):
        task(hearing).encode([replace(HEARD, **change)])


def test_rows_too_short_for_a_sound_are_refused(hearing: Path) -> None:
    with pytest.raises(ValueError, match="1 sounds of 10 tokens each, but data.max_length is 9"):
        task(hearing, length=9).encode([HEARD])


def test_tasks_and_networks_must_fit(hearing: Path, language_models: dict[str, Path], checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="transcription needs an encoder–decoder that reads sounds"):
        task(language_models["bart"])
    with pytest.raises(ValueError, match="summarization needs a network of words"):
        task(hearing, TaskConfig.get_choice_class("summarization")())
    made = task(hearing, ClassificationConfig(labels=["a", "b"]))
    assert made.context.kind == "sound"
    pixels = made.context.pixels
    assert pixels is not None and pixels(HEARD.sounds[0]).shape == (20, 8)


def test_scores_are_error_rates_beside_the_most_frequent_transcript(hearing: Path) -> None:
    made = task(hearing)
    cases = made.encode([HEARD, replace(HEARD, output="bad"), replace(HEARD, output="bad")])
    found = made.baselines(cases, cases)["most frequent transcript"]
    assert found.metrics == {"WER": pytest.approx(3 / 5), "CER": pytest.approx(10 / 17)}
    assert found.cases["sentence-WER"].tolist() == [1.0, 0.0, 0.0]
    assert found.corpus["WER"].value(np.array([1, 2])) == 0.0
