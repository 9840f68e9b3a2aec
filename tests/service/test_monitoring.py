"""Monitoring: alerts by thresholds and drift, through the routes, in metrics and to a webhook; and nobody's words."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, cast

import jax
import numpy as np
import pytest
from fastapi.testclient import TestClient

from instructrec_jax.files import read_jsonl, write_jsonl
from instructrec_jax.runs.run import Run
from instructrec_jax.service import memory, monitoring
from instructrec_jax.service.alerts import Notice
from instructrec_jax.service.answerers import Predicted, Predicting, Vectors
from instructrec_jax.service.app import make_app
from instructrec_jax.service.batching import Batcher
from instructrec_jax.service.drift import Drift, Finding, numbers_of
from instructrec_jax.service.exchange import Exchange
from instructrec_jax.service.models import Served, Service
from instructrec_jax.service.monitoring import Monitoring, engine_counts, open_drift, tell_drift
from instructrec_jax.service.monitoring_settings import (
    DriftConfig,
    MonitoringConfig,
    ThresholdsConfig,
    TracingConfig,
    WebhookConfig,
)
from instructrec_jax.service.settings import ServeConfig
from instructrec_jax.tasks.answers import LabelAnswer

SAID = "Rumpelstiltskin"  # what a user said


class Watched:
    """A monitoring with a clock of its own, whose notices are kept; one model, "desk", whose queue can be filled."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **settings: Any):
        monkeypatch.setattr(memory, "machine_memory", lambda: 0.5)
        monkeypatch.setattr(monitoring, "machine_memory", lambda: self.memory)
        self.queue, self.memory, self.now = {"waiting": 0.0, "queue": 10.0}, 0.5, 0.0
        queues = {"classify": SimpleNamespace(stats=lambda: self.queue)}
        run = SimpleNamespace(path=Path("none"), task=None)
        served = SimpleNamespace(name="desk", queues=queues, writes=None, run=run)
        config = ServeConfig(monitoring=MonitoringConfig(**settings))
        self.monitoring = Monitoring(Service(config, cast(Any, {"desk": served})), clock=lambda: self.now)
        self.notices: list[Notice] = []
        self.monitoring.alerts.receivers.append(self.notices.append)

    def ask(self, count: int, *, seconds: float = 0.1, status: int = 200, first: float | None = None) -> None:
        for _ in range(count):
            made = Exchange("id", "POST", route="/classify", model="desk", status=status, seconds=seconds, first=first)
            self.monitoring.observe(made)

    def check(self) -> list[tuple[object, object, object]]:
        """(alert, model, state) of the notices of a check."""
        before = len(self.notices)
        self.monitoring.check()
        return [(each["alert"], each["model"], each["state"]) for each in self.notices[before:]]


def test_errors_are_an_alert_until_they_are_past(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch)
    watched.ask(10, status=500)
    assert watched.check() == []  # too few requests
    watched.ask(100)
    watched.ask(50, status=429)  # its own fault
    assert watched.check() == [("error_rate", "desk", "firing")]
    assert "6.2% errors of 160 requests" in str(watched.notices[0]["text"])
    watched.now = 299
    assert watched.check() == []
    watched.ask(3, status=500)
    watched.now = 301
    assert watched.check() == []  # three requests say nothing
    watched.now = 700
    assert watched.check() == [("error_rate", "desk", "resolved")]


def test_latency_is_the_95th_percentile_until_the_first_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch, thresholds=ThresholdsConfig(latency_p95=2.0))
    watched.ask(100, seconds=60, first=0.5)
    watched.ask(4, seconds=5)
    assert watched.check() == []
    watched.ask(10, seconds=5)
    assert watched.check() == [("latency", "desk", "firing")]


def test_queue_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch)
    watched.queue["waiting"], watched.memory = 10, 0.97
    assert watched.check() == [("queue", "desk", "firing"), ("memory", "", "firing")]
    watched.queue["waiting"], watched.memory = 8, 0.9
    assert watched.check() == []
    watched.queue["waiting"], watched.memory = 5, 0.7
    assert watched.check() == [("queue", "desk", "resolved"), ("memory", "", "resolved")]


def test_null_is_no_threshold(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch, thresholds=ThresholdsConfig(None, None, None, None))
    watched.queue["waiting"], watched.memory = 10, 1.0
    watched.ask(100, status=500, seconds=100)
    assert watched.check() == []


