"""One service with several models: alone = together, nothing compiles once it is ready, and bad requests are named.

Covers `instructrec_jax.service.scenarios` and the routes: `instructrec_jax.service.routes.vectors`,
`instructrec_jax.service.routes.records`, `instructrec_jax.service.routes.items` and
`instructrec_jax.service.routes.status`.
`instructrec_jax.service.warm_up` compiles for them, by `instructrec_jax.service.settings`.
"""

import base64
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import traffic
from desk_actions import ACTIONS, INTENTS
from fastapi.testclient import TestClient
from helpers import SUBJECTS, task_config
from tiny_runs import WORDS, compressed_run, untrained_run

from instructrec_jax.answering.classifier import Classifier
from instructrec_jax.answering.desk import Desk
from instructrec_jax.answering.records import Skipped
from instructrec_jax.answering.rolling import Band
from instructrec_jax.answering.watch import Feed, watch
from instructrec_jax.compression.quantization import Quantization
from instructrec_jax.distributed.compilations import Compilations
from instructrec_jax.files import write_jsonl
from instructrec_jax.runs.directory import RunLock
from instructrec_jax.service.app import make_app
from instructrec_jax.service.models import Service, open_service
from instructrec_jax.service.server import with_films
from instructrec_jax.service.settings import LimitsConfig, ModelConfig, ServeConfig, WatchConfig
from instructrec_jax.tasks import ClassificationConfig

LIMITS = LimitsConfig(texts=40, candidates=20, queue=1000, records=42)
BAND = [-1e-4, 1e-4]  # which the scores of a run that was not trained leave
LENGTH = 32  # of the runs' texts: one bucket


