"""A run opened from its path: the one way from a run directory or a HuggingFace folder to a model that answers.

run = Run.open("runs/films")                                       # a run directory: its best checkpoint
run = Run.open("runs/films", ["--backbone.dtype", "bfloat16"])     # with some settings changed
run = Run.open("distilroberta-base", config)                       # a HuggingFace folder or hub id, untuned
scores = run.task.score(run.predict, run.data.cases(run.task, "test"))
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np

from instructrec_jax.data.loader import Text
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
from instructrec_jax.tasks.ranking.ranking_task import RankingTask
from instructrec_jax.training.checkpoint import Checkpoints

logger = logging.getLogger(__name__)


def is_run(path: str | Path) -> bool:
    """Whether a path names a run directory; else it may be a HuggingFace folder or hub id.

    Raises what `directory.check_readable` does of a run directory that cannot be opened.
    """
    return is_run_dir(Path(path))


def require_run(path: str | Path) -> None:
    """Raises ValueError for a path that is no run directory."""
    if not is_run(path):
        raise ValueError(f"{path} is not a run directory: it has no config.yaml.")


def run_settings(path: str | Path, overrides: Sequence[str] = (), default: Path | None = DEFAULT) -> Config:
    """The settings of a run directory (of `default` for a HuggingFace folder), some of them changed.

    A run's mesh that does not fit this machine's devices becomes one that does, unless `overrides` name a mesh.

    Args:
      overrides: as on the command line: ["--data.max_length", "64", "--config_path", "x.yaml"].
    """
    config: Config = parse(Config, list(overrides), default=Path(path) / "config.yaml" if is_run(path) else default)
    if any(arg.startswith("--mesh") for arg in overrides):
        return config
    return replace(config, mesh=fitting_mesh(config.mesh))


@dataclass(frozen=True)
class Run:
    """An opened run directory, or a HuggingFace folder as it is; see `Run.open`.

    Attributes:
      path: of the run directory or folder.
      data: its settings' sources.
      folder: config.json and tokenizer of the backbone.
      trained: whether `path` is a run directory.
      step: the checkpoint that is used; None: the best.
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
        """Opens a run directory, or a HuggingFace folder or hub id. Weights are read when they are first needed.

        Args:
          settings: overrides as on the command line, or all settings.
          step: which checkpoint of a run directory; None: the best.
          joined, new_items: see `runs.model.open_task`.

        Raises:
          ValueError: neither a run directory nor a HuggingFace folder, or settings that do not fit it.
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
        """The task's name, as `task.type` has it."""
        return str(self.config.task.get_choice_name(type(self.config.task)))

    @property
    def checkpoint(self) -> int | None:
        """The step of the checkpoint that is used; None for a HuggingFace folder."""
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
        """The model as its task scores with it. A ranking run computes the vectors of its items' texts once."""
        predict = predictor(self.task, self.model.graphdef, self.mesh, buckets(self.config))(self.model.params)
        if not self.trained or not isinstance(self.task, RankingTask):
            return predict
        return _with_known_items(predict, self.task, self.path / "item_vectors", self.weights_identity())

    def weights_identity(self) -> dict[str, Any]:
        """What tells a run directory's weights from any others: plain JSON for the name of a file with vectors."""
        folder = self.path / "checkpoints" / str(self.checkpoint)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        return {
            "checkpoint": [[str(f.relative_to(folder)), f.stat().st_size, f.stat().st_mtime_ns] for f in files],
            "frozen": frozen_fingerprint(self.path),
            "dtype": str(np.dtype(compute_dtype(self.config))),
            "quantize": self.config.backbone.quantize,
            "pooling": getattr(self.config.task, "pooling", None),
        }


def _with_known_items(predict: Predict, task: RankingTask, folder: Path, weights: dict[str, Any]) -> Predict:
    """The same, but vectors of the items' texts are computed once and kept in `folder` (by a process that is alone)."""
    known: list[np.ndarray] = []

    def remembered(texts: Sequence[Text], *, given: Any = None, **arrays: Any) -> Any:
        own: Any = vars(task).get("item_texts")  # made when a task first asks for them
        if given or arrays or texts is not own:
            return predict(texts, given=given, **arrays)
        if not known and jax.process_count() > 1:  # whether a file is there, they may see differently
            known.append(np.stack(predict(texts)))
        if not known:
            try:
                known.append(item_vectors(predict, texts, weights | {"items": task.catalogue.fingerprint()}, folder))
            except OSError as error:  # a run directory that is read-only, say
                logger.warning("the item vectors are not kept for the next time: %s", error)
                known.append(np.stack(predict(texts)))
        return known[0]

    return replace(predict, run=remembered)
