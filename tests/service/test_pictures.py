"""Conversations with pictures over HTTP: as `generate --image` answers, within limits, and never fetched or logged."""

import base64
import logging
import random
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from live_service import live
from tiny_pictures import png

from instructrec_jax.answering.language_model import LanguageModel
from instructrec_jax.data.example import Example, Message
from instructrec_jax.data.media.picture import picture
from instructrec_jax.distributed.compilations import Compilations
from instructrec_jax.inference.generation_config import GenerationConfig
from instructrec_jax.service.app import make_app
from instructrec_jax.service.errors import ServiceError
from instructrec_jax.service.models import open_service
from instructrec_jax.service.pictures import check_pictures
from instructrec_jax.service.settings import EngineSettings, LimitsConfig, ModelConfig, PrivacyConfig, ServeConfig

PLAIN = ["--task.type", "language_model", "--task.template", "plain"]
KINDS = ("llava", "paligemma")


def uri(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def part(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url, "detail": "auto"}}


def asked(text: str, *urls: str, **more: Any) -> dict[str, Any]:
    content = [*map(part, urls), {"type": "text", "text": text}]
    return {"messages": [{"role": "user", "content": content}], "max_tokens": 6} | more


@pytest.fixture(scope="module")
def world(seeing: dict[str, Path], language_models: dict[str, Path]) -> Iterator[SimpleNamespace]:
    models = [ModelConfig(str(seeing[kind]), name=kind, settings=PLAIN) for kind in KINDS]
    models.append(ModelConfig(str(language_models["llama"]), name="blind"))
    config = ServeConfig(
        models=models,
        limits=LimitsConfig(pixels=40_000),
        engine=EngineSettings(slots=4, capacity=96, chunk=16),
        mask=PrivacyConfig(kinds=["all"]),
    )
    with live(make_app(open_service(config))) as url, httpx.Client(base_url=url, timeout=60) as client:
        opened = {kind: LanguageModel(seeing[kind], PLAIN) for kind in KINDS}
        yield SimpleNamespace(client=client, opened=opened)


def said(world: SimpleNamespace, body: dict[str, Any]) -> str:
    answer = world.client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


def refusal(world: SimpleNamespace, body: dict[str, Any]) -> tuple[int, str]:
    answer = world.client.post("/v1/chat/completions", json=body)
    return answer.status_code, answer.json()["error"]["message"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_chat_about_pictures_is_what_generate_writes(world: SimpleNamespace, kind: str) -> None:
    """With none, one and two pictures, in a crowd; nothing is compiled."""
    files = [[], [png(1)], [png(2), png(3)], [png(4, (90, 40), "L", "JPEG")], [png(1)], []] * 2
    texts = ["a good film", "bright music", "war", "love <EMAIL>", "a good film", "old book"] * 2
    examples = [
        Example(
            instruction="", messages=(Message("user", "<image>" * len(each) + text),), images=tuple(map(picture, each))
        )
        for text, each in zip(texts, files, strict=True)
    ]
    expected = world.opened[kind].generate(examples, GenerationConfig(max_new_tokens=6))
    bodies = [asked(text, *map(uri, each), model=kind) for text, each in zip(texts, files, strict=True)]
    with Compilations() as compilations, ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda body: said(world, body), bodies))
    assert found == [each.text for each in expected]
    assert compilations.count == 0


def test_the_prompt_of_generate_image_has_the_same_answer(world: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(5))
    config = GenerationConfig(max_new_tokens=6)
    (expected,) = world.opened["paligemma"].generate(["a good film"], config, images=[[tmp_path / "a.png"]])
    assert said(world, asked("a good film", uri(png(5)), model="paligemma")) == expected.text


def test_bad_pictures_are_named_and_nothing_is_fetched(world: SimpleNamespace) -> None:
    whole = png(1)
    for url, message in (
        ("http://127.0.0.1:1/x.png", "messages[0].content[0]: URLs are never fetched: send the picture itself"),
        ("https://example.com/x.png", "URLs are never fetched"),
        ("/etc/passwd", "files are never opened"),
        ("file:///etc/passwd", "URLs are never fetched"),
        (uri(whole[:90]), "picture 1 of 1: the picture of 90 bytes cannot be read as a picture"),
        (uri(b"no picture at all, but some bytes"), "cannot be read as a picture"),
        ("data:image/png;base64,%%%", "messages[0].content[0]"),
        (uri(png(1, (400, 300))), "content[0].image_url.url: the picture has 400 × 300 pixels; at most 40,000"),
    ):
        status, found = refusal(world, asked("a film", url, model="llava"))
        assert status == 422 and message in found, (url[:40], found)
    status, found = refusal(world, asked("a film", uri(whole), model="blind"))
    assert status == 422 and "reads no images" in found
    status, found = refusal(world, asked("a film", *[uri(whole)] * 9, model="llava"))
    assert status == 422 and "limits.pictures" in found
    status, found = refusal(world, asked("a film", *[uri(whole)] * 8, model="llava", max_tokens=50))
    assert status == 422 and "the network's limit" in found or "a slot has" in found
    assert said(world, asked("a film", uri(whole), model="llava")) is not None


def test_masking_leaves_pictures_and_nothing_is_logged(
    world: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    """Digits of base64 look like numbers of cards; the text beside is masked all the same."""
    caplog.set_level(logging.INFO)
    rng = random.Random(0)
    for seed in range(8):
        body = asked("write to ann.lee@example.com", uri(png(rng.randrange(1000))), model="llava")
        plain = asked("write to <EMAIL_1>", body["messages"][0]["content"][0]["image_url"]["url"], model="llava")
        assert said(world, body) == said(world, plain), seed
    refusal(world, asked("x", uri(png(1)[:90]), model="llava"))
    kept = "".join(str(record.__dict__) for record in caplog.records)
    assert "/v1/chat/completions" in kept and "iVBOR" not in kept and "base64" not in kept


def test_a_small_file_may_not_claim_many_pixels() -> None:
    """Nothing is decoded before the size is known."""
    whole = png(0, (1, 1))
    header = b"IHDR" + (5000).to_bytes(4) * 2 + whole[24:29]
    bomb = whole[:12] + header + zlib.crc32(header).to_bytes(4) + whole[33:]
    with pytest.raises(ServiceError, match=r"input\[1\].image: the picture has 5,000 × 5,000 pixels"):
        check_pictures([{"image": uri(png(1))}, {"image": uri(bomb)}], LimitsConfig(), "input")
    check_pictures({"text": "data:image/png;base64,AAAA", "other": ["plain", 3, None]}, LimitsConfig(), "input")
    assert len(bomb) < 200
