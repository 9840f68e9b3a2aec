"""Opens a run directory or a HuggingFace folder for evaluation and inference; no other code opens them.

run = Run.open("runs/films")                                       # a run directory: its best checkpoint
run = Run.open("runs/films", ["--backbone.dtype", "bfloat16"])     # overriding settings
run = Run.open("distilroberta-base", config)                       # a HuggingFace folder or hub id, untuned
scores = run.task.score(run.predict, run.data.cases(run.task, "test"))
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import jax
import numpy as np

from instructrec_jax.data.batch import Text
from instructrec_jax.distributed.mesh import DeviceMesh, fitting_mesh, make_mesh
from instructrec_jax.evaluation.predictor import predictor
from instructrec_jax.ranking.catalogue import Catalogue
from instructrec_jax.ranking.item_vectors import item_vectors
from instructrec_jax.runs.config import DEFAULT, Config, parse
from instructrec_jax.runs.data import RunData, buckets
from instructrec_jax.runs.directory import is_run_dir
from instructrec_jax.runs.model import (
    SplitModel,
    backbone_folder,
    compute_dtype,
    frozen_fingerprint,
    load_model,
    open_task,
    prepare_data,
    restored_model,
)
from instructrec_jax.tasks.base import Predict, Task
from instructrec_jax.tasks.kinds import as_ranking
from instructrec_jax.tasks.ranking.ranking_task import RankingTask
from instructrec_jax.training.checkpoint import Checkpoints

logger = logging.getLogger(__name__)


def is_run(path: str | Path) -> bool:
    """Whether a path is a run directory (rather than a HuggingFace folder or hub id).

    Raises as `directory.check_readable` for a run directory that cannot be opened.
    """
    return is_run_dir(Path(path))


def require_run(path: str | Path) -> None:
    """Raises ValueError for a path that is not a run directory."""
    if not is_run(path):
        raise ValueError(f"{path} is not a run directory: it has no config.yaml.")


def run_settings(path: str | Path, overrides: Sequence[str] = (), default: Path | None = DEFAULT) -> Config:
    """The settings of a run directory (of `default` for a HuggingFace folder), with overrides.

    A mesh that does not fit this machine's devices is replaced by one that does, unless `overrides` set the mesh.

    Args:
      overrides: as on the command line: ["--data.max_length", "64", "--config_path", "x.yaml"].
    """
    config = parse(Config, list(overrides), default=Path(path) / "config.yaml" if is_run(path) else default)
    if any(arg.startswith("--mesh") for arg in overrides):
        return config
    return replace(config, mesh=fitting_mesh(config.mesh))


@dataclass(frozen=True)
class Run:
    """An opened run directory, or an untuned HuggingFace folder; see `Run.open`.

    Attributes:
      path: the run directory or folder.
      data: the sources of its settings.
      folder: the folder with the backbone's config.json and tokenizer.
      trained: whether `path` is a run directory.
      step: step of the checkpoint to use; None: the best.
    """

    path: Path
    data: RunData
    folder: Path
    task: Task
    mesh: DeviceMesh
    trained: bool
    step: int | None = None

    @classmethod
    def open(
        cls,
        path: str | Path,
        settings: Sequence[str] | Config = (),
        *,
        step: int | None = None,
        joined: Catalogue | None = None,
        new_items: int = 0,
    ) -> "Run":
        """Opens a run directory, a HuggingFace folder or a hub id. Weights are read on first use.

        Args:
          settings: overrides as on the command line, or a whole Config.
          step: step of a run's checkpoint; None: the best.
          joined, new_items: see `runs.model.open_task`.

        Raises:
          ValueError: `path` is neither a run directory nor a HuggingFace folder, or the settings do not fit it.
        """
        config = settings if isinstance(settings, Config) else run_settings(path, settings)
        trained = is_run(path)
        folder = Path(path) / "backbone" if trained else backbone_folder(str(path))
        prepare_data(config)
        data = RunData(config)
        task = open_task(data.config, folder, joined, new_items)
        return cls(Path(path), data, folder, task, make_mesh(config.mesh), trained, step)

    @property
    def config(self) -> Config:
        return self.data.config

    @property
    def kind(self) -> str:
        """The task's name, as in `task.type`."""
        return self.config.task.name

    @property
    def checkpoint(self) -> int | None:
        """The step of the checkpoint in use; None for a HuggingFace folder."""
        if not self.trained or self.step is not None:
            return self.step
        checkpoints = Checkpoints(self.path)
        try:
            return checkpoints.best_step()
        finally:
            checkpoints.close()

    @cached_property
    def model(self) -> SplitModel:
        if self.trained:
            return restored_model(self.config, self.task, self.path, self.mesh, self.step)
        return load_model(self.config, self.task, self.folder, self.mesh)

    @cached_property
    def predict(self) -> Predict:
        """The model, ready for `task.score`. A ranking run computes the vectors of its items' texts only once."""
        predict = predictor(self.task, self.model.graphdef, self.mesh, buckets(self.config))(self.model.params)
        ranking = as_ranking(self.task)
        if not self.trained or ranking is None:
            return predict
        return _with_known_items(predict, ranking, self.path / "item_vectors", self.weights_identity())

    def weights_identity(self) -> dict[str, object]:
        """JSON that identifies a run's weights, as the cache key of item vectors."""
        folder = self.path / "checkpoints" / str(self.checkpoint)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        return {
            "checkpoint": [[str(f.relative_to(folder)), f.stat().st_size, f.stat().st_mtime_ns] for f in files],
            "frozen": frozen_fingerprint(self.path),
            "dtype": str(np.dtype(compute_dtype(self.config))),
            "quantize": self.config.backbone.quantize,
            "pooling": getattr(self.config.task, "pooling", None),
        }


def _with_known_items(predict: Predict, task: RankingTask, folder: Path, weights: dict[str, object]) -> Predict:
    """`predict` that computes the vectors of the items' texts once; a single process also caches them in `folder`."""
    known: list[np.ndarray] = []

    def remembered(
        texts: Sequence[Text], own: object = None, dropout: tuple[np.uint32, np.ndarray] | None = None
    ) -> list[np.ndarray]:
        known_texts = vars(task).get("item_texts")  # a cached property, set on first use
        if own is not None or dropout is not None or texts is not known_texts:
            return predict.run(texts, own, dropout)
        if not known and jax.process_count() > 1:  # processes may disagree on whether the file exists
            known.append(np.stack(predict(texts)))
        if not known:
            try:
                known.append(item_vectors(predict, texts, weights | {"items": task.catalogue.fingerprint()}, folder))
            except OSError as error:  # such as a read-only run directory
                logger.warning("the item vectors cannot be cached: %s", error)
                known.append(np.stack(predict(texts)))
        return list(known[0])

    return replace(predict, run=remembered)
