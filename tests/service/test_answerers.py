"""What the service answers is what the other verbs answer, for every task that predicts in one pass."""

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from helpers import data_uri, examples, task_config
from tiny_pictures import png
from tiny_runs import untrained_run

from instructrec_jax.answering.ensembles import How, make_ensemble
from instructrec_jax.answering.recommender import Recommender
from instructrec_jax.answering.requests import Request
from instructrec_jax.data.media.picture import picture
from instructrec_jax.runs.run import Run, open_member
from instructrec_jax.runs.vectors import settings_of
from instructrec_jax.service.app import make_app
from instructrec_jax.service.models import open_service
from instructrec_jax.service.settings import ModelConfig, ServeConfig

PREDICTING = {
    "classification": {},
    "multilabel": {},
    "regression": {},
    "token_classification": {},
    "span": {},
    "extractive_summarization": {},
    "position_translation": {},
    "position_translation, ctc": {"form": "ctc"},
    "similarity": {},
    "choice": {},
    "multitask": {},
    "classification of an ensemble": {},
}
RANKING = {
    "retrieval": {},
    "sequence": {},
    "reranker": {},
    "language_model_ranking": {},
    "language_model_ranking, yes_no": {"form": "yes_no", "negatives": 2},
    "sequence of an ensemble": {},
}


def variants_slow(names: Iterable[str]) -> list[Any]:
    return [pytest.param(name, marks=pytest.mark.slow) if "," in name else name for name in names]


@contextmanager
def served(run: Path) -> Iterator[TestClient]:
    service = open_service(ServeConfig(models=[ModelConfig(str(run))]))
    try:
        yield TestClient(make_app(service))  # without its lifespan: nothing is warmed up
    finally:
        service.close()


def kind_of(name: str) -> str:
    return name.partition(",")[0].partition(" ")[0]


def run_of(name: str, settings: dict[str, Any], networks: dict[str, Path], folder: Path) -> Path:
    kind = kind_of(name)
    network = networks["llama" if kind in ("choice", "language_model_ranking") else "bert"]

    def run(path: Path, seed: int = 0) -> Path:
        return untrained_run(path, task_config(kind, folder / "catalogue", **settings), network, 64, seed=seed)

    if not name.endswith("ensemble"):
        return run(folder / "run")
    members = [open_member(run(folder / f"run-{seed}", seed), (), None) for seed in range(2)]
    make_ensemble(members, folder / "ensemble", How("probability"))
    return folder / "ensemble"


@pytest.fixture(scope="module")
def networks(checkpoint: Path, language_models: dict[str, Path]) -> dict[str, Path]:
    return {"bert": checkpoint, **language_models}


def close(found: Any, wanted: Any) -> None:
    """Equal texts and places, and equal numbers to 1e-6 of their size."""
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            close(found[name], value)
    elif isinstance(wanted, list | tuple):
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            close(one, other)
    elif isinstance(wanted, float):
        assert found == pytest.approx(wanted, rel=1e-6, abs=1e-6)
    else:
        assert found == wanted


@pytest.mark.parametrize("name", variants_slow(PREDICTING))
def test_classify_as_predict(name: str, networks: dict[str, Path], tmp_path: Path) -> None:
    run = run_of(name, PREDICTING[name], networks, tmp_path)
    records = [e.to_record() for e in examples(kind_of(name), 6)]
    for record in records:
        record.pop("output", None)
    wanted = [answer.to_record() for answer in Run.open(run).predict(records)]
    with served(run) as client:
        answer = client.post("/classify", json={"input": records})
        assert answer.status_code == 200, answer.text
        found = [{name: value for name, value in each.items() if name != "index"} for each in answer.json()["data"]]
        close(found, [{name: _plain(value) for name, value in each.items()} for each in wanted])
        assert answer.json()["usage"]["prompt_tokens"] > 6


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


@pytest.mark.parametrize("name", variants_slow(RANKING))
def test_recommend_as_recommend(name: str, networks: dict[str, Path], tmp_path: Path) -> None:
    run = run_of(name, RANKING[name], networks, tmp_path)
    cases = examples(kind_of(name), 4)
    asked: list[dict[str, Any]] = [
        {"prompt": " ".join(e.instruction.split()[:4]), "history": [f"id:{item}" for item in e.history], "k": 3}
        for e in cases
    ]
    wanted = [each.to_record() for each in Recommender(run).recommend([Request(**each) for each in asked])]
    with served(run) as client:
        answer = client.post("/recommend", json={"requests": asked})
        assert answer.status_code == 200, answer.text
        close(answer.json()["data"], wanted)


