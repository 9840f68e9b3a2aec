"""The served models: opened runs, what each can do, and its queues."""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar

from instructrec_jax.answering.desk import Desk
from instructrec_jax.answering.language_model import LanguageModel
from instructrec_jax.answering.ranker import Ranker
from instructrec_jax.answering.recommender import Recommender
from instructrec_jax.answering.terminal import named_weight
from instructrec_jax.data.media.picture import Sound
from instructrec_jax.runs.config import Config
from instructrec_jax.runs.model import backbone_folder
from instructrec_jax.runs.run import Run, is_run, require_finished, run_settings
from instructrec_jax.runs.vectors import settings_of
from instructrec_jax.service.answerers import Answerer, Cosines, CrossEncoder, Embedding, Options, Predicting
from instructrec_jax.service.batching import Batcher
from instructrec_jax.service.drawings import Drawing
from instructrec_jax.service.drift import Drift
from instructrec_jax.service.engine import Engine
from instructrec_jax.service.errors import ServiceError
from instructrec_jax.service.exchange import Exchange
from instructrec_jax.service.keys import Key
from instructrec_jax.service.scenarios import Assisting, Recommending, Watching
from instructrec_jax.service.settings import LimitsConfig, ModelConfig, ServeConfig
from instructrec_jax.service.warm_up import compile_ranker, compile_task, compile_vectors
from instructrec_jax.service.writer import ServedWriter
from instructrec_jax.tasks.base import Task
from instructrec_jax.tasks.generation.text_to_image import TextToImageTask
from instructrec_jax.tasks.kinds import as_language_model, as_ranking
from instructrec_jax.tasks.ranking.reranker import RerankerTask
from instructrec_jax.tasks.ranking.retrieval import RetrievalTask
from instructrec_jax.tasks.text.choice import ChoiceTask
from instructrec_jax.tasks.text.similarity import SimilarityTask
from instructrec_jax.tasks.text.text_config import ONE_LABEL, ChoiceConfig

Ability = Literal["embed", "rerank", "classify", "recommend", "assist", "watch", "draw", "chat", "complete"]
ROUTES: dict[Ability, str] = {
    "embed": "/v1/embeddings",
    "rerank": "/rerank",
    "classify": "/classify",
    "recommend": "/recommend",
    "assist": "/assist",
    "watch": "/watch",
    "draw": "/v1/images/generations",
    "chat": "/v1/chat/completions",
    "complete": "/v1/completions",
}
P = ParamSpec("P")
T = TypeVar("T")
TOGETHER = 256  # texts, documents or records of several requests in one call

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Served:
    """A model that answers.

    Attributes:
      name: its name in requests.
      answerers: what it can do, and how.
      queues: one for each of these.
      warming: what compiles its shapes.
      writes: the language model, of one that writes texts.
    """

    name: str
    run: Run
    answerers: Mapping[Ability, Answerer]
    queues: Mapping[Ability, Batcher[Any, Any]]
    warming: Sequence[Callable[[], None]]
    writes: ServedWriter | None = None

    @property
    def abilities(self) -> frozenset[Ability]:
        written: tuple[Ability, ...] = () if self.writes is None else ("chat", "complete")
        return frozenset([*self.answerers, *written])

    @property
    def writer(self) -> ServedWriter:
        """The language model of a model with the abilities chat and complete."""
        assert self.writes is not None
        return self.writes

    async def ask(self, ability: Ability, request: object, *, size: int = 1, alone: bool = False) -> Any:
        """The answer to a request of the ability's type, see `Batcher.ask`."""
        return await self.queues[ability].ask(request, size=size, alone=alone)

    def close(self) -> None:
        for queue in self.queues.values():
            queue.close()
        if self.writes is not None:
            self.writes.engine.close()