def test_the_counts_of_an_engine() -> None:
    stats = SimpleNamespace(
        queued=2, active=3, slots=4, steps=10, batch_fill=0.75, prefix_hits=5, prefix_misses=6, tokens=0
    )
    engine = SimpleNamespace(stats=lambda: stats, settings=SimpleNamespace(queue=64))
    counts = engine_counts(cast(Any, engine))
    assert (counts["waiting"], counts["queue"], counts["running"]) == (2, 64, 3)
    assert (counts["batch_rows"], counts["batch_room"]) == (30, 40)
    assert (counts["cache_hits"], counts["cache_misses"]) == (5, 6)


def test_drift_is_told_by_its_worst_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    alerts = Watched(monkeypatch).monitoring.alerts
    findings = [Finding("labels", 0.05, 0.4, "a 1% -> 2%"), Finding("lengths", 0.4, 2.5, "median 3 -> 6")]
    assert tell_drift(alerts, "desk", []) is None
    notice = tell_drift(alerts, "desk", findings)
    assert notice is not None and notice["value"] == 2.5
    assert notice["text"] == "firing: drift of desk: lengths at distance 0.40 (median 3 -> 6)"
    for excess in (0.6, 0.4, 0.4):  # it is over when the mean of four windows is low
        assert tell_drift(alerts, "desk", [Finding("lengths", 0.1, excess, "")]) is None
    over = tell_drift(alerts, "desk", [Finding("lengths", 0.1, 0.4, "median 3 -> 3")])
    assert over is not None and over["state"] == "resolved"


def test_a_model_without_evaluation_is_not_watched_and_a_small_one_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    served = cast(Any, SimpleNamespace(name="desk", run=SimpleNamespace(path=tmp_path, task=None)))
    assert open_drift(served, DriftConfig(), list).reference is None
    assert "drift of desk is not watched" in caplog.text
    write_jsonl(tmp_path / "predictions.jsonl", [{"input": "a b", "prediction": "x"}] * 5)
    assert isinstance(open_drift(served, DriftConfig(), list), Drift)
    assert "5 cases" in caplog.text and caplog.records[-1].levelno == logging.WARNING
    assert open_drift(served, DriftConfig(reference=0), list).reference is None


class Echo:
    """Answers each ability's requests at once: vectors of zeros, and the label of the first word."""

    def embed(self, asked: list[list[str]]) -> list[Vectors]:
        return [Vectors(np.zeros((len(texts), 2), np.float32), 7) for texts in asked]

    def classify(self, asked: list[list[str]]) -> list[Predicted]:
        answers = [[LabelAnswer(text.split()[0], {"good": 0.9}).to_record() for text in texts] for texts in asked]
        return [Predicted(own, 7, texts) for own, texts in zip(answers, asked, strict=True)]


def echoing(name: str, ability: Literal["embed", "classify"], folder: Path) -> Served:
    run = SimpleNamespace(path=folder, kind="test", task=SimpleNamespace(labels=["good", "dull"]))
    queue: Batcher[Any, Any] = Batcher(getattr(Echo(), ability), most=256, queue=10, name=name)
    return Served(name, cast(Any, run), {ability: cast(Any, Echo())}, {ability: queue}, [])


TEXTS = [
    " ".join([("good", "dull")[n % 3 == 0], *np.random.default_rng(n).choice(["film", "a", "book"], 1 + n % 6)])
    for n in range(400)
]


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    """A client of a service with a model for vectors, "v", and a classifier, "c", which were evaluated on TEXTS."""
    records = [{"input": text, **LabelAnswer(text.split()[0], {"good": 0.9}).to_record()} for text in TEXTS]
    write_jsonl(tmp_path / "predictions.jsonl", records)
    config = ServeConfig(monitoring=MonitoringConfig(drift=DriftConfig(window=100)))
    models = {"v": echoing("v", "embed", tmp_path), "c": echoing("c", "classify", tmp_path)}
    app = make_app(Service(config, models))
    app.state.notices = []
    app.state.monitoring.alerts.receivers.append(app.state.notices.append)
    with TestClient(app) as client:
        yield client


def notices_of(client: TestClient) -> list[Notice]:
    found: list[Notice] = cast(Any, client.app).state.notices
    return found


