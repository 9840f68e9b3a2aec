"""Pictures that the service draws are those of `generate --task image`, whoever asks beside.

(`instructrec_jax.service.routes.drawings`)
"""

import base64
import io
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from tiny_runs import untrained_run

from instructrec_jax.answering.drawing import Drawer
from instructrec_jax.distributed.compilations import Compilations
from instructrec_jax.service.app import make_app
from instructrec_jax.service.models import open_service
from instructrec_jax.service.settings import LimitsConfig, ModelConfig, ServeConfig
from instructrec_jax.tasks import TextToImageConfig

PATH = "/v1/images/generations"


@pytest.fixture(scope="module")
def run(drawing: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    task = TextToImageConfig(tokenizer=str(drawing["fsq"]), blank_prompts=0.3)
    return untrained_run(tmp_path_factory.mktemp("draws") / "run", task, drawing["draw llama"], 48)


@pytest.fixture(scope="module")
def client(run: Path) -> Iterator[TestClient]:
    limits = LimitsConfig(drawings=3)
    with TestClient(make_app(open_service(ServeConfig(models=[ModelConfig(str(run))], limits=limits)))) as opened:
        deadline = time.monotonic() + 120
        while opened.get("/ready").status_code != 200 and time.monotonic() < deadline:
            time.sleep(0.1)
        yield opened


def drawn(client: TestClient, **body: Any) -> list[np.ndarray]:
    answer = client.post(PATH, json=body)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert found["size"] == "16x16" and found["usage"]["output_tokens"] == 4 * len(found["data"])
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(each["b64_json"])))) for each in found["data"]]


def test_what_is_drawn_is_what_generate_draws_and_nothing_compiles(client: TestClient, run: Path) -> None:
    asked: list[dict[str, Any]] = [
        {"prompt": "a good film", "n": 3},
        {"prompt": "old war", "seed": 7, "size": "16x16"},
        {"prompt": "the a film " * 5, "n": 2, "temperature": 0.5, "guidance_scale": 2.0, "size": "auto"},
    ]
    with Compilations() as compilations, ThreadPoolExecutor(6) as threads:
        found = list(threads.map(lambda body: drawn(client, **body), asked * 2))
    assert compilations.count == 0
    drawer = Drawer(run)
    own = drawer.task.generation
    for body, pictures, again in zip(asked, found[:3], found[3:], strict=True):
        given = {name: body[name] for name in ("seed", "temperature", "guidance_scale") if name in body}
        want = drawer.draw([body["prompt"]] * body.get("n", 1), replace(own, **given))
        assert len(pictures) == len(want)
        for one, other, theirs in zip(pictures, again, want, strict=True):
            assert np.array_equal(one, other) and np.array_equal(one, theirs)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"prompt": "a", "n": 4}, "n is 4, but must be from 1 to 3 (limits.drawings)"),
        ({"prompt": "a", "n": 0}, "n is 0"),
        ({"prompt": " "}, "prompt 1 is empty"),
        ({"prompt": "old " * 300}, "data.max_length"),
        ({"prompt": "a", "size": "1024x1024"}, "draws pictures of 16x16 only"),
        ({"prompt": "a", "temperature": 0.0}, "temperature is 0, but this run is served with only values above 0"),
        ({"prompt": "a", "guidance_scale": 1.0}, "guidance_scale is 1, but this run"),
        ({"prompt": "a", "guidance_scale": 0.5}, "guidance_scale must be at least 1"),
        ({"prompt": "a", "seed": -1}, "seed must be between 0"),
        ({"prompt": "a", "response_format": "url"}, "response_format"),
        ({"prompt": "a", "quality": "hd"}, "there is no such field"),
        ({}, "prompt"),
    ],
)
def test_bad_requests_are_named(client: TestClient, body: dict[str, object], said: str) -> None:
    answer = client.post(PATH, json=body)
    assert answer.status_code == 422 and said in answer.text


def test_other_routes_say_who_draws(client: TestClient) -> None:
    (model,) = client.get("/v1/models").json()["data"]
    assert model["routes"] == [PATH] and model["task"] == "text_to_image"
    assert client.post("/classify", json={"input": "a"}).status_code == 404