@pytest.fixture(scope="module")
def runs(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    kinds = {kind: task_config(kind, folder / "catalogue") for kind in ("retrieval", "sequence", "reranker")}
    kinds["desk"] = ClassificationConfig(labels=INTENTS)
    kinds["news"] = ClassificationConfig(labels=["negative", "neutral", "positive"])
    made = {name: untrained_run(folder / name, config, checkpoint, LENGTH) for name, config in kinds.items()}
    for name in ("retrieval", "desk"):  # compressed ones are served like all others
        made[name] = compressed_run(made[name], folder / "small" / name, Quantization(activations="int8"))
    return made


@pytest.fixture(scope="module")
def service(runs: dict[str, Path], checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Service:
    actions = tmp_path_factory.mktemp("actions") / "actions.yaml"
    actions.write_text(ACTIONS, encoding="utf-8")
    cut = ["--data.truncate", "right"]
    models = [
        *(ModelConfig(str(runs[name]), settings=cut) for name in ("retrieval", "sequence", "reranker")),
        ModelConfig(str(runs["desk"]), actions=str(actions)),
        ModelConfig(str(runs["news"]), watch=WatchConfig(band=BAND, hysteresis=0.0, least=1)),
    ]
    return open_service(ServeConfig(models=models, limits=LIMITS))


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[TestClient]:
    with TestClient(make_app(service), raise_server_exceptions=False) as client:
        while client.get("/ready").status_code == 503:
            assert not service.failed, service.failed
            time.sleep(0.05)
        yield client


def text(rng: np.random.Generator, most: int = 7) -> str:
    return " ".join(rng.choice(WORDS, rng.integers(1, most)))


def some(rng: np.random.Generator, most: int = 6) -> list[str]:
    return [text(rng) for _ in range(rng.integers(1, most))]


def requests_of(rng: np.random.Generator) -> list[tuple[str, dict[str, Any]]]:
    """One random request of each kind."""
    items = [f"id:item-{n}" for n in rng.permutation(12)[: rng.integers(0, 9)]]
    ranking = {"instruction": text(rng), "k": int(rng.integers(1, 13)), "evidence": bool(rng.integers(2))}
    few = {"instruction": text(rng), "history": items[:3], "k": int(rng.integers(1, 5))}
    return [
        ("/v1/embeddings", {"model": str(rng.choice(["retrieval", "reranker", "desk"])), "input": some(rng, 40)}),
        ("/rerank", {"model": "reranker", "query": text(rng), "documents": some(rng, 20)}),
        ("/rerank", {"model": "news", "query": text(rng), "documents": some(rng)}),
        ("/classify", {"model": "desk", "input": some(rng, 40)}),
        ("/classify", {"model": "news", "input": text(rng)}),
        ("/recommend", {"model": "retrieval", "history": items, **ranking}),
        ("/recommend", {"model": "sequence", "history": items, **ranking}),
        ("/recommend", {"model": "sequence", "requests": [few, few | {"k": 1}], "include_seen": True}),
        ("/recommend", {"model": "reranker", "evidence": False, **few}),
        ("/assist", {"model": "desk", "input": some(rng)}),
    ]


def answered(client: TestClient, path: str, body: dict[str, Any]) -> Any:
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def agree(found: Any, wanted: Any, exactly: bool = False) -> None:
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys()
        found, wanted = list(found.values()), [*wanted.values()]
    if isinstance(wanted, list):
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            agree(one, other, exactly)
    elif isinstance(wanted, float) and not exactly:
        assert abs(found - wanted) <= 1e-6 * max(1, abs(wanted))
    else:
        assert found == wanted


def test_together_as_alone(client: TestClient) -> None:
    rng = np.random.default_rng(1)
    asked = [each for _ in range(7) for each in requests_of(rng)][:64]
    alone = [answered(client, *each) for each in asked]
    exact = [answered(client, path, body | {"exact": True}) for path, body in asked[:20]]
    with ThreadPoolExecutor(64) as threads:
        together = list(threads.map(lambda each: answered(client, *each), asked))
        exactly = list(threads.map(lambda each: answered(client, each[0], each[1] | {"exact": True}), asked[:20]))
    agree(together, alone)
    agree(exactly, exact, exactly=True)


def test_nothing_compiles_once_it_is_ready(client: TestClient) -> None:
    rng = np.random.default_rng(2)
    asked = [each for _ in range(20) for each in requests_of(rng)]
    kinds = {name: name for name in ("retrieval", "sequence", "reranker", "desk")}
    kinds["news"] = "classification"  # without /watch, whose windows are another test's
    with Compilations() as compilations, ThreadPoolExecutor(8) as threads:
        for answer in threads.map(lambda each: client.post(each[0], json=each[1]), asked):
            assert answer.status_code == 200, answer.text
        random = list(traffic.requests(kinds, 300))
        found = Counter(threads.map(lambda each: client.post(each[0], json=each[1]).status_code, random))
    assert found[200] > 150 and found.keys() <= {200, 422}, found  # the catalogue has no facts to filter by
    assert compilations.count == 0


def test_usage_vectors_and_models(client: TestClient) -> None:
    body = {"model": "retrieval", "input": ["good", "a dull film"]}
    plain = answered(client, "/v1/embeddings", body)
    coded = answered(client, "/v1/embeddings", body | {"encoding_format": "base64"})
    assert plain["usage"] == {"prompt_tokens": 4 + 7, "total_tokens": 11}  # words are one or two pieces; two marks
    for one, other in zip(plain["data"], coded["data"], strict=True):
        found = np.frombuffer(base64.b64decode(other["embedding"]), "<f4")
        np.testing.assert_allclose(found, one["embedding"], atol=1e-6)
    width = len(plain["data"][0]["embedding"])
    assert answered(client, "/v1/embeddings", body | {"dimensions": width})["data"]
    routes = {each["id"]: each["routes"] for each in client.get("/v1/models").json()["data"]}
    assert routes["retrieval"] == ["/recommend", "/rerank", "/v1/embeddings"]
    assert routes["desk"] == ["/assist", "/classify", "/rerank", "/v1/embeddings"]
    assert routes["news"] == ["/classify", "/rerank", "/v1/embeddings", "/watch"]
    assert client.get("/ready").json() == {"status": "ready"}


def test_a_desk_answers_as_assist(client: TestClient, service: Service, runs: dict[str, Path]) -> None:
    texts = ["where is 4711?", "a film on monday"]
    actions = service.config.models[3].actions
    wanted = Desk(runs["desk"], actions).answer([("", text) for text in texts])
    agree(answered(client, "/assist", {"input": texts})["data"], [dict(each) for each in wanted])


def test_a_stream_is_watched_as_by_the_verb(client: TestClient, runs: dict[str, Path], tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    records = [
        {"text": text(rng), "entity": f"e{n % 2}", "time": f"2030-01-{1 + n:02}T00:00:00+00:00"} for n in range(12)
    ]
    write_jsonl(tmp_path / "records.jsonl", records)
    classifier = Classifier(runs["news"])
    fields = {name: name for name in ("text", "entity", "time")}
    feed = Feed(classifier, fields, UTC, timedelta(0), Skipped(False))
    band = Band(*BAND, 0.0, 1)
    wanted = list(watch(classifier, feed(str(tmp_path / "records.jsonl")), timedelta(days=7), band))
    found: list[Any] = []
    alerts: list[Any] = []
    for part in (records[:5], records[5:6], records[6:]):
        answer = answered(client, "/watch", {"input": part})
        found, alerts = found + answer["data"], alerts + answer["alerts"]

    def told(record: Any) -> Any:  # the verb names file and line
        return {name: value for name, value in record.items() if name not in ("where", "moved_by")}

    agree([told(each) for each in found], [told(record) for record, _ in wanted])
    agree([told(each) for each in alerts], [told(alert) for _, alert in wanted if alert is not None])
    assert alerts
    bad = client.post("/watch", json={"input": [records[-1], records[0] | {"text": "good"}]})
    assert bad.status_code == 422 and "record 1" in bad.text and "older" in bad.text
    again = answered(client, "/watch", {"input": records[-1]})["data"][0]
    assert again["records"] == found[-1]["records"] + 1, "a request that fails changes no window"
    many = [{"text": "good", "entity": "e0", "time": records[-1]["time"]}] * 40
    assert client.post("/watch", json={"input": many}).status_code == 429
    for name in ("text", "entity", "time"):
        answer = client.post("/watch", json={"input": {key: value for key, value in many[0].items() if key != name}})
        assert answer.status_code == 422 and name in answer.json()["error"]["message"]


def test_titles_and_facts(client: TestClient) -> None:
    found = client.get("/catalogue", params={"query": "TITLE 1", "limit": 3}).json()["data"]
    assert [each["title"] for each in found] == ["title 1", "title 10", "title 11"]
    assert found[1]["id"] == "item-10"
    assert client.get("/catalogue", params={"limit": 0}).status_code == 422
    assert client.get("/catalogue/facts").json() == {"object": "list", "model": "retrieval", "items": 12, "data": []}


@pytest.mark.parametrize(
    ("path", "body", "status", "named"),
    [
        ("/recommend", {"instruction": "a", "k": 0}, 422, "k is 0"),
        ("/recommend", {"instruction": "a", "k": 13}, 422, "12 items"),
        ("/recommend", {"history": "titel 77"}, 422, "title 7"),
        ("/recommend", {"instruction": "a", "where": "genre=war"}, 422, "facts"),
        ("/recommend", {"user": "7"}, 422, "users"),
        ("/recommend", {}, 422, "empty"),
        ("/recommend", {"requests": [{"instruction": "a"}, {"history": ["x"]}]}, 422, "request 1"),
        ("/recommend", {"requests": [{"instruction": "a"}], "history": "title 1"}, 422, "history"),
        ("/recommend", {"requests": []}, 422, "limits.texts"),
        ("/recommend", {"instruction": "a", "model": "desk"}, 400, "'desk'"),
        ("/recommend", {"instruction": "a", "model": "flims"}, 404, "no model of this name"),
        ("/recommend", {"instruction": "a", "on_unknown": "guess"}, 422, "on_unknown"),
        ("/classify", {"input": []}, 422, "limits.texts"),
        ("/classify", {"input": "bad " * 40}, 422, "record 0"),
        ("/classify", {"input": [{"instruction": "a", "tools": [1]}]}, 422, "record 0"),
        ("/classify", {"input": [3]}, 422, "input"),
        ("/assist", {"input": ["a", " "]}, 422, "text 1"),
        ("/rerank", {"query": "a", "documents": []}, 422, "limits.candidates"),
        ("/rerank", {"query": "a", "documents": ["a"], "top_n": 0}, 422, "top_n"),
        ("/rerank", {"query": " ", "documents": ["a"], "model": "reranker"}, 422, "query"),
        ("/v1/embeddings", {"input": "a", "dimensions": 3}, 422, "dimensions"),
        ("/v1/embeddings", {"input": [1, 2]}, 422, "tokens"),
    ],
)
def test_what_is_wrong_is_named(client: TestClient, path: str, body: Any, status: int, named: str) -> None:
    answer = client.post(path, json=body)
    assert answer.status_code == status, answer.text
    assert named in answer.json()["error"]["message"]
    assert client.get("/health").status_code == 200


def test_runs_that_cannot_answer_yet(runs: dict[str, Path], checkpoint: Path, tmp_path: Path) -> None:
    training = untrained_run(tmp_path / "training", ClassificationConfig(labels=SUBJECTS), checkpoint, LENGTH)
    empty = untrained_run(tmp_path / "empty", ClassificationConfig(labels=SUBJECTS), checkpoint, LENGTH)
    for folder in (empty / "checkpoints").iterdir():
        folder.rename(tmp_path / folder.name)
    models = [ModelConfig(str(path)) for path in (training, empty, runs["desk"])]
    with RunLock(training) as lock:
        lock.take()
        service = open_service(ServeConfig(models=models))
    client = TestClient(make_app(service))
    for name, reason in (("training", "still training"), ("empty", "checkpoint")):
        answer = client.post("/classify", json={"input": "a", "model": name})
        assert answer.status_code == 409 and reason in answer.json()["error"]["message"]
    assert answered(client, "/classify", {"input": "good"})["model"] == "desk"
    service.close()
    with pytest.raises(ValueError, match="checkpoint"):
        open_service(ServeConfig(models=[ModelConfig(str(empty))]))
    with pytest.raises(ValueError, match="two models"):
        open_service(ServeConfig(models=[ModelConfig(str(runs["desk"]))] * 2))


def test_films_are_trained_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> None:
    asked: list[list[str]] = []

    def run(command: list[str], check: bool) -> subprocess.CompletedProcess:
        asked.append(command)
        return subprocess.CompletedProcess(command, 0 if len(asked) == 1 else 1)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(subprocess, "run", run)
    assert with_films(ServeConfig()).models == [ModelConfig("runs/films")]
    assert asked[0][1:] == ["-m", "instructrec_jax.train"] and "minutes" in capsys.readouterr().err
    with pytest.raises(ValueError, match="training the film recommender failed"):
        with_films(ServeConfig())
    named = ServeConfig(models=[ModelConfig("x")])
    assert with_films(named) is named and len(asked) == 2
