"""Short runs on twelve pictures with captions: shared by the tests of runs that draw."""

from pathlib import Path
from typing import Any

from helpers import examples
from task_cases import drawn

from instructrec_jax.adapters.adapter_config import LoraConfig
from instructrec_jax.backbones.backbone_config import BackboneConfig
from instructrec_jax.data.data_config import DataConfig
from instructrec_jax.data.fields import FieldsConfig
from instructrec_jax.data.source_config import SourceConfig
from instructrec_jax.evaluation.evaluation_config import EvaluationConfig
from instructrec_jax.files import write_jsonl
from instructrec_jax.runs.config import Config
from instructrec_jax.training.training_config import CheckpointConfig, OptimizerConfig, TrackingConfig


def sources(folder: Path, fields: FieldsConfig) -> list[SourceConfig]:
    folder.mkdir(exist_ok=True)
    records = []
    for number, example in enumerate(examples("text_to_image", 12)):
        (folder / f"{number}.png").write_bytes(drawn(example, number).images[0].data)
        records.append({"image": f"{number}.png", "caption": example.instruction})
    write_jsonl(folder / "rows.jsonl", records)
    return [SourceConfig(path=str(folder / "rows.jsonl"), fields=fields)]


def a_run(folder: Path, network: Path, task: Any, fields: FieldsConfig, length: int, rank: int = 0) -> Config:
    data = sources(folder / "data", fields)
    return Config(
        run_dir=str(folder / task.name),
        steps=4,
        backbone=BackboneConfig(path=str(network), dtype="float32"),
        task=task,
        lora=LoraConfig(rank=rank),
        data=DataConfig(train=data, test=data, batch_size=6, max_length=length, store=str(folder / "store")),
        optimizer=OptimizerConfig(learning_rate=3e-3),
        evaluation=EvaluationConfig(every=0),
        checkpoint=CheckpointConfig(every=2),
        tracking=TrackingConfig(log_every=1, tensorboard=False),
    )
