"""Opens a run directory or a HuggingFace folder for evaluation and inference; no other code opens them.

run = Run.open("runs/films")                                       # a run directory: its best checkpoint
run = Run.open("runs/films", ["--backbone.dtype", "bfloat16"])     # overriding settings
run = Run.open("distilroberta-base", config)                       # a HuggingFace folder or hub id, untuned
run.predict(["a text", "another"])                                 # answers to new texts
scores = run.task.score(run.predictor, run.data.cases(run.task, "test"))
"""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import cast

import jax
import numpy as np

from instructrec_jax.data.batch import Text
from instructrec_jax.data.example import Example
from instructrec_jax.data.fields import FieldMapper, FieldsConfig
from instructrec_jax.data.listed import check_type, listed
from instructrec_jax.data.masked import ExampleMask
from instructrec_jax.data.media.picture import Picture
from instructrec_jax.data.media.picture_references import read_pictures
from instructrec_jax.data.source_config import SourceConfig
from instructrec_jax.data.usual_columns import RecordMapper
from instructrec_jax.distributed.heartbeat import heartbeat
from instructrec_jax.distributed.mesh import DeviceMesh, fitting_mesh, make_mesh
from instructrec_jax.evaluation.evaluator import score_row
from instructrec_jax.evaluation.predictor import Rows, predictor
from instructrec_jax.evaluation.results import Results, results_of
from instructrec_jax.files import read_json
from instructrec_jax.metrics.conformal import SetKind
from instructrec_jax.ranking.catalogue import Catalogue
from instructrec_jax.ranking.item_vectors import item_vectors
from instructrec_jax.runs.abstention import Abstention, judge_of, open_abstention
from instructrec_jax.runs.bucket import local_run
from instructrec_jax.runs.config import DEFAULT, Config, parse
from instructrec_jax.runs.data import RunData, buckets, example_mask
from instructrec_jax.runs.directory import check_not_training, is_run_dir
from instructrec_jax.runs.domain_scores import DomainScores
from instructrec_jax.runs.ensemble import (
    FILE,
    averaged,
    check_calibration,
    check_members,
    check_overrides,
    joint_model,
    mixture_of,
    named,
    read_ensemble,
)
from instructrec_jax.runs.given import relocated
from instructrec_jax.runs.kept_calibration import read_calibration
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
from instructrec_jax.runs.predictions import (
    ANYWHERE,
    Asker,
    Predictions,
    Record,
    fields_of,
    rows_of,
    source_task,
    with_targets,
)
from instructrec_jax.runs.vectors import Embedder, embedder
from instructrec_jax.tasks.averaging import Mixture
from instructrec_jax.tasks.base import Task
from instructrec_jax.tasks.kinds import as_ranking
from instructrec_jax.tasks.prediction import Predict
from instructrec_jax.tasks.ranking.ranking_task import RankingTask
from instructrec_jax.tasks.ranking.retrieval import RetrievalTask
from instructrec_jax.tasks.recalibration import Recalibration
from instructrec_jax.training.checkpoint import CHECKSUMS, Checkpoints

logger = logging.getLogger(__name__)


def _picture(record: Mapping[str, object]) -> Picture:
    """The picture of {"image": ...}. Raises ValueError for another record."""
    pictures = read_pictures(record.get("image"), ANYWHERE)
    if set(record) != {"image"} or len(pictures) != 1:
        raise ValueError(
            f"texts is a record with the fields {[*record]} and {len(pictures)} pictures: give a text, or "
            "{'image': one picture}."
        )
    return pictures[0]


def is_run(path: str | Path) -> bool:
    """Whether a path is a run directory (rather than a HuggingFace folder or hub id).

    Raises as `directory.check_readable` for a run directory that cannot be opened.
    """
    return is_run_dir(local_run(path))


def require_run(path: str | Path) -> None:
    """Raises ValueError for a path that is not a run directory."""
    if not is_run(path):
        raise ValueError(f"{path} is not a run directory: it has no config.yaml.")


def require_finished(path: str | Path, step: int | None) -> None:
    """Raises ValueError for a path that is not a run directory, or a run in training without a checkpoint's `step`."""
    path = local_run(path)
    require_run(path)
    if step is None:
        check_not_training(path)
    kept = read_ensemble(path)
    for member in kept["members"] if kept is not None else ():
        with named(path, member["run"]):
            require_finished(member["run"], member["checkpoint"])


