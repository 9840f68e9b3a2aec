"""The page: its policy, and what a person does with it in a browser."""

import base64
import hashlib
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
from tiny_runs import untrained_run

from instructrec_jax.service.app import make_app
from instructrec_jax.service.engine import EngineSettings
from instructrec_jax.service.models import Service, open_service
from instructrec_jax.service.settings import LimitsConfig, ModelConfig, ServeConfig

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
