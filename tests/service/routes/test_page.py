"""The page: its policy, and what a person does with it in a browser."""

import base64
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from helpers import task_config
from live_service import live
from test_image_runs import image_run
from tiny_pictures import png
from tiny_runs import untrained_run

from instructrec_jax import train
from instructrec_jax.data.media.pictures import size_of
from instructrec_jax.service.app import make_app
from instructrec_jax.service.models import Service, open_service
from instructrec_jax.service.settings import EngineSettings, LimitsConfig, ModelConfig, ServeConfig
from instructrec_jax.tasks import TextToImageConfig

BROWSER = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
QUIET = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking".split()


def test_only_the_page_s_own_script_and_style_run() -> None:
    answer = TestClient(make_app(Service(ServeConfig(), {}))).get("/")
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
    for tag in ("script", "style"):
        (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", answer.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert policy[f"{tag}-src"] == f"'sha256-{digest}'"
    assert policy["default-src"] == "'none'" and policy["frame-ancestors"] == "'none'"
    assert not re.search(
        r"https?://|innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(| on\w+=\"", answer.text
    )


@pytest.fixture(scope="module")
def address(
    checkpoint: Path, language_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("page")
    films = untrained_run(folder / "films", task_config("retrieval", folder / "catalogue"), checkpoint, 64)
    models = [ModelConfig(str(films), name="films"), ModelConfig(str(language_models["llama"]), name="chat")]
    engine = EngineSettings(slots=2, capacity=512, chunk=64)
    config = ServeConfig(models=models, engine=engine, limits=LimitsConfig(default_tokens=16))
    with live(make_app(open_service(config))) as url:
        yield url


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if BROWSER is None:
        pytest.skip("there is no browser: install Debian's chromium, or name one in $CHROMIUM")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=BROWSER, args=QUIET)
        yield opened
        opened.close()


@pytest.mark.parametrize(("width", "language"), [(1200, "en"), (390, "zh-CN")])
def test_a_person_asks_by_keyboard(browser: Any, address: str, width: int, language: str) -> None:
    context = browser.new_context(viewport={"width": width, "height": 900}, locale=language)
    page, problems = context.new_page(), []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text) if "Security Policy" in message.text else None)
    page.goto(address)
    page.wait_for_selector("#recommend-view:not([hidden])")
    page.focus("#wish")
    page.keyboard.type("a good film")
    page.keyboard.press("Tab")
    page.keyboard.type("<b>x</b>")
    page.keyboard.press("Enter")
    assert page.inner_text("#history li").startswith("<b>x</b>")  # text, not markup
    page.press("#history button", "Enter")
    page.press("#count", "Enter")
    page.wait_for_selector("ol.found li")
    assert page.locator("ol.found li").count() >= 1
    page.fill("#count", "99")
    page.press("#count", "Enter")
    page.wait_for_selector("#recommend-view p.error")

    page.goto(f"{address}/#chat")
    page.fill("#message", "good film")
    page.press("#message", "Enter")
    page.wait_for_selector("#chat-view button.main:not([disabled])")
    assert page.locator("#turns .said").count() >= 1
    page.goto(f"{address}/#status")
    page.wait_for_selector("#models tr")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.title().startswith("状态" if language == "zh-CN" else "Status")
    assert problems == []
    context.close()


def test_a_person_shows_pictures(
    browser: Any, seeing: dict[str, Path], image_networks: dict[str, Path], tmp_path: Path
) -> None:
    """A small file is sent as it is, a large one smaller; what is no picture is said, and a sent one stays in sight."""
    (tmp_path / "small.png").write_bytes(png(1))
    (tmp_path / "large.png").write_bytes(png(2, (1600, 400)))
    (tmp_path / "none.png").write_text("no picture")
    task = ["--task.type", "language_model", "--task.template", "plain"]
    colors = image_run(image_networks["vit"], tmp_path, steps=1, evaluation__every=0)
    train.train(colors)
    models = [ModelConfig(str(seeing["llava"]), name="sees", settings=task), ModelConfig(colors.run_dir, name="colors")]
    engine, sent = EngineSettings(slots=2, capacity=128, chunk=32), []
    config = ServeConfig(models=models, engine=engine, limits=LimitsConfig(default_tokens=8))
    with live(make_app(open_service(config))) as url:
        page = browser.new_page(viewport={"width": 390, "height": 900})
        page.on("request", lambda request: sent.append(request.post_data or ""))
        page.goto(f"{url}/#chat")
        page.set_input_files("#chat-picture", [tmp_path / "small.png", tmp_path / "large.png"])
        page.wait_for_selector("#chat-shown img >> nth=1")
        page.fill("#message", "good film")
        page.press("#message", "Enter")
        page.wait_for_selector("#chat-view button.main:not([disabled])")
        assert page.locator("#turns .user img").count() == 2 and page.locator("#chat-shown img").count() == 0
        assert page.locator("#chat-view p.error").count() == 0
        asked = json.loads(next(body for body in sent if "image_url" in body))["messages"][0]["content"]
        uris = [part["image_url"]["url"] for part in asked[:2]]
        assert base64.b64decode(uris[0].split(",")[1]) == png(1)
        assert uris[1].startswith("data:image/jpeg") and size_of(base64.b64decode(uris[1].split(",")[1])) == (1280, 320)
        page.goto(f"{url}/#classify")
        page.set_input_files("#classify-picture", tmp_path / "none.png")
        page.wait_for_selector("#classify-shown p.error")
        page.set_input_files("#classify-picture", tmp_path / "small.png")
        page.click("#classify-view button.main")
        page.wait_for_selector("#classify-view .answer .bar")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        if where := os.environ.get("SCREENSHOTS"):  # for a person to look at
            page.screenshot(path=f"{where}/classify.png")
            page.goto(f"{url}/#chat")
            page.screenshot(path=f"{where}/chat.png")
        page.close()


def test_a_person_has_a_picture_drawn(browser: Any, drawing: dict[str, Path], tmp_path: Path) -> None:
    task = TextToImageConfig(tokenizer=str(drawing["fsq"]), blank_prompts=0.3)
    run = untrained_run(tmp_path / "run", task, drawing["draw llama"], 16)
    with live(make_app(open_service(ServeConfig(models=[ModelConfig(str(run))])))) as url:
        page = browser.new_page(viewport={"width": 390, "height": 900})
        page.goto(url)
        page.wait_for_selector("#draw-view:not([hidden])")
        page.fill("#prompt", "a good film")
        page.fill("#draw-count", "2")
        page.press("#prompt", "Enter")
        page.wait_for_selector("#draw-view .answer img")
        assert page.locator("#draw-view .answer img").count() == 2
        assert page.evaluate("document.querySelector('#draw-view .answer img').naturalWidth") == 16
        page.fill("#draw-count", "9")
        page.press("#prompt", "Enter")
        assert "limits.drawings" in page.inner_text("#draw-view p.error")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