def run_settings(path: str | Path, overrides: Sequence[str] = (), default: Path | None = DEFAULT) -> Config:
    """The settings of a run directory (of `default` for a HuggingFace folder), with overrides.

    A mesh that does not fit this machine's devices is replaced by one that does, unless `overrides` set the mesh. Other
    sources of a run (`--data.test new.csv`) have the fields and the task of its data.train, unless they set their own.

    Args:
      overrides: as on the command line: ["--data.max_length", "64", "--config_path", "x.yaml"].
    """
    path = local_run(path)
    if is_run(path) and read_ensemble(path) is not None:
        check_overrides(path, overrides)
    config = parse(Config, list(overrides), default=path / "config.yaml" if is_run(path) else default)
    config = _read_alike(relocated(config, path), overrides) if is_run(path) else config
    if any(arg.startswith("--mesh") for arg in overrides):
        return config
    return replace(config, mesh=fitting_mesh(config.mesh))


def open_member(path: Path, overrides: Sequence[str], step: int | None) -> "Run":
    """Opens a run for an ensemble. Raises ValueError naming a path that is not a finished run, or is an ensemble."""
    require_finished(path, step)
    check_overrides(path, overrides)
    run = Run.open(path, overrides, step=step)
    if run.members:
        raise ValueError(f"{path} is an ensemble already: name its members.")
    return run


def member_settings(path: str, kept: Config, config: Config) -> Config:
    """The settings of a member of an ensemble: its own, on the mesh of the ensemble.

    Args:
      kept, config: settings of the ensemble, without and with what is overridden. A length of texts that the member
        shares is overridden for it, too.
    """
    own = run_settings(path)
    shared = (own.data.max_length, own.data.truncate) == (kept.data.max_length, kept.data.truncate)
    lengths = config.data if shared else own.data
    data = replace(own.data, max_length=lengths.max_length, truncate=lengths.truncate)
    calibration = own.evaluation.calibration and config.evaluation.calibration
    return replace(own, mesh=config.mesh, data=data, evaluation=replace(own.evaluation, calibration=calibration))


def _read_alike(config: Config, overrides: Sequence[str]) -> Config:
    """The settings with the fields and the task of data.train's first source for the overridden sources without any."""
    given = {arg.partition("=")[0] for arg in overrides}
    if not config.data.train or "--config_path" in given:
        return config
    first = config.data.train[0]

    def alike(source: SourceConfig) -> SourceConfig:
        fields = first.fields if source.fields == FieldsConfig() else source.fields
        return replace(source, fields=fields, task=source.task or first.task)

    data = config.data
    if "--data.validation" in given:
        data = replace(data, validation=[alike(source) for source in data.validation])
    if "--data.test" in given:
        data = replace(data, test=[alike(source) for source in data.test])
    return replace(config, data=data)