def ask(client: TestClient, route: str, texts: list[str]) -> None:
    assert client.post(route, json={"input": texts}).status_code == 200


@pytest.mark.parametrize(("route", "model"), [("/v1/embeddings", "v"), ("/classify", "c")])
def test_drift_through_a_route_and_back(
    route: str, model: str, client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    ask(client, route, TEXTS[:100])
    assert notices_of(client) == []
    ask(client, route, [f"{text} {SAID}" for text in TEXTS[100:250]])
    ask(client, route, TEXTS[250:400])
    for first in (0, 100, 200):
        ask(client, route, TEXTS[first : first + 100])
    states = [(each["alert"], each["model"], each["state"]) for each in notices_of(client)]
    assert states == [("drift", model, "firing"), ("drift", model, "resolved")]
    first = {each["what"]: each["excess"] for each in cast(Any, notices_of(client)[0]["details"])}
    assert first["unknown_words"] > 1
    assert ("labels" in first and first["labels"] < 1) == (model == "c")
    metrics = client.get("/metrics").text
    assert f'instructrec_drift_windows_total{{model="{model}"}} 7.0' in metrics
    assert f'instructrec_drift_reference_cases{{model="{model}"}} 400.0' in metrics
    assert f'instructrec_alert_firing{{alert="drift",model="{model}"}} 0.0' in metrics
    assert f'instructrec_items_total{{kind="texts",model="{model}",route="{route}"}} 700.0' in metrics
    part = "embed" if model == "v" else "classify"
    assert f'instructrec_batch_rows_total{{model="{model}",part="{part}"}} 700.0' in metrics
    for place in (metrics, json.dumps(notices_of(client)), caplog.text):
        assert SAID.lower() not in place.lower()


def test_labels_that_move_are_named(client: TestClient) -> None:
    ask(client, "/classify", [text.replace("good", "dull") for text in TEXTS[:100]])
    assert "labels at distance" in str(notices_of(client)[0]["text"])
    assert "dull 33.5% -> 100.0%" in str(notices_of(client)[0]["text"])


def test_what_a_stranger_says_is_no_label(client: TestClient) -> None:
    client.post(f"/{SAID}", json={"input": SAID})
    client.post("/v1/embeddings", json={"input": SAID, "model": SAID})
    client.request(SAID, "/v1/models", headers={SAID: SAID}, params={SAID: SAID})
    metrics = client.get("/metrics").text
    assert SAID.lower() not in metrics.lower()
    assert 'instructrec_requests_total{model="",route="/v1/embeddings",status="404"} 1.0' in metrics


def test_compilations_after_the_service_is_ready_are_late(client: TestClient) -> None:
    watching: Monitoring = cast(Any, client.app).state.monitoring
    watching.warmed_up()
    jax.jit(lambda x: x * 3 + 1)(np.arange(7))
    assert "instructrec_late_compilations_total 0.0" not in client.get("/metrics").text


def test_what_is_compared_is_what_was_evaluated(finished: Any) -> None:
    """The prompt, label and score of a served answer are those of the same case in predictions.jsonl."""
    run = Run.open(finished.run_dir)
    written = read_jsonl(run.path / "predictions.jsonl")
    cases = run.data.cases(run.task, "test")
    (found,) = Predicting(run).answer([[e.example.instruction for e in cases]])
    assert isinstance(found, Predicted)
    assert found.prompts == [each["input"] for each in written]
    known = frozenset(run.task.labels)
    served = [numbers_of(each, known) for each in found.answers]
    evaluated = [numbers_of(each, known) for each in written]
    assert [label for label, _ in served] == [label for label, _ in evaluated]
    scores = [[score for _, score in each] for each in (served, evaluated)]
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-6)


def test_settings_that_cannot_be_are_told_at_the_start() -> None:
    for config in (
        MonitoringConfig(every=0),
        MonitoringConfig(webhooks=[WebhookConfig("http://example.org", secret_variable="NOT_SET_ANYWHERE")]),
    ):
        with pytest.raises(ValueError, match="monitoring.(every|webhooks)"):
            make_app(Service(ServeConfig(monitoring=config), {}))
    with pytest.raises(ValueError, match="tracing.share"):
        make_app(Service(ServeConfig(monitoring=MonitoringConfig(tracing=TracingConfig(share=2))), {}))
