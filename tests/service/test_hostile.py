"""Ten thousand hostile requests: nothing but a plain refusal comes of them, and nothing is left of them."""

import asyncio
import json
import random
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import hostile
import pytest
from fastapi import FastAPI
from serving import Serving, key_file

from instructrec_jax.service.app import make_app
from instructrec_jax.service.door import Door
from instructrec_jax.service.keys import Keys
from instructrec_jax.service.models import Service, open_service
from instructrec_jax.service.settings import EngineSettings, LimitsConfig, ModelConfig, ServeConfig

PATIENCE = 60.0  # seconds for one request, on a machine with much else to do


@pytest.fixture(scope="module")
def service(checkpoint: Path, language_models: dict[str, Path]) -> Iterator[Service]:
    models = [ModelConfig(str(checkpoint), name="tiny"), ModelConfig(str(language_models["llama"]), name="writer")]
    limits = LimitsConfig(texts=8, new_tokens=4, default_tokens=2, choices=2)
    engine = EngineSettings(slots=4, capacity=96, chunk=32)
    opened = open_service(ServeConfig(models=models, limits=limits, engine=engine))
    opened.ready = True
    yield opened
    opened.close()


async def answered(app: FastAPI, sent: hostile.Sent) -> tuple[int, bytes]:
    """Status and body of an answer, without a server in between."""
    path, _, query = sent.path.partition("?")
    headers = [(name.lower().encode(), value.encode("latin-1", "replace")) for name, value in sent.headers]
    scope: dict[str, Any] = dict(type="http", asgi={"version": "3.0"}, http_version="1.1", scheme="http", root_path="")
    scope |= dict(method=sent.method, path=path, raw_path=path.encode(), query_string=query.encode(), headers=headers)
    scope |= dict(client=("127.0.0.1", 1), server=("127.0.0.1", 2))
    parts = [{"type": "http.request", "body": sent.body, "more_body": False}]
    said: list[Any] = []

    async def receive() -> Any:
        return parts.pop() if parts else await asyncio.Event().wait()

    async def send(message: Any) -> None:
        said.append(message)

    async with asyncio.timeout(PATIENCE):
        await app(scope, receive, send)
    return said[0]["status"], b"".join(part.get("body", b"") for part in said[1:])


def test_hostile_requests_are_refused_in_one_form(service: Service, tmp_path: Path) -> None:
    path, key = key_file(tmp_path)
    app = make_app(service, door=Door(Keys(path)))
    found: Counter[int] = Counter()

    async def all_of_them() -> None:
        for number, sent in enumerate(hostile.requests(hostile.routes_of(app.openapi()), key, 300)):
            status, body = await answered(app, sent)
            found[status] += 1
            assert status < 500, (number, sent.method, sent.path, sent.body[:200], body)
            if status >= 400 and sent.method != "HEAD":
                assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}

    asyncio.run(all_of_them())
    assert min(found[200], found[401], found[404], found[405], found[413], found[422]) > 0, found


@pytest.mark.slow
def test_ten_thousand_over_sockets(checkpoint: Path, language_models: dict[str, Path], tmp_path: Path) -> None:
    path, key = key_file(tmp_path)
    settings = "--limits.body_seconds 1 --limits.texts 8 --limits.new_tokens 4 --limits.default_tokens 2 "
    settings += "--limits.choices 2 --engine.slots 4 --engine.capacity 96 --engine.chunk 32"
    models = (str(checkpoint), str(language_models["llama"]))
    with Serving(tmp_path / "logs", *models, "--keys", str(path), *settings.split()) as running:
        openapi = running.get("/openapi.json", key)
        attacks = list(hostile.requests(hostile.routes_of(openapi), key, 10_000, seed=1))
        good = hostile.written(
            hostile.Sent(
                "POST",
                "/v1/embeddings",
                b'{"input": "love"}',
                [("Content-Type", "application/json"), ("Authorization", f"Bearer {key}")],
            )
        )

        def attack(number: int) -> list[int]:
            rng = random.Random(f"socket {number}")
            data = hostile.written(attacks[number])
            kind = rng.random()
            if kind < 0.3:
                data = hostile.smuggled(attacks[number], rng)
            return hostile.statuses(running.port, data, PATIENCE, half=0.3 < kind < 0.35, slow=1.5 * (kind > 0.995))

        def wave(numbers: range) -> Counter[int]:
            found: Counter[int] = Counter()
            with ThreadPoolExecutor(8) as pool:
                for number, each in zip(numbers, pool.map(attack, numbers), strict=True):
                    assert all(status < 500 for status in each), (number, each, attacks[number])
                    found.update(each or [0])
            assert hostile.statuses(running.port, good, PATIENCE) == [200]
            return found

        found = wave(range(2000))
        before = running.memory()
        for start in range(2000, 10_000, 1000):
            found += wave(range(start, start + 1000))
        after = running.memory()
        print(f"statuses {dict(found)}; resident memory after 2,000: {before:,}, after 10,000: {after:,} bytes")
        assert after < 1.05 * before
        assert running.stop() == 0
        assert '"level": "error"' not in running.said(0)