@dataclass(frozen=True)
class Run:
    """An opened run directory, or an untuned HuggingFace folder; see `Run.open`.

    Attributes:
      path: the run directory or folder.
      data: the sources of its settings.
      folder: the folder with the backbone's config.json and tokenizer.
      trained: whether `path` is a run directory.
      step: step of the checkpoint to use; None: the best.
      fixed_shapes: whether texts run in batch shapes that are known before, for a service; see `Rows` "ladder".
      members, mixture: of an ensemble (see `runs.ensemble`): the averaged runs, and how.
    """

    path: Path
    data: RunData
    folder: Path
    task: Task
    mesh: DeviceMesh
    trained: bool
    step: int | None = None
    fixed_shapes: bool = False
    members: "tuple[Run, ...]" = ()
    mixture: Mixture | None = None

    @classmethod
    def open(
        cls,
        path: str | Path,
        settings: Sequence[str] | Config = (),
        *,
        step: int | None = None,
        joined: Catalogue | None = None,
        new_items: int = 0,
        fixed_shapes: bool = False,
    ) -> "Run":
        """Opens a run directory, a HuggingFace folder or a hub id. Weights are read on first use.

        Args:
          settings: overrides as on the command line, or a whole Config.
          step: step of a run's checkpoint; None: the best.
          joined, new_items: see `runs.model.open_task`.
          fixed_shapes: see the attributes.

        Raises:
          ValueError: `path` is neither a run directory nor a HuggingFace folder, or the settings do not fit it.
        """
        check_type(path, "path", (str, Path), "a run directory, a HuggingFace folder or a hub id")
        if isinstance(settings, str | Mapping):
            raise ValueError(f"settings is {settings!r}, but should be a list such as ['--data.max_length', '64'].")
        path = local_run(path)
        config = settings if isinstance(settings, Config) else run_settings(path, settings)
        trained = is_run(path)
        kept = read_ensemble(path) if trained else None
        if kept is not None and step is not None:
            raise ValueError(f"{path} is an ensemble, whose members have their own checkpoints: leave out --step.")
        folder = path / "backbone" if trained else backbone_folder(str(path))
        prepare_data(config)
        data = RunData(config)
        task = open_task(data.config, folder, joined, new_items)
        run = cls(path, data, folder, task, make_mesh(config.mesh), trained, step, fixed_shapes)
        if kept is None:
            return run
        members = []
        for member in kept["members"]:
            with named(path, member["run"]):
                own = member_settings(member["run"], run_settings(path), config)
                opened = cls.open(member["run"], own, step=member["checkpoint"], joined=joined, new_items=new_items)
                if config.evaluation.calibration:
                    check_calibration(member, opened)
                members.append(replace(opened, fixed_shapes=fixed_shapes))
        check_members([run, *members], kept["average"])
        return replace(run, members=tuple(members), mixture=mixture_of(kept, path / FILE))

    @property
    def config(self) -> Config:
        return self.data.config

    @property
    def kind(self) -> str:
        """The task's name, as in `task.type`."""
        return self.config.task.name

    @property
    def checkpoint(self) -> int | None:
        """The step of the checkpoint in use; None for a HuggingFace folder and an ensemble."""
        if not self.trained or self.members or self.step is not None:
            return self.step
        checkpoints = Checkpoints(self.path)
        try:
            return checkpoints.best_step()
        finally:
            checkpoints.close()

    @cached_property
    def model(self) -> SplitModel:
        with heartbeat(f"loading the network of {self.path}"):
            if self.members:
                return joint_model(self)
            if self.trained:
                return restored_model(self.config, self.task, self.path, self.mesh, self.step)
            return load_model(self.config, self.task, self.folder, self.mesh)

    @cached_property
    def predictor(self) -> Predict:
        """The model, ready for `task.score`. A ranking run computes the vectors of its items' texts only once."""
        return self._calibrated(self.plain_predictor)

    @cached_property
    def full_predictor(self) -> Predict:
        """The same for many texts: each length has one batch shape, whatever the number of texts of a call."""
        return self._calibrated(self.sized_predictor("full"))

    @cached_property
    def plain_predictor(self) -> Predict:
        """`predictor` without the run's own calibration."""
        return self.sized_predictor("ladder" if self.fixed_shapes else "fitting")

    @cached_property
    def calibration(self) -> Recalibration | None:
        """How `predictor` scales the logits; None: it does not.

        Raises ValueError where the run directory has one of another checkpoint.
        """
        in_memory = self.members and read_ensemble(self.path) is None
        if not self.trained or in_memory or not self.config.evaluation.calibration:
            return None
        labels = getattr(self.task, "labels", [])
        return read_calibration(self.path, labels, lambda: self.checkpoint, self.weights_digest)

    def _calibrated(self, predict: Predict) -> Predict:
        return predict if self.calibration is None else self.calibration.behind(predict)

    @cached_property
    def domain_scores(self) -> DomainScores:
        """How much texts are like those of training, of a classification."""
        return DomainScores(self)

    @cached_property
    def abstention(self) -> Abstention | None:
        """When the run gives no label, as `abstain` says; None: it always does. See `runs.abstention`."""
        return open_abstention(self)

    def predict(
        self,
        records: Record | Sequence[Record],
        *,
        k: int = 10,
        coverage: float | None = None,
        sets: SetKind = "lac",
    ) -> Predictions:
        """The task's answers to new texts or records; answers that they hold are ignored.

            run.predict("the film was dull")[0].label
            run.predict([{"question": "...", "context": "..."}]).to_pandas()

        Args:
          records: a text (for the only column that the run reads), a record with the columns of the run's data, an
            `Example`, or a list of these.
          k: number of items, for a task that ranks them.
          coverage, sets: of a classification: also a `prediction_set` of this kind (`metrics.conformal`), which has the
            right label with this probability.

        Raises:
          BadExample (a ValueError): a record that the task cannot use; names its number.
        """
        wanted = "a text, a record such as {'text': ...}, an `Example`, or a list of these"
        given = cast(list[Record], listed(records, "records", (str, Mapping, Example), wanted))
        rows = rows_of(given, fields_of(self.config))
        asker = self.asker(k, coverage=coverage, sets=sets)
        examples = [asker.example(row, f"record {number}", folder=ANYWHERE) for number, row in enumerate(rows)]
        answers = [answer for answer in asker.answers(examples)[0] if answer is not None]
        return Predictions([row.to_record() if isinstance(row, Example) else row for row in rows], answers)

    def encode(self, texts: "str | Mapping[str, object] | Sequence[str | Mapping[str, object]]") -> np.ndarray:
        """Vectors of texts (embeddings), float32 [texts, width]; [width] of a single text. See `runs.vectors`.

        A picture is {"image": a path, the bytes of a file, or a picture of Pillow}.
        """
        wanted = 'a text, {"image": ...}, or a list of these'
        given = cast(list[str | Mapping[str, object]], listed(texts, "texts", (str, Mapping), wanted))
        vectors = self.embedder([each if isinstance(each, str) else _picture(each) for each in given])
        return vectors[0] if isinstance(texts, str | Mapping) else vectors

    @cached_property
    def embedder(self) -> Embedder:
        """See `encode`."""
        if not self.fixed_shapes:
            return embedder(self.model, self.task, self.folder, self.mesh)
        same = self.predictor.run if isinstance(self.task, RetrievalTask) else None  # its programs are compiled already
        return embedder(self.model, self.task, self.folder, self.mesh, "ladder", same)

    def evaluate(self, records: str | Path | Sequence[Mapping[str, object] | Example]) -> Results:
        """The table of `python -m instructrec_jax.evaluate` for other records with targets: a file, or a list.

        Args:
          records: with the columns of the run's data.

        Raises ValueError for no records, and for a record without a valid target.
        """
        fields = self.config.data.train[0].fields if self.config.data.train else FieldsConfig()
        name = source_task(self.config)
        if isinstance(records, str | Path):
            images = self.config.data.train[0].images if self.config.data.train else ""
            source = SourceConfig(path=str(records), images=images, fields=fields, task=name)
            data = replace(self.config.data, test=[source])
            examples = list(RunData(replace(self.config, data=data)).examples("test"))
        else:
            labels, numbers = getattr(self.config.task, "labels", None), self.config.task.reads_numbers
            mapper = RecordMapper(
                fields, lambda chosen: FieldMapper(chosen, task=name, labels=labels, numbers=numbers, mask=self._mask)
            )
            examples = with_targets(records, mapper, self._mask)
        row = score_row(self.path.name, self.task, self.predictor, {"": self.task.encode(examples)})
        metric = self.config.evaluation.metric or self.task.metric
        return results_of([row], metric=metric, measured_on="the given records", tuned=row.name)

    def asker(self, k: int = 10, *, many: bool = False, coverage: float | None = None, sets: SetKind = "lac") -> Asker:
        """Answers rows with the columns of data.train; `many`: see `full_predictor`; the rest: see `predict`."""
        predict, train = self.full_predictor if many else self.predictor, self.config.data.train
        judge = judge_of(self, self.abstention, coverage, sets)
        return Asker(self.task, predict, self.mapper, k, self._mask, train[0].images if train else "", judge)

    @property
    def mapper(self) -> RecordMapper:
        """Row without target -> example, by the columns of data.train."""
        name = source_task(self.config)
        return RecordMapper(fields_of(self.config), lambda chosen: FieldMapper(chosen, task=name, mask=self._mask))

    @cached_property
    def _mask(self) -> ExampleMask | None:
        return example_mask(self.config)

    def sized_predictor(self, size: Rows) -> Predict:
        """See `predictor` and `full_predictor`."""
        if self.members and self.task.outputs_are != "words":
            return averaged(self, size)
        make = predictor(self.task, self.model.graphdef, self.mesh, buckets(self.config), size=size)
        return self.with_known_items(make(self.model.params), self.task)

    def with_known_items(self, predict: Predict, task: Task) -> Predict:
        """`predict` with the run's parameters that computes the vectors of the items of a ranking task once."""
        ranking = as_ranking(task)
        if not self.trained or ranking is None:
            return predict
        return _with_known_items(predict, ranking, self.path / "item_vectors", self.weights_identity())

    def weights_digest(self) -> str:
        """SHA-256 of what identifies a run's weights by their content: a copy of the run directory has the same."""
        found: object
        if self.members:
            own = [[member.weights_digest(), repr(member.calibration)] for member in self.members]
            found = [repr(self.mixture), own]
        else:
            identity = self.weights_identity()
            sums = self.path / "checkpoints" / str(self.checkpoint) / "state" / CHECKSUMS
            if not sums.is_file():
                raise ValueError(f"{sums} is missing, so nothing can be kept for these weights: train the run again.")
            found = [read_json(sums, dict[str, str]), identity["frozen"], identity["quantize"], identity["pooling"]]
        return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()

    def doubts_identity(self) -> list[str]:
        """What answers depend on beside weights and settings: the calibration, and when the run abstains."""
        abstention = self.abstention
        when = "" if abstention is None else f"{abstention.score} {abstention.threshold!r}"
        return [repr(self.calibration), when]

    def weights_identity(self) -> dict[str, object]:
        """JSON that identifies the weights of a run or folder, as the cache key of item vectors."""
        if self.members:
            return {"mixture": repr(self.mixture), "members": [member.weights_identity() for member in self.members]}
        folder = self.path / "checkpoints" / str(self.checkpoint) if self.trained else self.folder
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        backbone = asdict(self.config.backbone)
        codes = {name: value for name, value in backbone.items() if name.startswith("quantize")}
        return {
            "checkpoint": [[str(f.relative_to(folder)), f.stat().st_size, f.stat().st_mtime_ns] for f in files],
            "frozen": frozen_fingerprint(self.path),
            "dtype": str(np.dtype(compute_dtype(self.config))),
            "quantize": codes["quantize"] if codes["quantize"] == "none" else codes,
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