def test_a_picture_is_asked_for_as_base64(
    networks: dict[str, Path], image_networks: dict[str, Path], tmp_path: Path
) -> None:
    run = run_of("sequence", {"pictures": str(image_networks["vit"])}, networks, tmp_path)
    (wanted,) = Recommender(run).recommend([Request(image=picture(png(4)), k=3)])
    with served(run) as client:
        answer = client.post("/recommend", json={"image": data_uri(png(4)), "k": 3})
        assert answer.status_code == 200, answer.text
        close(answer.json()["recommendations"], wanted.to_record()["recommendations"])
        assert answer.json()["usage"]["prompt_tokens"] == 0
        for image, said in (
            ("/etc/hostname", "give it as base64"),
            ("https://example.org/a.png", "never fetched"),
            (data_uri(png(4)[:60]), "cannot be read as a picture"),
        ):
            answer = client.post("/recommend", json={"image": image, "k": 3})
            assert answer.status_code == 422 and said in answer.text


def test_documents_are_ranked_by_what_the_run_knows(networks: dict[str, Path], tmp_path: Path) -> None:
    """A reranker's scores of items are those of their texts; an embedder ranks by cosines."""
    run = run_of("reranker", {}, networks, tmp_path)
    opened = Run.open(run)
    (case,) = opened.task.encode(examples("reranker", 1))
    documents = opened.task.catalogue.texts[:4]
    logits = opened.task.score_candidates(opened.predictor, [case], np.arange(4)[None])[0]
    with served(run) as client:
        body = {"query": case.example.instruction, "documents": documents, "return_documents": True}
        results = client.post("/rerank", json=body).json()["results"]
        found = {each["index"]: each["relevance_score"] for each in results}
        close([found[n] for n in range(4)], (1 / (1 + np.exp(-logits.astype(float)))).tolist())
        assert [each["document"]["text"] for each in results] == [documents[each["index"]] for each in results]
        assert client.post("/rerank", json=body | {"query": "very " * 70}).status_code == 422
    with served(networks["bert"]) as client:
        folder = str(networks["bert"])
        query, *vectors = Run.open(folder, settings_of(folder)).encode(["a film", "a dull film", "war"])
        wanted = [float(v @ query / np.linalg.norm(v) / np.linalg.norm(query)) for v in vectors]
        body = {"query": "a film", "documents": ["a dull film", {"text": "war", "year": 1}], "top_n": 1}
        answer = client.post("/v1/rerank", json=body).json()
        (best,) = answer["results"]
        assert best == {"index": int(np.argmax(wanted)), "relevance_score": pytest.approx(max(wanted), abs=1e-6)}


def test_a_run_that_chooses_ranks_documents(networks: dict[str, Path], tmp_path: Path) -> None:
    run = run_of("choice", {"labels": []}, networks, tmp_path)
    record = {"instruction": "a film", "candidates": ["good", "bad", "very dull"]}
    (wanted,) = Run.open(run).predict([record])
    with served(run) as client:
        body = {"query": "a film", "documents": record["candidates"]}
        (best, *rest) = client.post("/rerank", json=body).json()["results"]
        assert record["candidates"][best["index"]] == wanted.choice
        close(best["relevance_score"], wanted.probability)
        assert sum(each["relevance_score"] for each in [best, *rest]) == pytest.approx(1)
        assert client.post("/rerank", json=body | {"documents": ["good", "good"]}).status_code == 422


def test_a_bad_record_fails_in_its_own_request(networks: dict[str, Path], tmp_path: Path) -> None:
    run = run_of("classification", {}, networks, tmp_path)
    service = open_service(ServeConfig(models=[ModelConfig(str(run))]))
    (model,) = service.models.values()

    async def both() -> list[Any]:
        asked = [["good", {"instruction": 7}], ["bad film"], [" "]]
        return await asyncio.gather(*(model.ask("classify", each) for each in asked), return_exceptions=True)

    wrong, right, blank = asyncio.run(both())
    service.close()
    assert isinstance(wrong, ValueError) and "record 1" in str(wrong)
    assert isinstance(blank, ValueError) and "record 0" in str(blank)
    assert right.answers[0]["prediction"] == Run.open(run).predict("bad film")[0].label