@dataclass
class Service:
    """The served models by name, in the order of the settings.

    Attributes:
      refused: name -> why it cannot answer: a run in training, or one without a checkpoint.
      ready: whether all shapes are compiled.
      drifts: the watch over what a model is asked, by its name; see `drift`.
      failed: why they could not be compiled; "" where they could.
      stopping: whether the service ends, so that nothing more is compiled.
    """

    config: ServeConfig
    models: dict[str, Served]
    refused: dict[str, str] = field(default_factory=dict)
    ready: bool = False
    failed: str = ""
    stopping: bool = False
    started: float = field(default=0.0)
    drifts: dict[str, Drift] = field(default_factory=dict)

    def model(self, name: str | None, ability: Ability, exchange: Exchange) -> Served:
        """The named model, or the first with this ability that the caller's key opens, noted in the exchange.

        Raises ServiceError (404, 409, 403, 400) naming what there is.
        """
        found = self._model(name, ability, exchange.caller)
        exchange.model = found.name
        return found

    def _model(self, name: str | None, ability: Ability, caller: Key | None) -> Served:
        opened = [each for each in self.models if caller is None or caller.may_use(each)]
        able = [each for each in opened if ability in self.models[each].abilities]
        if name in self.refused and (caller is None or caller.may_use(name)):
            raise ServiceError(
                409, f"{self.refused[name]} Then restart the service.", param="model", code="model_not_ready"
            )
        if name is not None and name not in self.models:
            raise ServiceError(
                404,
                f"there is no model of this name; there are: {', '.join(opened)}.",
                param="model",
                code="model_not_found",
            )
        if name is not None and name not in opened:
            raise ServiceError(
                403,
                f"this key does not open the model {name!r}; it opens: {', '.join(opened) or 'none'}.",
                param="model",
                code="model_not_allowed",
            )
        if not able:
            whose = "here" if caller is None else "that this key opens"
            raise ServiceError(404, f"no model {whose} answers {ROUTES[ability]}.", code="no_such_ability")
        found = self.models[able[0] if name is None else name]
        if ability not in found.abilities:
            raise ServiceError(
                400,
                f"the model {found.name!r} ({found.run.kind}) does not answer {ROUTES[ability]}; these do: "
                f"{', '.join(able)}.",
                param="model",
                code="no_such_ability",
            )
        return found

    def drift(self, model: Served) -> Drift:
        """Where a route counts each answer: `service.drift(model).add(label=..., length=...)`."""
        return self.drifts.get(model.name) or Drift()

    def warm_up(self) -> None:
        """Compiles every shape, then the service is ready."""
        try:
            for model in self.models.values():
                for compile_shapes in model.warming:
                    if self.stopping:
                        return
                    compile_shapes()
        except Exception as error:  # of any model: the service says so, and never claims to be ready
            log.exception("the service cannot get ready")
            self.failed = f"{type(error).__name__}: {error}"
            return
        self.ready = not self.stopping

    def close(self) -> None:
        for model in self.models.values():
            model.close()


def open_service(config: ServeConfig) -> Service:
    """Opens every model of the settings.

    A run that is still training, or has no checkpoint, is refused: requests to it get the reason.

    Raises ValueError for a model that cannot be opened, two of one name, or where all are refused.
    """
    service = Service(config, {})
    lock = threading.Lock()
    for each in config.models:
        name = each.name or Path(each.path).name
        if name in service.models or name in service.refused:
            raise ValueError(f"two models are called {name!r}: give one of them another name in models.")
        opened = _open(each)
        if isinstance(opened, str):
            log.error("%s", opened)
            service.refused[name] = opened
        elif isinstance(opened, LanguageModel):
            engine = Engine(opened.writer, opened.params, config.engine)
            service.models[name] = Served(name, opened.run, {}, {}, [engine.warm_up], ServedWriter(opened, engine))
        else:
            service.models[name] = _served(name, opened, each, config.limits, lock)
    if service.refused and not service.models:
        raise ValueError(next(iter(service.refused.values())))
    return service


def _open(config: ModelConfig) -> Run | LanguageModel | str:
    """The opened run or language model with its weights, or why it cannot answer yet."""
    trained = is_run(config.path)
    if trained:
        try:
            require_finished(config.path, None)
        except ValueError as error:
            return str(error)
    settings: Sequence[str] | Config = config.settings
    if not trained and not config.settings:  # opened for its backbone, in full length
        settings = settings_of(config.path)
    try:
        if _writes(config, settings):
            model = LanguageModel(config.path, config.settings)
            return _unserved(config, model.run.task, writes=True) or model
        run = Run.open(config.path, settings, fixed_shapes=True)
        if refusal := _unserved(config, run.task, writes=False):
            return refusal
        _ = [member.model for member in run.members or (run,)]
        _ = run.calibration, run.abstention  # raises where they are of another checkpoint
    except ValueError as error:
        if not trained:
            raise
        return str(error)
    return run


def _unserved(config: ModelConfig, task: Task, *, writes: bool) -> str:
    """Why a run on pictures or sounds is not served; "" for one that is."""
    read = task.context.pixels
    if read is not None and read.kind is Sound:
        return f"{config.path} reads sounds, which the service does not: use `predict`."
    if task.context.image_tokens is not None and not writes:
        return f"{config.path} chooses between answers about pictures, which the service does not: use `predict`."
    if read is not None and (config.actions or config.slots):
        return f"{config.path} reads pictures, but actions are for requests in words: leave actions and slots out."
    return ""


