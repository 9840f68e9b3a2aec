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
from instructrec_jax.service.errors import ServiceError
from instructrec_jax.service.exchange import Exchange
from instructrec_jax.service.keys import Key
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
    """

    config: ServeConfig
    models: dict[str, Served]
    ready: bool = False
    started: float = field(default=0.0)

    def model(self, name: str | None, ability: Ability, exchange: Exchange) -> Served:
        """The named model, or the first with this ability that the caller's key opens, noted in the exchange.

        Raises ServiceError (404, 403, 400) naming what there is.
        """
        found = self._model(name, ability, exchange.caller)
        exchange.model = found.name
        return found

    def _model(self, name: str | None, ability: Ability, caller: Key | None) -> Served:
        opened = [each for each in self.models if caller is None or caller.may_use(each)]
        able = [each for each in opened if ability in self.models[each].abilities]
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
