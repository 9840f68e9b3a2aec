"""The settings of the service: the tree of serve.yaml."""

from dataclasses import dataclass, field

from instructrec_jax.service.monitoring_settings import MonitoringConfig


@dataclass(frozen=True)
class ModelConfig:
    """A model that the service answers with."""

    path: str  # run directory, HuggingFace folder or hub id
    name: str = ""  # name in requests; default: the last part of path
    settings: list[str] = field(default_factory=list)  # settings of train: ["--backbone.dtype", "bfloat16"]
    hybrid: str = ""  # a ranking run: run or baseline whose scores are mixed in, as tuned by evaluate; OTHER=W: weight
    rerank: str = ""  # a ranking run: run that reranks its best items, as tuned by evaluate; RUN=W: weight
    actions: str = ""  # an intent classifier: actions file, which opens /assist (see docs/customer_service.md)
    slots: str = ""  # with actions: token_classification run that finds slots


@dataclass(frozen=True)
class LimitsConfig:
    """What one request may ask for, and how many may wait. Beyond a limit: an error that names it."""

    body_bytes: int = 1_000_000  # size of a request's body (413)
    depth: int = 32  # nesting of a request's JSON (422)
    texts: int = 256  # texts, documents or requests in one call (422)
    candidates: int = 1000  # items or documents to rank in one call (422)
    choices: int = 8  # n of a completion (422)
    new_tokens: int = 1024  # max_tokens of a completion (422)
    seconds: float = 60.0  # for the whole answer (504)
    body_seconds: float = 10.0  # for the request's body to arrive (408)
    queue: int = 256  # requests that wait for one model (429)


@dataclass(frozen=True)
class ServeConfig:
    """Settings of `python -m instructrec_jax.serve`."""

    models: list[ModelConfig] = field(default_factory=list)  # models to serve; the first answers where none is named
    host: str = "127.0.0.1"  # address to listen on; another than this machine's own needs keys
    port: int = 8000  # port to listen on; 0: a free one
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    monitoring: MonitoringConfig = field(default_factory=MonitoringConfig)
