"""A service compiles nothing while it answers requests of every kind."""

import re
import time
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import traffic
from desk_actions import ACTIONS, INTENTS
from fastapi.testclient import TestClient
from helpers import task_config
from tiny_runs import untrained_run

from instructrec_jax.distributed.compilations import Compilations
from instructrec_jax.ranking.catalogue import Catalogue
from instructrec_jax.service.app import make_app
from instructrec_jax.service.models import open_service
from instructrec_jax.service.settings import EngineSettings, LimitsConfig, ModelConfig, ServeConfig
from instructrec_jax.tasks import ClassificationConfig

COUNT = 10_000


def every_kind(networks: dict[str, Path], folder: Path) -> tuple[list[ModelConfig], dict[str, str]]:
    """Models of every ability and form of answer, not trained: their settings, and name -> kind of `traffic.KINDS`."""
    rankers = ("retrieval", "sequence", "reranker", "language_model_ranking")
    tasks: dict[str, Any] = {kind: task_config(kind, folder / "catalogue") for kind in rankers}
    plain = Catalogue.load(folder / "catalogue")
    facts = {
        "genre": [traffic.GENRES[n % 2] for n in range(traffic.ITEMS)],
        "year": [*range(1992, 1992 + traffic.ITEMS)],
    }
    Catalogue(plain.ids, plain.titles, plain.texts, facts).save(folder / "catalogue")
    kinds = {kind: kind for kind in rankers}
    forms = ("multilabel", "regression", "token_classification", "similarity", "choice")
    for kind in (*forms, "span", "extractive_summarization", "multitask", "classification"):
        tasks[kind], kinds[kind] = task_config(kind, folder), "labels" if kind in forms else kind
    tasks["options"], kinds["options"] = task_config("choice", folder, labels=[]), "options"
    tasks["desk"], kinds["desk"] = ClassificationConfig(labels=INTENTS), "desk"
    tasks["news"], kinds["news"] = ClassificationConfig(labels=["negative", "neutral", "positive"]), "news"
    actions = folder / "actions.yaml"
    actions.write_text(ACTIONS, encoding="utf-8")
    models = []
    for name, task in tasks.items():
        writes = name in ("language_model_ranking", "choice", "options")
        run = untrained_run(folder / name, task, networks["llama" if writes else "encoder"], 64)
        settings = [] if writes else ["--data.truncate", "right"]
        models.append(ModelConfig(str(run), settings=settings, actions=str(actions) if name == "desk" else ""))
    models += [ModelConfig(str(networks[name]), name=name) for name in ("encoder", "llama", "t5")]
    return models, kinds | {"encoder": "encoder", "llama": "writer", "t5": "pair"}


def memory() -> int:
    """Resident memory of this process in bytes."""
    return 1024 * int(re.findall(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())[0])


@pytest.mark.slow
def test_ten_thousand_requests_of_every_kind_compile_nothing(
    checkpoint: Path, language_models: dict[str, Path], tmp_path: Path
) -> None:
    models, kinds = every_kind({"encoder": checkpoint, **language_models}, tmp_path)
    limits = LimitsConfig(texts=64, candidates=20, choices=3, new_tokens=12, default_tokens=8, records=20_000)
    config = ServeConfig(models=models, limits=limits, engine=EngineSettings(slots=4, capacity=256, chunk=32))
    service = open_service(config)
    found: defaultdict[str, Counter[int]] = defaultdict(Counter)
    why: dict[tuple[str, int], str] = {}
    with TestClient(make_app(service), raise_server_exceptions=False) as client, Compilations() as compilations:
        while not service.ready:
            assert not service.failed, service.failed
            time.sleep(0.05)
        asked = list(traffic.requests(kinds, COUNT, seed=1))
        compiled, began, used = compilations.count, time.monotonic(), 0

        def ask(one: tuple[str, traffic.Body]) -> None:
            answer = client.post(one[0], json=one[1])
            found[f"{one[0]} {one[1]['model']}"][answer.status_code] += 1
            if answer.status_code != 200:
                why.setdefault((f"{one[0]} {one[1]['model']}", answer.status_code), answer.text)

        with ThreadPoolExecutor(8) as threads:
            list(threads.map(ask, asked[: COUNT // 5]))
            used = memory()
            list(threads.map(ask, asked[COUNT // 5 :]))
        seconds, after = time.monotonic() - began, memory()
    print(f"\ncompiled {compiled} programs until ready, {compilations.count - compiled} later; {seconds:.0f} s")
    print(f"resident memory after 2,000 requests {used:,}, after 10,000 {after:,} bytes")
    for kind, statuses in sorted(found.items()):
        print(kind, dict(statuses))
    for (kind, status), text in sorted(why.items()):
        print(kind, status, text[:300])
    assert compilations.count == compiled > 0
    assert min(statuses[200] for statuses in found.values()) >= 100
    assert sum((statuses for statuses in found.values()), Counter()).keys() <= {200, 422}
    assert after < 1.05 * used
