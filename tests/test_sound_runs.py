"""A classifier of sounds and a transcriber, from training to prediction and export."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import transformers
from tiny_runs import rows

from instructrec_jax import predict, train
from instructrec_jax.answering.exporting import export
from instructrec_jax.backbones.backbone_config import BackboneConfig
from instructrec_jax.data.data_config import DataConfig
from instructrec_jax.data.source_config import SourceConfig
from instructrec_jax.evaluation.evaluation_config import EvaluationConfig
from instructrec_jax.files import read_jsonl, write_jsonl
from instructrec_jax.metrics.speech import error_rates
from instructrec_jax.runs.config import Config
from instructrec_jax.runs.run import Run
from instructrec_jax.tasks import ClassificationConfig, TranscriptionConfig
from instructrec_jax.training.training_config import CheckpointConfig, OptimizerConfig, TrackingConfig

WORDS = {"low": 300, "middle": 900, "high": 2700}  # Hz


def write_tones(folder: Path, split: str, count: int) -> Path:
    """Tones of three pitches in some noise, as files that a JSONL file names."""
    (folder / split).mkdir(parents=True)
    records = []
    for number in range(count):
        word = list(WORDS)[number % 3]
        rng = np.random.default_rng([len(split), number])
        tone = np.sin(2 * np.pi * WORDS[word] * rng.uniform(0.9, 1.1) * np.arange(8000) / 16000)
        soundfile.write(folder / split / f"{number}.flac", 0.4 * tone + rng.normal(0, 0.05, 8000), 16000)
        records.append({"audio": f"{split}/{number}.flac", "output": word})
    write_jsonl(folder / f"{split}.jsonl", records)
    return folder / f"{split}.jsonl"


def sound_run(network: Path, folder: Path, task: Any, steps: int, **backbone: Any) -> Config:
    sizes = {"train": 24, "validation": 6, "test": 9}
    sources = {split: [SourceConfig(path=str(write_tones(folder / "data", split, n)))] for split, n in sizes.items()}
    return Config(
        run_dir=str(folder / "run"),
        steps=steps,
        backbone=BackboneConfig(path=str(network), dtype="float32", **backbone),
        task=task,
        data=DataConfig(**sources, batch_size=8, max_length=20, store=str(folder / "store")),
        optimizer=OptimizerConfig(learning_rate=1e-2),
        evaluation=EvaluationConfig(every=steps),
        checkpoint=CheckpointConfig(every=steps),
        tracking=TrackingConfig(log_every=1, tensorboard=False),
    )


def predicted(config: Config, out: Path) -> list[dict[str, Any]]:
    predict.main([config.run_dir, "--input", config.data.test[0].path, "--out", str(out)])
    return read_jsonl(out)


def features(folder: Path, config: Config) -> torch.Tensor:
    """What transformers' extractor of the exported folder hears in the test."""
    source = Path(config.data.test[0].path)
    heard = [soundfile.read(source.parent / row["audio"])[0] for row in read_jsonl(source)]
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    return extractor(heard, sampling_rate=16000, return_tensors="pt")["input_features"]


def test_a_classifier_learns_predicts_and_is_exported(hearing: Path, tmp_path: Path) -> None:
    config = sound_run(hearing, tmp_path, ClassificationConfig(), 150)
    train.train(config)
    losses = [row["loss"] for row in rows(config.run_dir) if row["kind"] == "train"]
    assert losses[-1] < losses[0] / 2
    assert "nearest mean sound" in (Path(config.run_dir) / "evaluation.json").read_text()
    written = predicted(config, tmp_path / "out.jsonl")
    run = Run.open(Path(config.run_dir))
    accuracy = np.mean([row["prediction"] == row["output"] for row in written])
    assert accuracy == run.evaluate(Path(config.data.test[0].path)).metrics["accuracy"] > 0.9
    export(Path(config.run_dir), tmp_path / "hf")
    theirs = transformers.AutoModelForAudioClassification.from_pretrained(tmp_path / "hf").eval()
    with torch.no_grad():
        shares = theirs(features(tmp_path / "hf", config)).logits.softmax(-1).numpy()
    assert theirs.config.id2label == dict(enumerate(sorted(WORDS)))
    for row, expected in zip(written, shares, strict=True):
        assert list(row["probabilities"].values()) == pytest.approx(expected.tolist(), abs=1e-4)


def test_a_transcriber_learns_predicts_and_is_exported(hearing: Path, tmp_path: Path) -> None:
    config = sound_run(hearing, tmp_path, TranscriptionConfig(max_new_tokens=8), 100)
    train.train(config)
    losses = [row["loss"] for row in rows(config.run_dir) if row["kind"] == "train"]
    assert losses[-1] < losses[0] / 2
    written = predicted(config, tmp_path / "out.jsonl")
    run = Run.open(Path(config.run_dir))
    metrics = run.evaluate(Path(config.data.test[0].path)).metrics
    rates = error_rates([row["prediction"] for row in written], [[row["output"]] for row in written]).metrics()
    assert metrics["WER"] == rates["WER"].value(np.arange(len(written)))
    # the tests' tokenizer joins no pieces of words
    assert np.mean([row["prediction"].replace(" ##", "") == row["output"] for row in written]) > 0.8
    with pytest.raises(ValueError, match="transcription reads sounds, which have no prompt"):
        run.task.prompts([])
    export(Path(config.run_dir), tmp_path / "hf")
    theirs = transformers.AutoModelForSpeechSeq2Seq.from_pretrained(tmp_path / "hf").eval()
    tokens = theirs.generate(features(tmp_path / "hf", config), max_new_tokens=8, do_sample=False)
    said = run.task.context.tokenizer.batch_decode(tokens, skip_special_tokens=True)
    assert [text.strip() for text in said] == [row["prediction"] for row in written]
