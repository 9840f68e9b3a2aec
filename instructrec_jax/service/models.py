"""The served models: opened runs, what each can do, and its queues."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from instructrec_jax.runs.run import Run, is_run
from instructrec_jax.runs.vectors import settings_of
from instructrec_jax.service.batching import Batcher
from instructrec_jax.service.drift import Drift
from instructrec_jax.service.errors import ServiceError
from instructrec_jax.service.settings import LimitsConfig, ModelConfig, ServeConfig

Ability = Literal["embed"]
ROUTES: dict[Ability, str] = {"embed": "/v1/embeddings"}


@dataclass(frozen=True)
class Served:
    """A model that answers.

    Attributes:
      name: its name in requests.
      abilities: what it can do.
    """

    name: str
    run: Run
    abilities: frozenset[Ability]
    texts: Batcher[str, np.ndarray]

    def close(self) -> None:
        self.texts.close()


@dataclass
class Service:
    """The served models by name, in the order of the settings.

    Attributes:
      ready: whether all shapes are compiled.
      drifts: the watch over what a model is asked, by its name; see `drift`.
    """

    config: ServeConfig
    models: dict[str, Served]
    ready: bool = False
    started: float = field(default=0.0)
    drifts: dict[str, Drift] = field(default_factory=dict)

    def model(self, name: str | None, ability: Ability) -> Served:
        """The named model, or the first with this ability. Raises ServiceError (404, 400) naming what there is."""
        able = [each.name for each in self.models.values() if ability in each.abilities]
        if name is not None and name not in self.models:
            raise ServiceError(
                404,
                f"there is no model {name[:100]!r}; there are: {', '.join(self.models)}.",
                param="model",
                code="model_not_found",
            )
        if not able:
            raise ServiceError(404, f"no model here answers {ROUTES[ability]}.", code="no_such_ability")
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
        for model in self.models.values():
            model.run.encode("ready")
        self.ready = True

    def close(self) -> None:
        for model in self.models.values():
            model.close()


def open_service(config: ServeConfig) -> Service:
    """Opens every model of the settings. Raises ValueError for one that cannot be opened, or two of one name."""
    models: dict[str, Served] = {}
    for each in config.models:
        served = _open(each, config.limits)
        if served.name in models:
            raise ValueError(f"two models are called {served.name!r}: give one of them another name in models.")
        models[served.name] = served
    return Service(config, models)


def _open(config: ModelConfig, limits: LimitsConfig) -> Served:
    is_folder = not is_run(config.path) and not config.settings  # opened for its backbone, in full length
    run = Run.open(config.path, settings_of(config.path) if is_folder else config.settings)
    name = config.name or Path(config.path).name
    texts: Batcher[str, np.ndarray] = Batcher(partial(_vectors, run), most=64, queue=limits.queue, name=f"texts {name}")
    return Served(name, run, frozenset({"embed"}), texts)


def _vectors(run: Run, texts: list[str]) -> list[np.ndarray | Exception]:
    def each() -> Iterator[np.ndarray | Exception]:
        for text in texts:
            try:
                yield run.encode(text)
            except ValueError as error:
                yield error

    return list(each())
