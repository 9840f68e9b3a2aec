"""data.unlabeled and semi_supervised in whole runs: resumed exactly, refused where they cannot be, and logged."""

import shutil
from pathlib import Path
from typing import Any

from helpers import assert_close
from tiny_runs import changed, final_parameters, rows, tiny_run, write_examples

from instructrec_jax import train
from instructrec_jax.augmentation.augmenter import AugmentConfig
from instructrec_jax.data.source_config import SourceConfig
from instructrec_jax.runs.config import Config
from instructrec_jax.training.training_config import SemiSupervisedConfig

AUGMENT = AugmentConfig(delete=0.2, swap=0.3, copies=2)
HOW = SemiSupervisedConfig("fixmatch", ratio=1.5, threshold=0.2, teacher_decay=0.9, align=True, ramp_up=4)


def semi_run(
    checkpoint: Path, folder: Path, how: SemiSupervisedConfig = HOW, kind: str = "classification", **changes: Any
) -> Config:
    config = tiny_run(kind, checkpoint, folder, **{"evaluation__every": 0, **changes})
    unlabeled = SourceConfig(str(write_examples(folder / "unlabeled.jsonl", kind, 40, 9)), augment=AUGMENT)
    return changed(config, data__unlabeled=[unlabeled], semi_supervised=how)


def test_a_resumed_run_learns_the_same(checkpoint: Path, tmp_path: Path) -> None:
    """The exponential average of the parameters and the running averages are in the checkpoint."""
    whole = semi_run(checkpoint, tmp_path, steps=8, checkpoint__keep_last=9)
    train.train(whole)
    again = changed(whole, run_dir=str(tmp_path / "again"))
    shutil.copytree(whole.run_dir, again.run_dir)
    for step in (6, 8):
        shutil.rmtree(Path(again.run_dir) / "checkpoints" / str(step), ignore_errors=True)
    train.train(again)
    assert rows(again.run_dir) == rows(whole.run_dir)
    assert_close(final_parameters(again.run_dir, 8), final_parameters(whole.run_dir, 8), atol=0)
    line = rows(whole.run_dir)[-1]
    assert {"unlabeled_loss", "pseudo_share", "pseudo_threshold", "pseudo_accuracy"} <= set(line)
