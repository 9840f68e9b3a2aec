"""Questions on a page: what it answers to whom, and what a person does with it in a browser."""

import http.client
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest

from instructrec_jax.labeling.label_page import LARGEST, LabelPage
from instructrec_jax.labeling.questions import Questions
from instructrec_jax.labeling.session import About, Session

BROWSER = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
LABELS = ["low", "mid", "high", "<b>bold</b>", *"abc", "card_arrival", "card_lost", "card_stolen"]
TEXTS = ["one", "two <script>alert(1)</script>", "三 😀"]
SHARES = np.array([[0.1, 0.6, 0.1, 0.05, 0.05, 0.02, 0.02, 0.02, 0.02, 0.02]] * 3)


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    with closing(Session.open(tmp_path / "session", About(pool="p", fingerprint="f", labels=LABELS))) as opened:
        yield opened


@pytest.fixture
def page() -> Iterator[LabelPage]:
    opened = LabelPage(0)
    opened.told.set()
    with closing(opened):
        yield opened


def start(page: LabelPage, session: Session, shares: np.ndarray | None = SHARES) -> Callable[[], bool]:
    """Asks in a thread; the returned function waits for its end."""
    answers: list[bool] = []
    questions = Questions(session, [0, 1, 2], TEXTS, "ada", shares)
    thread = Thread(target=lambda: answers.append(page.ask(questions)))
    thread.start()
    while page.questions is None and thread.is_alive():
        pass

    def end() -> bool:
        thread.join(10)
        return answers[0]

    return end


def call(page: LabelPage, method: str, path: str, body: bytes = b"", key: str | None = None) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", urlsplit(page.address).port, timeout=10)
    connection.request(method, path, body or None, {"X-Key": page.key if key is None else key})
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    return answer.status, json.loads(text) if answer.getheader("Content-Type") == "application/json" else text.decode()


def act(page: LabelPage, **sent: object) -> Any:
    return call(page, "POST", "/act", json.dumps(sent).encode())[1]


def test_answers_are_kept_as_on_the_terminal(page: LabelPage, session: Session) -> None:
    end = start(page, session)
    asked = call(page, "GET", "/state")[1]
    assert asked["state"] == "asking" and asked["text"] == "one" and asked["who"] == "ada"
    assert asked["labels"][0] == "mid" and asked["shares"][0] == 0.6 and (asked["place"], asked["count"]) == (1, 3)
    assert act(page, action="label", label="high", number=0)["number"] == 1
    assert session.lines[-1]["thought"] == "mid" and session.lines[-1]["text"] == "one"
    assert "another window" in act(page, action="skip", number=0)["problem"]
    assert act(page, action="undo")["number"] == 0
    assert "is not one of the labels" in act(page, action="label", label="hihg", number=0)["problem"]
    act(page, action="unsure", number=0)
    act(page, action="skip", number=1)
    assert act(page, action="label", label="low", number=2)["state"] == "waiting"
    assert end() and session.taken() == {2: "low"} and session.answered("ada") == {0, 1, 2}


def test_quitting_keeps_what_was_said(page: LabelPage, session: Session) -> None:
    end = start(page, session, None)
    asked = act(page, action="label", label="low", number=0)
    assert asked["labels"] == LABELS and asked["shares"] is None and "thought" not in session.lines[-1]
    act(page, action="quit")
    assert not end() and session.taken() == {0: "low"}
    page.say("ada and bob agree on 100% of 1 texts")
    waiting = call(page, "GET", "/state")[1]
    assert waiting["state"] == "waiting" and "agree" in waiting["notes"][0]
    assert "nothing is asked" in act(page, action="skip", number=1)["problem"]


