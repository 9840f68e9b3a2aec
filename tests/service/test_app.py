"""The service as its clients see it, in one process."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient

from instructrec_jax.runs.run import Run
from instructrec_jax.runs.vectors import settings_of
from instructrec_jax.service.app import make_app
from instructrec_jax.service.models import open_service
from instructrec_jax.service.settings import LimitsConfig, ModelConfig, ServeConfig


@pytest.fixture(scope="module")
def client(checkpoint: Path) -> Iterator[TestClient]:
    models = [ModelConfig(str(checkpoint), name="tiny")]
    service = open_service(ServeConfig(models=models, limits=LimitsConfig(body_bytes=2000, texts=3)))
    with TestClient(make_app(service), raise_server_exceptions=False) as client:
        yield client


def test_vectors_are_those_of_the_run(client: TestClient, checkpoint: Path) -> None:
    texts = ["a good film", "a dull book about war"]
    answer = client.post("/v1/embeddings", json={"input": texts, "model": "tiny"})
    assert answer.status_code == 200
    found = np.array([each["embedding"] for each in answer.json()["data"]])
    np.testing.assert_allclose(found, Run.open(checkpoint, settings_of(str(checkpoint))).encode(texts), atol=1e-6)


@pytest.mark.parametrize(
    ("body", "status", "named"),
    [
        (b'{"input": ["a"]', 422, "not JSON"),
        (b'{"input": "\\ud800"}', 422, "surrogate"),
        (b'{"input": NaN}', 422, "NaN"),
        (b"[" * 1000, 422, "deep"),
        (b'{"input": "a", "input": "b"}', 422, "twice"),
        (b'{"input": 1}', 422, "input"),
        (b'{"input": "a", "modle": "tiny"}', 422, "'model'"),
        (b'{"input": "a", "model": "other"}', 404, "tiny"),
        (b'{"input": ["a", "a", "a", "a"]}', 422, "limits.texts"),
        (b'{"input": []}', 422, "limits.texts"),
        (b'{"input": "' + b"a" * 3000 + b'"}', 413, "limits.body_bytes"),
    ],
)
def test_bad_requests(client: TestClient, body: bytes, status: int, named: str) -> None:
    answer = client.post("/v1/embeddings", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == status
    assert named in answer.json()["error"]["message"]
