"""The settings of the service: the tree of serve.yaml."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile

from instructrec_jax.answering.rolling import Weight
from instructrec_jax.masking.masker import MaskConfig
from instructrec_jax.runs.config import parse
from instructrec_jax.service.monitoring_settings import MonitoringConfig


@dataclass(frozen=True)
class EngineSettings:
    """Settings of the engine. The defaults suit a laptop; an accelerator has room for more slots."""

    slots: int = 16  # answers at a time; an accelerator computes 64 in about the time of one
    capacity: int | None = None  # tokens of prompt and answer together; None: the network's limit, at most 2,048
    chunk: int = 128  # tokens of a prompt between two steps; more reads prompts faster and delays answers longer
    prefix_bytes: int = 1 << 28  # memory for keys and values of known beginnings of prompts; 0: keep none
    queue: int = 64  # requests that wait for a slot; more are refused

    def __post_init__(self) -> None:
        for name, least in (("slots", 1), ("capacity", 2), ("chunk", 1), ("prefix_bytes", 0), ("queue", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, but is {value}.")


@dataclass
class PrivacyConfig(MaskConfig):
    """Personal data that the models, logs and traces never see."""

    restore: bool = True  # put the values back in place of their placeholders in the answer
    names: str = ""  # token_classification run (BIO labels) whose spans are masked too: names, places ...

    def __bool__(self) -> bool:
        return super().__bool__() or bool(self.names)


@dataclass(frozen=True)
class WatchConfig:
    """How /watch scores the entities of a classifier; as the options of `python -m instructrec_jax.watch`."""

    window: str = "7d"  # length of the rolling window: 36h, 7d, 2w
    band: list[float] = field(default_factory=lambda: [-0.4, 0.4])  # a score outside raises an alert
    hysteresis: float = 0.1  # how far the score must return inside the band before a new alert
    least: int = 3  # minimum number of records in the window for an alert
    values: dict[str, float] = field(default_factory=dict)  # value of each label; default: positive 1, neutral 0 ...
    weight: Weight = "equal"  # weight of a record in the score: equal, or certainty
    timezone: str = "UTC"  # time zone of times without one


@dataclass(frozen=True)
class ModelConfig:
    """A model that the service answers with."""

    path: str  # run directory, HuggingFace folder or hub id
    name: str = ""  # name in requests; default: the last part of path
    settings: list[str] = field(default_factory=list)  # settings of train: ["--backbone.dtype", "bfloat16"]
    hybrid: str = ""  # a ranking run: run or baseline mixed in; "": what training chose; none; OTHER=W: its weight
    rerank: str = ""  # a ranking run: run that reranks its best items, as tuned by evaluate; RUN=W: weight
    actions: str = ""  # an intent classifier: actions file, which opens /assist (see docs/customer_service.md)
    slots: str = ""  # with actions: token_classification run that finds slots
    instruction: str = ""  # /assist and /watch: the instruction before each text in training, if any
    watch: WatchConfig = field(default_factory=WatchConfig)


@dataclass(frozen=True)
class LimitsConfig:
    """What one request may ask for, and how many may wait. Beyond a limit: an error that names it."""

    body_bytes: int = 1_000_000  # size of a request's body (413)
    depth: int = 32  # nesting of a request's JSON (422)
    texts: int = 256  # texts, documents or requests in one call (422)
    candidates: int = 1000  # items or documents to rank in one call (422)
    records: int = 100_000  # records in all windows of a model that watches (429)
    choices: int = 8  # n of a completion (422)
    new_tokens: int = 1024  # max_tokens of a completion (422)
    default_tokens: int = 256  # max_tokens of a completion that does not set it
    pictures: int = 8  # pictures in one conversation (422)
    drawings: int = 4  # pictures drawn of one prompt, which is computed with as many rows (422)
    pixels: int = 1 << 24  # pixels of a picture, which a small file may claim (422)
    seconds: float = 60.0  # for the whole answer (504)
    body_seconds: float = 10.0  # for the request's body to arrive (408)
    queue: int = 256  # requests that wait for one model (429)
    failed_keys: int = 60  # requests a minute from one address without a valid key (429)
    header_bytes: int = 16_384  # all headers of a request together (431)
    connections: int = 1000  # open connections; one more is closed at once


@dataclass(frozen=True)
class ServeConfig:
    """Settings of `python -m instructrec_jax.serve`."""

    models: list[ModelConfig] = field(default_factory=list)  # models to serve; the first answers where none is named
    host: str = "127.0.0.1"  # address to listen on; another than this machine's own needs keys
    port: int = 8000  # port to listen on; 0: a free one
    cache: str = ""  # folder of compiled programs; default: in the package's cache folder
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    engine: EngineSettings = field(default_factory=EngineSettings)
    mask: PrivacyConfig = field(default_factory=PrivacyConfig)
    keys: str = ""  # file of `serve keys add`; "": no keys, for this machine only
    tls_certificate: str = ""  # PEM file: the certificate and its chain; with tls_key, the service speaks HTTPS
    tls_key: str = ""  # PEM file: the certificate's private key
    cors_origins: list[str] = field(default_factory=list)  # origins whose pages may call the service: https://my.site
    log: str = ""  # file of the log, JSON lines; "": stderr
    drain_seconds: float = 30.0  # after SIGTERM, time for running requests to end
    monitoring: MonitoringConfig = field(default_factory=MonitoringConfig)


def read_settings(args: Sequence[str]) -> ServeConfig:
    """The settings of `RUN... --config_path serve.yaml --port 8000 ...`; the RUNs come before the file's models."""
    paths = list(takewhile(lambda arg: not arg.startswith("-"), args))
    config = parse(ServeConfig, list(args[len(paths) :]), default=None)
    return replace(config, models=[*map(ModelConfig, paths), *config.models])