def _writes(config: ModelConfig, settings: Sequence[str] | Config) -> bool:
    """Whether a language model writes the answers of a run, or a folder holds one."""
    if not is_run(config.path) and (backbone_folder(config.path) / "modules.json").is_file():
        return False  # an embedder
    found = settings if isinstance(settings, Config) else run_settings(config.path, settings)
    ranks = found.task.ranks_catalogue or isinstance(found.task, ChoiceConfig)  # by likelihoods, in one pass
    return found.task.answers_are_text and not ranks


def _served(name: str, run: Run, config: ModelConfig, limits: LimitsConfig, shared: threading.Lock) -> Served:
    """A model with its queues.

    Args:
      shared: held by one of all models at a time, where programs run on several devices: these would wait for each
        other for ever if each device began with another program.
    """
    answerers: dict[Ability, Answerer] = {}
    warming: list[Callable[[], None]] = []
    ranks = run.trained and as_ranking(run.task) is not None
    draws = isinstance(run.task, TextToImageTask)
    predicts = run.trained and not ranks and not draws and run.task.has_answers
    if _has_vectors(run):
        answerers["embed"] = Embedding(run)
        if run.task.context.kind != "image":
            answerers["rerank"] = Cosines(run)
        if not (run.trained and isinstance(run.task, RetrievalTask)):  # whose vectors have the programs of its task
            warming.append(partial(compile_vectors, run))
    if predicts:
        answerers["classify"] = Predicting(run)
    if run.trained and isinstance(run.task, RerankerTask) and not run.members:
        answerers["rerank"] = CrossEncoder(run)
    elif predicts and isinstance(run.task, ChoiceTask) and not run.task.config.labels:
        answerers["rerank"] = Options(run)
    if predicts:
        warming.append(partial(compile_task, run))
    if draws:
        answerers["draw"] = drawing = Drawing(run, limits.drawings)
        warming.append(drawing.compile)
    if ranks:
        answerers["recommend"] = _recommending(run, config, limits, warming)
    answerers |= _scenarios(run, config, limits, warming)
    # of tokenizers, counts and caches, which are not made for several threads
    lock = shared if run.mesh.jax_mesh.size > 1 else threading.Lock()
    queues = {
        ability: Batcher(_locked(lock, answerer.answer), most=TOGETHER, queue=limits.queue, name=f"{ability} {name}")
        for ability, answerer in answerers.items()
    }
    return Served(name, run, answerers, queues, [_locked(lock, each) for each in warming])


def _locked(lock: threading.Lock, call: Callable[P, T]) -> Callable[P, T]:
    def alone(*args: P.args, **kwargs: P.kwargs) -> T:
        with lock:
            return call(*args, **kwargs)

    return alone


def _has_vectors(run: Run) -> bool:
    """Whether the backbone gives vectors of texts or pictures."""
    if run.members:
        return False
    if as_language_model(run.task) is not None:
        return not run.trained  # a folder that declares how vectors are made
    if run.task.context.kind in ("image", "image_text"):
        return True
    reads = getattr(run.config.task, "text", True)  # a sequence of items may have no backbone
    return reads and (run.task.context.kind == "encoder" or isinstance(run.task, RetrievalTask | SimilarityTask))


def _recommending(
    run: Run, config: ModelConfig, limits: LimitsConfig, warming: list[Callable[[], None]]
) -> Recommending:
    rerank, hybrid = named_weight("rerank", config.rerank or None), named_weight("hybrid", config.hybrid or None)
    weight = hybrid[1] if rerank[0] is None else rerank[1]
    recommender = Recommender(run, rerank=rerank[0], hybrid=hybrid[0], weight=weight)
    recommending = Recommending(recommender, limits.candidates)
    rankers = [each for each in (recommender.first, recommender.second) if isinstance(each, Ranker)]
    alone = recommender.fused is None
    warming += [partial(compile_ranker, ranker, limits.candidates, alone=alone) for ranker in rankers]
    warming.append(recommending.warm_up)
    return recommending


def _scenarios(
    run: Run, config: ModelConfig, limits: LimitsConfig, warming: list[Callable[[], None]]
) -> dict[Ability, Answerer]:
    found: dict[Ability, Answerer] = {}
    if config.actions:
        slots = Run.open(config.slots, fixed_shapes=True) if config.slots else None
        found["assist"] = Assisting(Desk(run, config.actions, slots=slots, instruction=config.instruction))
        if slots is not None:
            warming.append(partial(compile_task, slots))
    elif config.slots:
        raise ValueError(f"the model {config.path} has slots, but no actions: name its actions file.")
    if run.trained and run.kind in ONE_LABEL and run.task.context.pixels is None:
        try:
            found["watch"] = Watching(run, config.watch, instruction=config.instruction, most=limits.records)
        except ValueError:
            if config.watch.values:
                raise  # else its labels have no values, so it does not watch
    return found
