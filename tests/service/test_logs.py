"""Logs: JSON lines that have names, counts and places, and no words."""

import json
import logging
import threading
import warnings
from pathlib import Path

import pytest

from instructrec_jax.service.exchange import Exchange
from instructrec_jax.service.keys import Key
from instructrec_jax.service.logs import log_exchange, logs_to

SECRET = "Ada Lovelace lives here"


def fail() -> None:
    try:
        raise KeyError(SECRET)
    except KeyError as error:
        raise RuntimeError(SECRET) from error


def test_lines_and_what_they_leave_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "serve.log"
    monkeypatch.setattr(logging.getLogger(), "level", logging.ERROR)  # as some packages leave it
    before = logging.getLogger().handlers, threading.excepthook
    with logs_to(str(path)) as form:
        logging.getLogger("instructrec_jax.runs").warning("the settings of %s", "a file")
        form.answering = True
        logging.getLogger("instructrec_jax.runs").warning("the text %r", SECRET)
        logging.getLogger("another.package").error(f"{SECRET}")
        warnings.simplefilter("always")
        warnings.warn(SECRET, stacklevel=1)
        try:
            fail()
        except RuntimeError as error:
            logging.getLogger("uvicorn.error").error("Exception in ASGI application\n", exc_info=error)
        thread = threading.Thread(target=fail)
        thread.start()
        thread.join()
        exchange = Exchange("r-1", "POST", "/v1/embeddings", "shop", Key("1", "shop", "s", "d"), "films", 200)
        exchange.counts["texts"] = 2
        log_exchange(exchange)
        path.rename(tmp_path / "serve.log.1")  # as logrotate does
        logging.getLogger("instructrec_jax.service.server").info("stop")
    assert (logging.getLogger().handlers, threading.excepthook) == before
    assert [json.loads(line)["message"] for line in path.read_text().splitlines()] == ["stop"]
    text = (tmp_path / "serve.log.1").read_text()
    assert SECRET not in text
    assert len(text.splitlines()) == 7, text
    first, second, third, warned, failed, died, request = map(json.loads, text.splitlines())
    assert first["message"] == "the settings of a file" and first["level"] == "warning"
    assert second["message"].startswith("instructrec_jax.runs at test_logs.py:")
    assert third["message"].startswith("another.package at test_logs.py:") and "py.warnings at" in warned["message"]
    assert failed["message"] == "Exception in ASGI application"
    assert [each["type"] for each in failed["exception"]] == ["RuntimeError", "KeyError"]
    assert failed["exception"][0]["frames"][-1].endswith(" fail")
    assert died["message"] == "a thread ended" and died["exception"][0]["type"] == "RuntimeError"
    expected = dict(
        request_id="r-1", method="POST", route="/v1/embeddings", key="shop", model="films", status=200,
        counts={"texts": 2}, seconds=0.0, first=None, message="request", level="info", time=request["time"],
    )  # fmt: skip
    assert request == expected and request["time"].endswith("+00:00")


def test_the_log_is_stderr_without_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    with logs_to(""):
        logging.getLogger("instructrec_jax.service").info("start", extra={"fields": {"address": "here"}})
    said = capsys.readouterr()
    assert json.loads(said.err)["address"] == "here" and said.out == ""
