"""The settings of monitoring, from serve.yaml."""

from pathlib import Path

import pytest

from instructrec_jax.runs.config import ConfigError, parse
from instructrec_jax.service.monitoring_settings import MonitoringConfig, check_monitoring
from instructrec_jax.service.settings import ServeConfig

YAML = """
monitoring:
  drift: {window: 200, shares: 0.2}
  thresholds: {latency_p95: 2.5, queue: null}
  webhooks:
  - {url: "https://example.org/hook", secret_variable: HOOK_KEY}
  tracing: {endpoint: "http://localhost:4318/v1/traces"}
"""


def test_the_tree_of_serve_yaml(tmp_path: Path) -> None:
    (tmp_path / "serve.yaml").write_text(YAML)
    found = parse(ServeConfig, ["--config_path", str(tmp_path / "serve.yaml"), "--monitoring.every", "5"], default=None)
    monitoring = found.monitoring
    assert (monitoring.drift.window, monitoring.drift.shares, monitoring.every) == (200, 0.2, 5)
    assert (monitoring.thresholds.latency_p95, monitoring.thresholds.queue) == (2.5, None)
    assert monitoring.webhooks[0].secret_variable == "HOOK_KEY" and monitoring.tracing.share == 1


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("drift: {level: 0}", "drift.level"),
        ("drift: {window: 3}", "drift.window"),
        ("drift: {shares: 20}", "drift.shares"),
        ("thresholds: {error_rate: 5}", "thresholds.error_rate"),
        ("thresholds: {latency_p95: 0}", "thresholds.latency_p95"),
        ("every: 0", "every"),
        ("webhooks: [{url: 'ftp://example.org'}]", r"webhooks\[0\]\.url"),
        ("webhooks: [{url: 'http://example.org', attempts: 0}]", r"webhooks\[0\]\.attempts"),
    ],
)
def test_settings_that_cannot_be(text: str, named: str, tmp_path: Path) -> None:
    (tmp_path / "serve.yaml").write_text(f"monitoring:\n  {text}\n")
    found = parse(ServeConfig, ["--config_path", str(tmp_path / "serve.yaml")], default=None)
    with pytest.raises(ValueError, match=rf"monitoring\.{named} should"):
        check_monitoring(found.monitoring)


def test_the_defaults_can_be_and_a_misspelled_name_is_told() -> None:
    check_monitoring(MonitoringConfig())
    with pytest.raises(ConfigError, match="latency_p95"):
        parse(ServeConfig, ["--monitoring.thresholds.latency_p59", "1"], default=None)
