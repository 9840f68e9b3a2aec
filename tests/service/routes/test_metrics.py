"""`/metrics`, and the files that read it: rules, dashboard and docs name metrics that there are."""

import json
import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from fastapi.testclient import TestClient
from prometheus_client.openmetrics.parser import text_string_to_metric_families as of_open_metrics
from prometheus_client.parser import text_string_to_metric_families

from instructrec_jax.parsing import parse_yaml
from instructrec_jax.runs.config import parse
from instructrec_jax.service import metrics as of_metrics
from instructrec_jax.service.app import make_app
from instructrec_jax.service.drift import Finding
from instructrec_jax.service.exchange import Exchange
from instructrec_jax.service.metrics import STATS
from instructrec_jax.service.models import Service
from instructrec_jax.service.monitoring import Monitoring
from instructrec_jax.service.monitoring_settings import MonitoringConfig, WebhookConfig, check_monitoring
from instructrec_jax.service.settings import ServeConfig

ROOT = Path(__file__).parents[3]
MONITORING = ROOT / "examples" / "monitoring"
OPERATIONS = ROOT / "docs" / "operations.md"
NAME = re.compile(r"\b(?:instructrec|process)_[a-z0-9_]+\b")

pytestmark = pytest.mark.skipif(not MONITORING.exists(), reason="the package is installed without its repository")


@pytest.fixture(scope="module")
def client() -> TestClient:
    return TestClient(make_app(Service(ServeConfig(), {})))


@pytest.fixture(scope="module")
def metrics() -> dict[str, tuple[str, list[str]]]:
    """Metric, as scraped -> (type, labels), of a service in which everything has happened once."""
    queue = SimpleNamespace(stats=lambda: dict.fromkeys(STATS, 1.0))
    run = SimpleNamespace(path=ROOT, task=None)
    model = cast(Any, SimpleNamespace(name="tiny", run=run, queues={"embed": queue}, writes=None))
    hook = MonitoringConfig(webhooks=[WebhookConfig("http://127.0.0.1:9")])
    made = Monitoring(Service(ServeConfig(monitoring=hook), {"tiny": model}))
    made.service.drifts["tiny"].latest = [Finding("labels", 0.1, 0.5, "")]
    counts = Counter(texts=1, prompt_tokens=1)
    made.observe(Exchange("id", "POST", "/classify", "shop", model="tiny", status=200, counts=counts, first=0.1))
    made.alerts.update("queue", "tiny", value=0, threshold=1, text="")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(of_metrics, "device_memory", lambda device: {"used": 1.0})
        text = made.metrics.shown()[0].decode()
    return {
        sample.name: (family.type, [name for name in sample.labels if name != "le"])
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def test_both_formats_are_served(client: TestClient) -> None:
    plain = client.get("/metrics")
    assert plain.headers["content-type"].startswith("text/plain; version=") and "instructrec_ready 0.0" in plain.text
    asked = client.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert asked.headers["content-type"].startswith("application/openmetrics-text")
    assert "instructrec_ready" in {family.name for family in of_open_metrics(asked.text)}


def rules() -> list[dict[str, Any]]:
    tree: Any = parse_yaml((MONITORING / "prometheus_rules.yml").read_text(encoding="utf-8"), "prometheus_rules.yml")
    return [rule for group in tree["groups"] for rule in group["rules"]]


def expressions() -> dict[str, list[str]]:
    """File -> its PromQL."""
    dashboard = json.loads((MONITORING / "grafana_dashboard.json").read_text(encoding="utf-8"))
    of_rules = [rule["expr"] for rule in rules()]
    of_panels = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    of_choices = [each["query"]["query"] for each in dashboard["templating"]["list"] if each["type"] == "query"]
    return {"prometheus_rules.yml": of_rules, "grafana_dashboard.json": [*of_panels, *of_choices]}


def test_rules_and_dashboard_read_metrics_that_there_are(metrics: dict[str, tuple[str, list[str]]]) -> None:
    for file, found in expressions().items():
        named = {name for text in found for name in NAME.findall(text)} - {"instructrec"}
        assert named and named <= set(metrics), f"{file}: {sorted(named - set(metrics))}"


def test_they_select_by_labels_that_there_are(metrics: dict[str, tuple[str, list[str]]]) -> None:
    for found in expressions().values():
        for text in found:
            for name, inside in re.findall(r"(\w+)\{([^}]*)\}", text):
                asked = set(re.findall(r"(\w+)\s*(?:=~|!=|!~|=)", re.sub(r'"[^"]*"', '""', inside)))
                assert asked <= {*metrics[name][1], "instance", "job"}, text


def test_the_dashboard_shows_every_metric_of_the_service(metrics: dict[str, tuple[str, list[str]]]) -> None:
    shown = {name for text in expressions()["grafana_dashboard.json"] for name in NAME.findall(text)}
    families = {re.sub(r"_(bucket|count|sum)$", "", name) for name in metrics if name.startswith("instructrec")}
    left_out = families - {re.sub(r"_(bucket|count|sum)$", "", name) for name in shown}
    assert left_out == {
        "instructrec_batches_total",  # only in shares
        "instructrec_compile_seconds_total",
        "instructrec_drift_reference_cases",
        "instructrec_drift_windows_total",
        "instructrec_notices_total",
        "instructrec_queue_limit",
    }


def test_the_table_of_docs_is_the_registry(metrics: dict[str, tuple[str, list[str]]]) -> None:
    rows = re.findall(r"^\| `(instructrec_\w+)` \| (\w+) \|([^|]*)\|", OPERATIONS.read_text("utf-8"), re.MULTILINE)
    told = {name: (kind, sorted(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    there = {
        re.sub(r"_(bucket|count|sum)$", "", name): (found[0], sorted(found[1]))
        for name, found in metrics.items()
        if name.startswith("instructrec")
    }
    assert told == there


def test_each_alert_has_a_place_in_the_runbook() -> None:
    named = [rule["alert"] for rule in rules() if "alert" in rule]
    headings = re.findall(r"^### (\w+)", OPERATIONS.read_text("utf-8"), re.MULTILINE)
    assert named and named == headings


def test_the_settings_of_docs_are_settings(tmp_path: Path) -> None:
    blocks = re.findall(r"```yaml\n(# serve.yaml\n.*?)```", OPERATIONS.read_text("utf-8"), re.DOTALL)
    assert blocks
    for block in blocks:
        (tmp_path / "serve.yaml").write_text(block, encoding="utf-8")
        check_monitoring(parse(ServeConfig, ["--config_path", str(tmp_path / "serve.yaml")], default=None).monitoring)
