"""From a run directory to something that scores the items of a catalogue for anybody's request."""

import logging
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np

from instructrec_jax.answering.evidence import words_of
from instructrec_jax.answering.new_items import with_new_items
from instructrec_jax.answering.phrasing import wording_of
from instructrec_jax.data.example import Example
from instructrec_jax.distributed.mesh import DeviceMesh, fitting_mesh, make_mesh
from instructrec_jax.evaluation.predictor import predictor
from instructrec_jax.files import read_json
from instructrec_jax.ranking.catalogue import has_splits
from instructrec_jax.ranking.fusion import hybrid, mask, retrieve
from instructrec_jax.ranking.index import ItemIndex
from instructrec_jax.ranking.item_vectors import item_vectors
from instructrec_jax.runs import assembly as assemble
from instructrec_jax.runs import data as assemble_data
from instructrec_jax.runs.config import Config, parse
from instructrec_jax.tasks.base import Encoded, Predict, Task
from instructrec_jax.tasks.ranking.ranking_task import RankingConfig, RankingTask, products
from instructrec_jax.training.checkpoint import Checkpoints

logger = logging.getLogger(__name__)


class Ranker:
    """A run directory whose task ranks a catalogue, opened to score items.

    Args:
      settings: those of the run, changed; None: as they are.
      items: file with further items (see `new_items`).

    Attributes:
      hybrid: another scorer (encoded -> float [cases, items]) and its weight in the scores, see `mix_with`.
    """

    hybrid: tuple[Callable[[Sequence[Encoded]], np.ndarray], float] | None = None

    def __init__(
        self, run: Path, settings: Config | None = None, *, step: int | None = None, items: Path | None = None
    ):
        if not (run / "config.yaml").is_file():
            raise ValueError(f"{run} is not a run directory: it has no config.yaml.")
        config = settings or run_settings(run, [])
        if not isinstance(config.task, RankingConfig):
            kind = config.task.get_choice_name(type(config.task))
            raise ValueError(
                f"{run} was trained for the task {kind}, which ranks no catalogue, so it cannot recommend."
            )
        self.folder = config.task.catalogue
        self.task = self._open_task(config, run / "backbone", items)
        self.mesh = make_mesh(config.mesh)
        self.predict = predict_of_run(run, config, self.task, self.mesh, step)
        self.catalogue = self.task.catalogue
        self.wording = wording_of(self.folder)

    def _open_task(self, config: Config, backbone: Path, items: Path | None) -> RankingTask:
        task: Any = assemble.open_task(config, backbone)
        if items is None:
            return task
        if not getattr(config.task, "text", True):
            raise ValueError("this run knows items by their numbers alone (task.text false), so none can join them.")
        old = task.catalogue
        with tempfile.TemporaryDirectory() as joined:  # a task reads its catalogue from a folder
            with_new_items(old, items).save(joined)
            if has_splits(self.folder):
                shutil.copytree(Path(self.folder) / "splits", Path(joined) / "splits")
            settings: Any = replace(task.config, catalogue=joined)
            data = replace(config.data, prepare=None)
            task = assemble.open_task(replace(config, task=settings, data=data), backbone)
        task.new_items = len(task.catalogue) - len(old)
        return task

    @property
    def tells_history(self) -> bool:
        """Whether the history has to stand in the instruction's words."""
        return not self.task.reads_history or self.wording.always_told

    def encode(self, example: Example) -> tuple[Encoded, list[str]]:
        """The example as the task reads it, and what of it had to be cut."""
        before = dict(self.task.context.counts)
        found = self.task.encode([example])
        if not found:
            raise ValueError(f"{example.id} is longer than data.max_length, and data.truncate is drop.")
        counts = {what: n - before.get(what, 0) for what, n in self.task.context.counts.items()}
        return found[0], [f"{what}: {n}." for what, n in counts.items() if n]

    def unread(self, text: str) -> list[str]:
        """Words that are nothing but unknown tokens to the model, which cannot tell one from another."""
        tokenizer, words = self.task.context.tokenizer, words_of(text)
        if tokenizer.unk_token_id is None or not words:
            return []
        found = tokenizer(words, add_special_tokens=False, verbose=False)["input_ids"]
        return [word for word, ids in zip(words, found, strict=True) if set(ids) <= {tokenizer.unk_token_id}]

    def mix_with(self, other: str, weight: float, items: Path | None = None) -> None:
        """From now on scores are a hybrid with another run, or with a simple method by its name (coKNN ...).

        Args:
          weight: of the other, as `evaluate --hybrid` found it on validation.
          items: as of this one.
        """
        if not 0 <= weight <= 1:
            raise ValueError(f"the weight of {other} lies between 0 and 1, but is {weight}.")
        if not self.task.retrieves:
            raise ValueError("a hybrid mixes scores of the whole catalogue, which this run does not give.")
        if Path(other).is_dir():
            second = Ranker(Path(other), items=items)
            if second.catalogue.ids != self.catalogue.ids or not second.task.retrieves:
                raise ValueError(f"{other} does not rank the items of {self.folder}, so there is no hybrid.")
            self.hybrid = lambda encoded: second._every([second.encode(e.example)[0] for e in encoded]), weight
        else:
            self.task.simple_scores(other, [])  # an unknown name is an error now
            self.hybrid = lambda encoded: self.task.simple_scores(other, encoded)(slice(0, len(encoded))), weight

    @cached_property
    def vectors(self) -> np.ndarray:
        """float32 [items, size]"""
        return self.task.item_vectors(self.predict)

    @cached_property
    def index(self) -> ItemIndex:
        return ItemIndex(self.vectors, mesh=self.mesh)

    def _every(self, encoded: Sequence[Encoded], seen: Sequence[np.ndarray] | None = None) -> np.ndarray:
        """Scores of the whole catalogue, float [cases, items]; −inf for what is `seen`."""
        if self.task.has_vectors:
            own = self.task.query_vectors(self.predict, encoded) @ self.vectors.T
        else:
            own = self.task.score_items(self.predict, encoded)(slice(0, len(encoded)))
        own = mask(own, seen)
        return own if self.hybrid is None else hybrid(own, self.hybrid[0](encoded), self.hybrid[1])

    def score(self, encoded: Sequence[Encoded], candidates: np.ndarray) -> np.ndarray:
        """Scores of given items, float [cases, k] for item numbers int [cases, k]."""
        if self.hybrid is not None:
            return np.take_along_axis(self._every(encoded), candidates, axis=1)
        if self.task.has_vectors:
            return products(self.task.query_vectors(self.predict, encoded), self.vectors, candidates)
        return self.task.score_candidates(self.predict, encoded, candidates)

    def best(self, encoded: Sequence[Encoded], k: int, allowed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The k best of the allowed items, best first, and their scores: int and float64 [cases, k].

        Args:
          allowed: bool [cases, items]. Where fewer than k are, the rest has the score −inf.
        """
        if self.hybrid is None and self.task.has_vectors:
            hidden = [np.flatnonzero(~row) for row in allowed]
            queries = self.task.query_vectors(self.predict, encoded)
            items, scores = self.index.search(queries, min(k, len(self.catalogue)), exclude=hidden)
            return np.maximum(items, 0), scores.astype(np.float64)
        # A hybrid is standardised over what competes, as `evaluate` does it: without the history's own items.
        seen = [e.target.history[~row[e.target.history]] for e, row in zip(encoded, allowed, strict=True)]
        scores = np.where(allowed, self._every(encoded, seen), -np.inf)
        items = retrieve(scores, k)
        return items, np.take_along_axis(scores, items, 1)


def run_settings(run: Path, overrides: list[str]) -> Config:
    """The settings of a run directory, with some of them changed; its mesh fits this machine."""
    config: Config = parse(Config, overrides, default=run / "config.yaml")
    if any(arg.startswith("--mesh") for arg in overrides):
        return config
    return replace(config, mesh=fitting_mesh(config.mesh))


def predict_of_run(run: Path, config: Config, task: Task, mesh: DeviceMesh, step: int | None = None) -> Predict:
    """The predictor of a run's checkpoint (None: the best); of a ranking task it computes its items' vectors once."""
    model = assemble.restored_model(config, task, run, mesh, step)
    predict = predictor(task, model.graphdef, mesh, assemble_data.buckets(config))(model.params)
    if not isinstance(task, RankingTask):
        return predict
    return with_known_items(predict, task, run / "item_vectors", weights_of(run, config, step))


def weights_of(run: Path, config: Config, step: int | None) -> dict[str, Any]:
    """What tells a run's weights from any others: plain JSON for the name of a file with vectors."""
    checkpoints = Checkpoints(run)
    chosen = checkpoints.best_step() if step is None else step
    checkpoints.close()
    folder = run / "checkpoints" / str(chosen)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    frozen = run / "backbone" / "weights.json"
    return {
        "checkpoint": [[str(f.relative_to(folder)), f.stat().st_size, f.stat().st_mtime_ns] for f in files],
        "frozen": read_json(frozen)["fingerprint"] if frozen.is_file() else None,
        "dtype": str(np.dtype(assemble.compute_dtype(config))),
        "quantize": config.backbone.quantize,
        "pooling": getattr(config.task, "pooling", None),
    }


def with_known_items(predict: Predict, task: RankingTask, folder: Path, weights: dict[str, Any]) -> Predict:
    """The same, but vectors of the items' texts are computed once and kept in `folder` (by a process that is alone)."""
    known: list[np.ndarray] = []

    def remembered(texts: Any, *, given: Any = None, **arrays: Any) -> Any:
        own: Any = vars(task).get("item_texts")  # made when a task first asks for them
        if given or arrays or texts is not own:
            return predict(texts, given=given, **arrays)
        if not known and jax.process_count() > 1:  # whether a file is there, they may see differently
            known.append(np.stack(predict(texts)))
        if not known:
            try:
                known.append(item_vectors(predict, texts, weights | {"items": task.catalogue.fingerprint()}, folder))
            except OSError as error:  # someone else's run, say
                logger.warning("the item vectors are not kept for the next time: %s", error)
                known.append(np.stack(predict(texts)))
        return known[0]

    return replace(predict, run=remembered)