def test_a_full_disk_is_said(page: LabelPage, session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    end = start(page, session)
    with monkeypatch.context() as patch:
        patch.setattr("instructrec_jax.labeling.session.append_jsonl", full)
        answer = act(page, action="label", label="low", number=0)
        assert "was not saved" in answer["problem"] and "No space" in answer["problem"] and answer["number"] == 0
        assert act(page, action="undo")["problem"] == "nothing to undo"
    act(page, action="label", label="low", number=0)
    with monkeypatch.context() as patch:
        patch.setattr("instructrec_jax.labeling.session.append_jsonl", full)
        assert "nothing was undone" in act(page, action="undo")["problem"] and session.taken() == {0: "low"}
    act(page, action="quit")
    assert not end()


def test_nobody_else_reads_or_labels(page: LabelPage, session: Session) -> None:
    end = start(page, session)
    for method, path, body in (
        ("GET", "/", b""),
        ("GET", "/?key=wrong", b""),
        ("GET", "/state", b""),
        ("POST", "/act", b'{"action": "skip", "number": 0}'),
    ):
        assert call(page, method, path, body, key="")[0] == 403, path
    assert call(page, "POST", "/act", b"x" * (LARGEST + 1))[0] == 413
    for body in (b"\xff", b"[]", b"{"):
        assert "no JSON object" in call(page, "POST", "/act", body)[1]["problem"]
    assert "no action" in act(page, action="delete", number=0)["problem"] and not session.lines
    status, text = call(page, "GET", f"/?key={page.key}")
    assert status == 200 and "innerHTML" not in text and page.key not in text
    act(page, action="quit")
    assert not end()


def test_a_port_in_use_is_named(page: LabelPage) -> None:
    port = urlsplit(page.address).port
    with pytest.raises(ValueError, match=f"--page {port}: .*Choose another port"):
        LabelPage(port or 0)
    with pytest.raises(ValueError, match="--page 70000"):
        LabelPage(70_000)


@pytest.mark.skipif(BROWSER is None, reason="there is no browser: install Debian's chromium, or name one in $CHROMIUM")
def test_a_person_labels_by_keyboard(page: LabelPage, session: Session) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    end = start(page, session)
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        shown = browser.new_page(viewport={"width": 390, "height": 800})
        problems: list[str] = []
        shown.on("pageerror", lambda error: problems.append(str(error)))
        shown.goto(page.address)
        shown.wait_for_selector("#question:not([hidden])")
        assert "mid" in shown.inner_text("#labels li") and shown.inner_text("#place") == "1 of 3"
        shown.keyboard.press("1")
        shown.wait_for_selector("#place:text-is('2 of 3')")
        assert shown.inner_text("#text") == TEXTS[1]  # text, not markup
        shown.keyboard.press("u")
        shown.wait_for_selector("#place:text-is('1 of 3')")
        shown.keyboard.press("s")
        shown.wait_for_selector("#place:text-is('2 of 3')")
        shown.keyboard.press("/")
        shown.keyboard.type("stol")
        assert shown.locator("#labels li").count() == 1
        shown.keyboard.press("Enter")
        shown.wait_for_selector("#place:text-is('3 of 3')")
        assert shown.evaluate("document.documentElement.scrollWidth") <= 390
        shown.keyboard.press("?")
        shown.wait_for_selector("#question", state="hidden")
        page.over = True
        shown.wait_for_selector("#message:has-text('over')")
        browser.close()
    assert end() and session.taken() == {1: "card_stolen"} and problems == []
    assert [line["kind"] for line in session.lines] == ["label", "undo", "skip", "label", "unsure"]


@pytest.mark.skipif(BROWSER is None, reason="there is no browser: install Debian's chromium, or name one in $CHROMIUM")
def test_the_key_of_a_label_that_is_a_number_is_its_name(page: LabelPage, tmp_path: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    about = About(pool="p", fingerprint="f", labels=["0", "1", "2"])
    with closing(Session.open(tmp_path / "numbers", about)) as session, playwright.sync_playwright() as started:
        end = start(page, session, np.array([[0.1, 0.2, 0.7]] * 3))
        browser = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        shown = browser.new_page()
        shown.goto(page.address)
        shown.wait_for_selector("#question:not([hidden])")
        assert shown.locator("#labels kbd").all_inner_texts() == ["2", "1", "0"]
        shown.keyboard.press("3")  # the place of a label, and no name of one
        shown.keyboard.press("1")
        shown.wait_for_selector("#place:text-is('2 of 3')")
        shown.keyboard.press("0")
        shown.wait_for_selector("#place:text-is('3 of 3')")
        shown.keyboard.press("2")
        shown.wait_for_selector("#question", state="hidden")
        browser.close()
    assert end() and session.taken() == {0: "1", 1: "0", 2: "2"}
