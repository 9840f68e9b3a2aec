"""Settings of runs that take seconds: short examples, one batch shape, the tiny checkpoint."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from helpers import SUBJECTS, task_config

import instructrec_jax
from instructrec_jax.backbones.backbone_config import BackboneConfig
from instructrec_jax.compression import compress as compression
from instructrec_jax.compression.measure import Speed
from instructrec_jax.compression.quantization import Quantization
from instructrec_jax.data.data_config import DataConfig
from instructrec_jax.data.example import Example
from instructrec_jax.data.source_config import SourceConfig
from instructrec_jax.distributed.mesh import make_mesh
from instructrec_jax.evaluation.evaluation_config import EvaluationConfig
from instructrec_jax.files import read_jsonl, write_jsonl
from instructrec_jax.runs import model as models
from instructrec_jax.runs.config import Config, to_dict, to_yaml
from instructrec_jax.runs.run import Run
from instructrec_jax.tasks.generation.writing_config import LanguageModelConfig
from instructrec_jax.train import train
from instructrec_jax.training.checkpoint import Checkpoints
from instructrec_jax.training.interrupt import Interrupt, Interrupted
from instructrec_jax.training.progress import Progress
from instructrec_jax.training.state import split_params
from instructrec_jax.training.tracking import TIMING_FIELDS
from instructrec_jax.training.training_config import CheckpointConfig, OptimizerConfig, TrackingConfig

TOLERANCE = 1e-5  # sums over devices are added in another order; losses are about 2, parameters about 0.1
ROUNDING = 2e-6  # relative, of larger numbers: a gradient norm of 18 has float32 steps of 2e-6
WORDS = "the a film book good bad dull bright about old new".split()


def write_examples(path: Path, kind: str, count: int, seed: int) -> Path:
    """Examples of five words, so that every batch has the same shape."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(count):
        subject, words = str(rng.choice(SUBJECTS)), [str(word) for word in rng.choice(WORDS, 4)]
        output: Any = {
            "classification": subject,
            "regression": float(len(" ".join(words))),
            "masked_lm": None,
            "retrieval": f"item-{SUBJECTS.index(subject)}",
            "sequence": f"item-{SUBJECTS.index(subject)}",
        }[kind]
        history = tuple(f"item-{i}" for i in 5 + rng.permutation(7)[:3]) if kind == "sequence" else ()
        text = " ".join([*words, subject])
        made.append(Example(instruction=text, output=output, history=history, id=f"{path.stem}-{number}"))
    write_jsonl(path, [{"output": None} | example.to_record() for example in made])
    return path


def train_until(config: Config, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trains until Ctrl-C is pressed after a step, which is saved."""
    after = Interrupt.after

    def press(self: Interrupt, now: int) -> bool:
        if now == step:
            signal.raise_signal(signal.SIGINT)
        return after(self, now)

    with monkeypatch.context() as patch:
        patch.setattr(Interrupt, "after", press)
        with pytest.raises(Interrupted):
            train(config)


def tiny_run(kind: str, checkpoint: Path, folder: Path, **changes: Any) -> Config:
    """A run of 6 steps in `folder`/run; `changes` replace settings by their dotted names, with __ for the dot."""
    sources = {
        split: [SourceConfig(path=str(write_examples(folder / f"{split}.jsonl", kind, count, seed)))]
        for seed, (split, count) in enumerate({"train": 24, "validation": 8, "test": 12}.items())
    }
    config = Config(
        run_dir=str(folder / "run"),
        steps=6,
        backbone=BackboneConfig(path=str(checkpoint), dtype="float32"),
        task=task_config(kind, folder / "catalogue"),
        data=DataConfig(**sources, batch_size=8, max_length=32),
        optimizer=OptimizerConfig(learning_rate=3e-3),
        evaluation=EvaluationConfig(every=2),
        checkpoint=CheckpointConfig(every=2),
        tracking=TrackingConfig(log_every=1, tensorboard=False),
    )
    return changed(config, **changes)


def language_run(network: Path, folder: Path, **changes: Any) -> Config:
    """A `tiny_run` whose network learns to write the labels."""
    task = LanguageModelConfig(template="plain")
    return tiny_run("classification", network, folder, **({"task": task, "data__max_length": 64} | changes))


def changed(config: Config, **changes: Any) -> Config:
    for name, value in changes.items():
        room, _, setting = name.rpartition("__")
        config = replace(
            config, **({room: replace(getattr(config, room), **{setting: value})} if room else {name: value})
        )
    return config


def verb(name: str, *arguments: Any) -> list[str]:
    return [sys.executable, "-m", f"instructrec_jax.{name}", *map(str, arguments)]


def start(command: list[str], cache: Path) -> subprocess.Popen:
    """A process in the folder that this package is imported from, with this one's devices.

    What it compiles is kept in `cache`, so that starting it again is quick.
    """
    names = {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    settings: dict[str, Any] = {"cwd": Path(instructrec_jax.__file__).parents[1], "env": os.environ | names}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **settings)


def write_settings(config: Config, path: Path) -> Path:
    path.write_text(to_yaml(config), encoding="utf-8")
    return path


def rows(run_dir: str | Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what may differ between two equal runs."""
    lines = read_jsonl(Path(run_dir) / "metrics.jsonl")
    return [{name: value for name, value in row.items() if name not in TIMING_FIELDS} for row in lines]


def assert_same_lines(run_dir: Path, expected: Path) -> None:
    """The same steps on the same batches (their tokens are equal), with the same numbers but for rounding."""
    mine, theirs = rows(run_dir), rows(expected)
    assert [row.keys() for row in mine] == [row.keys() for row in theirs]
    for row, other in zip(mine, theirs, strict=True):
        exact = ("kind", "step", "tokens", "skipped_updates", "learning_rate")
        assert [row.get(name) for name in exact] == [other.get(name) for name in exact]
        for name in row.keys() - set(exact):
            assert row[name] == pytest.approx(other[name], abs=TOLERANCE, rel=ROUNDING), (row, other)


def final_parameters(run_dir: str | Path, step: int) -> Any:
    opened = Run.open(Path(run_dir))
    config, task, mesh = opened.config, opened.task, opened.mesh
    return jax.device_get(models.restored_model(config, task, Path(run_dir), mesh, step).params)


def compressed_run(path: Path, out: Path, how: Quantization, **options: Any) -> Path:
    """What `compress` writes, without the measurements, which take most of its time."""

    def measured(*_: Any) -> compression.Compressed:
        return compression.Compressed(1, 1, (1, 1), None, Speed("texts/s", 1.0, 1.0, 1.0), ())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compression, "measured", measured)
        compression.compress(path, out, how, **options)
    return out


def untrained_run(run: Path, task: Any, network: Path, max_length: int = 192, **changes: Any) -> Path:
    """A run directory as training leaves it, with parameters as they were drawn."""
    backbone = BackboneConfig(str(network), dtype="float32")
    data = DataConfig(max_length=max_length, batch_size=8)
    config = changed(Config(run_dir=str(run), backbone=backbone, task=task, data=data), **changes)
    built = models.open_task(config, network)
    model = models.load_model(config, built, network, make_mesh(config.mesh))
    trained, frozen = split_params(model.params, model.is_frozen)
    models.keep_declarations(network, run / "backbone", built, needs_weights=bool(frozen))
    checkpoints = Checkpoints(run, config.checkpoint)
    checkpoints.save(1, {"params": trained}, Progress("data"), to_dict(config), None)
    checkpoints.close()
    write_settings(config, run / "config.yaml")
    return run
