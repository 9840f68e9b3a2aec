"""The settings of monitoring: the tree below `monitoring` in serve.yaml."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class DriftConfig:
    """When what is asked of a model differs from what the model was evaluated on. See `service.drift`."""

    window: int = 500  # answers per test; windows do not overlap
    reference: int = 2000  # cases of the run's evaluation to compare with, drawn at random; 0: do not watch drift
    level: float = 1e-5  # largest probability of a false alarm per window and model
    shares: float = 0.1  # smallest Jensen-Shannon distance of label shares that is an alert, 0 to 1
    distance: float = 0.15  # smallest Kolmogorov-Smirnov distance of scores, lengths, unknown words: an alert, 0 to 1


@dataclass(frozen=True)
class ThresholdsConfig:
    """Values above which there is an alert; null: none. It is over once the value is a fifth below."""

    error_rate: float | None = 0.05  # answers with a status of 500 or more, of all answers of a model
    latency_p95: float | None = 10.0  # seconds until the first byte of 95 of 100 answers of a model
    queue: float | None = 0.9  # share of a model's queue (limits.queue) that is taken
    memory: float | None = 0.95  # share of the memory in use, of the fullest device or of this machine
    period: float = 300.0  # seconds of requests that error_rate and latency_p95 are computed from
    least: int = 20  # requests in that period below which these two stay as they were


@dataclass(frozen=True)
class WebhookConfig:
    """An address that alerts and recoveries are posted to as JSON (docs/operations.md)."""

    url: str
    secret_variable: str = ""  # environment variable with the key of the HMAC-SHA256 signature; "": not signed
    attempts: int = 6  # tries per notice, before it is dropped with a line in the log
    timeout: float = 5.0  # seconds per try
    backoff: float = 1.0  # seconds before the second try, twice as long before each further one


@dataclass(frozen=True)
class TracingConfig:
    """OpenTelemetry traces (extra otel)."""

    endpoint: str = ""  # address of an OTLP collector, http://HOST:4318/v1/traces; "": no traces
    share: float = 1.0  # of the requests whose caller sent no trace of its own


@dataclass(frozen=True)
class MonitoringConfig:
    """Metrics, drift, alerts and traces of the service."""

    drift: DriftConfig = field(default_factory=DriftConfig)
    thresholds: ThresholdsConfig = field(default_factory=ThresholdsConfig)
    webhooks: list[WebhookConfig] = field(default_factory=list)  # all get every notice
    tracing: TracingConfig = field(default_factory=TracingConfig)
    every: float = 15.0  # seconds between two checks of the thresholds


def check_monitoring(config: MonitoringConfig) -> None:
    """Raises ValueError, naming the setting, for values that cannot be."""
    drift, thresholds = config.drift, config.thresholds
    shares = {
        "drift.shares": drift.shares,
        "drift.distance": drift.distance,
        "thresholds.error_rate": thresholds.error_rate,
        "thresholds.queue": thresholds.queue,
        "thresholds.memory": thresholds.memory,
        "tracing.share": config.tracing.share,
    }
    positive = {
        "drift.level": drift.level,
        "thresholds.latency_p95": thresholds.latency_p95,
        "thresholds.period": thresholds.period,
        "every": config.every,
    }
    for number, hook in enumerate(config.webhooks):
        if not hook.url.startswith(("http://", "https://")):
            raise ValueError(f"monitoring.webhooks[{number}].url should begin with http:// or https://.")
        own = {"attempts": hook.attempts, "timeout": hook.timeout, "backoff": hook.backoff}
        positive |= {f"webhooks[{number}].{name}": value for name, value in own.items()}
    if drift.window < 50:
        raise ValueError(f"monitoring.drift.window should be at least 50 answers, but is {drift.window}.")
    for name, value in (shares | {"drift.level": drift.level}).items():
        if value is not None and not 0 <= value <= 1:
            raise ValueError(f"monitoring.{name} should be between 0 and 1, but is {value:g}.")
    for name, value in positive.items():
        if value is not None and not value > 0:
            raise ValueError(f"monitoring.{name} should be above 0, but is {value:g}.")
