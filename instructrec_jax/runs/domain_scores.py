"""Whether a text is like those of training: the scores of `metrics.out_of_domain` for an opened classification run.

What a score needs to know of training and validation examples is computed once, and kept in RUN/out_of_domain as
safetensors, with what it depends on. A changed checkpoint, calibration or list of sources computes it again. The folder
may be deleted at any time.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from instructrec_jax.data.batch import Text
from instructrec_jax.distributed.heartbeat import heartbeat
from instructrec_jax.distributed.mesh import DeviceMesh
from instructrec_jax.evaluation.predictor import Rows, make_predict
from instructrec_jax.files import replacing
from instructrec_jax.metrics.out_of_domain import OF_LOGITS, ScoreName, VectorStatistics, logit_score, vector_statistics
from instructrec_jax.runs.config import Config
from instructrec_jax.runs.data import RunData, buckets
from instructrec_jax.runs.ensemble import read_ensemble
from instructrec_jax.runs.model import SplitModel
from instructrec_jax.tasks.base import Encoded, Task
from instructrec_jax.tasks.encoded_store import chosen
from instructrec_jax.tasks.prediction import Predict
from instructrec_jax.tasks.prediction import Run as Runs
from instructrec_jax.tasks.recalibration import Recalibration
from instructrec_jax.tasks.text.classification import ClassificationTask
from instructrec_jax.tasks.text.text_config import ONE_LABEL
from instructrec_jax.training.step import make_feature_step

FOLDER = "out_of_domain"
VECTORS = 10_000  # training examples at most whose vectors are kept,
BYTES = 64 << 20  # and bytes of these
logger = logging.getLogger(__name__)


class Opened(Protocol):
    """What is read of a `runs.run.Run`, which imports this module."""

    @property
    def path(self) -> Path: ...
    @property
    def config(self) -> Config: ...
    @property
    def task(self) -> Task: ...
    @property
    def data(self) -> RunData: ...
    @property
    def mesh(self) -> DeviceMesh: ...
    @property
    def model(self) -> SplitModel: ...
    @property
    def trained(self) -> bool: ...
    @property
    def fixed_shapes(self) -> bool: ...
    @property
    def members(self) -> Sequence["Opened"]: ...
    @property
    def predictor(self) -> Predict: ...
    @property
    def calibration(self) -> Recalibration | None: ...
    @property
    def domain_scores(self) -> "DomainScores": ...

    def weights_digest(self) -> str: ...


def classification(run: Opened, what: str) -> ClassificationTask:
    """The task of a run. Raises ValueError, naming `what` needs it, for one that does not give one label per text."""
    if not isinstance(run.task, ClassificationTask):
        raise ValueError(
            f"{what} is for runs that give each text one label ({', '.join(ONE_LABEL)}), but {run.path} was trained "
            f"for the task {run.config.task.name}."
        )
    return run.task


@dataclass(frozen=True)
class DomainScores:
    """The scores of an opened run.

    Raises ValueError for another task.
    """

    run: Opened

    def __post_init__(self) -> None:
        classification(self.run, "a score of the domain")

    def score(self, name: ScoreName, encoded: Sequence[Encoded], logits: np.ndarray) -> np.ndarray:
        """float64 [texts]: higher for texts like those of training.

        Args:
          logits: of these texts, as the run's `predictor` gives them, [texts, labels].
        """
        if name in OF_LOGITS:
            return logit_score(name, logits)
        return self.statistics.score(name, self.vectors([e.text for e in encoded]))

    def vectors(self, texts: Sequence[Text]) -> np.ndarray:
        """What the head reads of texts, float32 [texts, width]."""
        return np.stack(self._vectors(texts))

    @property
    def reads_vectors(self) -> bool:
        """Whether a score that reads vectors is in use, so that a service compiles their program, too."""
        return "_vectors" in vars(self)

    @cached_property
    def _vectors(self) -> Runs:
        run = self.run
        if run.members:
            raise ValueError(
                f"{run.path} is an ensemble, whose members have vectors of their own: choose the score max_probability "
                "or negative_energy, or name a member."
            )
        step = make_feature_step(run.task, run.model.graphdef, run.mesh)
        size: Rows = "ladder" if run.fixed_shapes else "fitting"
        return make_predict(
            step, run.model.params, mesh=run.mesh, buckets=buckets(run.config), per_token=False, size=size
        )

    # ---------------------------------------------------------------- what is kept

    @cached_property
    def statistics(self) -> VectorStatistics:
        """Of the vectors of training examples, of at most `VECTORS`, evenly spaced."""
        _ = self._vectors  # raises for an ensemble
        depends = {"weights": self.run.weights_digest(), "sources": _sources(self.run, "train")}
        names = "means", "precision", "vectors"
        kept = self._read("training_vectors", depends, names)
        if kept is None:
            kept = dict(zip(names, self._statistics(), strict=True))
            self._keep("training_vectors", depends, kept)
        return VectorStatistics(*(kept[name] for name in names))

    def _statistics(self) -> tuple[np.ndarray, ...]:
        if not self.run.config.data.train:
            raise ValueError(
                "the scores mahalanobis and knn need the vectors of data.train, which lists no sources: choose "
                "max_probability or negative_energy."
            )
        task = classification(self.run, "a score of the domain")
        with heartbeat(f"computing the vectors of training examples of {self.run.path}"):
            train = self.run.data.train(task)
            width = self.vectors([train[0].text]).shape[1]
            most = min(len(train), VECTORS, max(2, BYTES // (4 * width)))
            some = chosen(train, np.unique(np.linspace(0, len(train) - 1, most).astype(np.int64)))
            found = vector_statistics(self.vectors([e.text for e in some]), task.truth(some))
        return found.means, found.precision, found.vectors

    def of_validation(self, name: ScoreName) -> np.ndarray:
        """The score of each validation case, float64 [cases]. Raises ValueError where there are none."""
        depends = {
            "weights": self.run.weights_digest(),
            "calibration": repr(self.run.calibration),
            "sources": _sources(self.run, "validation"),
            "train": [] if name in OF_LOGITS else _sources(self.run, "train"),
        }
        kept = self._read(f"validation_{name}", depends, ["scores"])
        if kept is None:
            kept = {"scores": self._of_validation(name)}
            self._keep(f"validation_{name}", depends, kept)
        return kept["scores"]

    def _of_validation(self, name: ScoreName) -> np.ndarray:
        task = classification(self.run, "a score of the domain")
        cases = self.run.data.cases(task, "validation")
        if not cases:
            raise ValueError(
                "abstain.keep takes its threshold from data.validation, which lists no sources: set abstain.threshold."
            )
        with heartbeat(f"computing {name} of {len(cases):,} validation cases"):
            return self.score(name, cases, task.outputs(self.run.predictor, cases))

    @property
    def _keeps(self) -> bool:
        """Whether there is a run directory of its own, not of an ensemble that was made in memory, and one process.

        Several processes may disagree on whether a file exists, and have to compute together.
        """
        in_memory = self.run.members and read_ensemble(self.run.path) is None
        return self.run.trained and not in_memory and jax.process_count() == 1

    def _read(self, name: str, depends: object, tensors: Sequence[str]) -> dict[str, np.ndarray] | None:
        file = self.run.path / FOLDER / f"{name}.safetensors"
        if not (self._keeps and file.is_file()):
            return None
        try:
            with safe_open(file, "numpy") as opened:
                if (opened.metadata() or {}).get("depends_on") != _text(depends):
                    logger.info("%s is of other weights, calibration or data: it is computed again.", file)
                    return None
                return {each: opened.get_tensor(each) for each in tensors}
        except (SafetensorError, OSError) as error:
            logger.warning("%s: damaged (%s); computed again.", file, error)
            return None

    def _keep(self, name: str, depends: object, tensors: dict[str, np.ndarray]) -> None:
        if not self._keeps:
            return
        whole = save(
            {each: np.ascontiguousarray(value) for each, value in tensors.items()}, {"depends_on": _text(depends)}
        )

        try:
            with replacing(self.run.path / FOLDER / f"{name}.safetensors") as file:
                file.write(whole)
        except OSError as error:  # such as a read-only run directory
            logger.warning("what %s needs cannot be kept: %s", name, error)


def _sources(run: Opened, split: str) -> list[object]:
    """The settings of a split's sources, as JSON."""
    found = [asdict(source) for source in getattr(run.config.data, split)]
    shared = [asdict(run.config.data.hold_out), run.config.data.max_length, run.config.evaluation.max_examples]
    return json.loads(json.dumps([*found, shared], default=str))


def _text(depends: object) -> str:
    return json.dumps(depends, sort_keys=True)
