"""Webhooks on a real HTTP server: retries, order, signatures, and what is given up."""

import hashlib
import hmac
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from instructrec_jax.service.alerts import Alerts, Notice
from instructrec_jax.service.monitoring_settings import WebhookConfig
from instructrec_jax.service.webhooks import WAITING, Webhook


@dataclass
class Receiver:
    """A server that answers with the planned statuses, then with 204; "slow" answers too late."""

    plan: list[int | str] = field(default_factory=list)
    got: list[tuple[dict[str, object], dict[str, str], bytes]] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)
    let_go: threading.Event = field(default_factory=threading.Event)
    url: str = ""

    def wait(self, until: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(until, timeout=30)

    def wait_for(self, count: int) -> list[dict[str, object]]:
        self.wait(lambda: len(self.got) >= count)
        return [body for body, _, _ in self.got]


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    made = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers["Content-Length"]))
            with made.changed:
                made.got.append((json.loads(raw), dict(self.headers), raw))
                status = made.plan.pop(0) if made.plan else 204
                made.changed.notify_all()
            if status == "slow":
                made.let_go.wait(30)
                return
            self.send_response(int(status))
            if status == 302:
                self.send_header("Location", f"{made.url}/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    made.url = f"http://127.0.0.1:{server.server_port}/T0KEN"
    yield made
    made.let_go.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def hook(receiver: Receiver) -> Iterator[Webhook]:
    made = Webhook(WebhookConfig(receiver.url, attempts=3, timeout=0.2, backoff=0.01))
    yield made
    made.close()


def notice(name: str = "1") -> Notice:
    return {"id": name, "alert": "drift", "state": "firing"}


def test_an_incident_is_two_posts_however_often_it_is_measured(receiver: Receiver, hook: Webhook) -> None:
    alerts = Alerts([hook.send])
    for value in (1, 12, 13, 14, 9, 12, 3, 2):
        alerts.update("latency", "desk", value=value, threshold=10, text="slow")
    hook.close()
    assert [body["state"] for body in receiver.wait_for(2)] == ["firing", "resolved"]
    assert len(receiver.got) == 2 and hook.counts == {"sent": 2}
    headers = receiver.got[0][1]
    assert headers["Content-Type"] == "application/json" and "X-Instructrec-Signature" not in headers


@pytest.mark.parametrize("trouble", [500, 503, 429, 408, "slow"])
def test_trouble_is_tried_again_with_the_same_id(trouble: int | str, receiver: Receiver, hook: Webhook) -> None:
    receiver.plan = [trouble, trouble]
    hook.send(notice())
    hook.send(notice("2"))
    hook.close()
    assert [body["id"] for body in receiver.wait_for(4)] == ["1", "1", "1", "2"]
    assert hook.counts == {"sent": 2}


@pytest.mark.parametrize(("plan", "tries"), [([500] * 3, 3), ([404], 1), ([302], 1)])
def test_it_gives_up_with_a_line_in_the_log(
    plan: list[int | str], tries: int, receiver: Receiver, hook: Webhook, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.plan = list(plan)
    hook.send(notice())
    hook.close()
    assert len(receiver.got) == tries and hook.counts == {"dropped": 1}
    said = [each.message for each in caplog.records if each.levelno == logging.ERROR]
    assert len(said) == 1 and "monitoring.webhooks[0] (127.0.0.1): dropped the notice 1" in said[0]
    assert f"it answered {plan[0]}" in said[0] and "T0KEN" not in caplog.text


def test_nobody_there_is_tried_again_and_given_up(caplog: pytest.LogCaptureFixture) -> None:
    hook = Webhook(WebhookConfig("http://127.0.0.1:9/T0KEN", attempts=2, timeout=1, backoff=0.01))
    hook.send(notice())
    hook.close()
    assert hook.counts == {"dropped": 1}
    assert "the connection failed (ConnectionRefusedError), 2 times" in caplog.text and "T0KEN" not in caplog.text


def test_signatures_are_of_the_body(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK_KEY", "secret")
    hook = Webhook(WebhookConfig(receiver.url, secret_variable="HOOK_KEY"))
    hook.send(notice())
    hook.close()
    _, headers, raw = receiver.got[0]
    assert headers["X-Instructrec-Signature"] == f"sha256={hmac.new(b'secret', raw, hashlib.sha256).hexdigest()}"
    monkeypatch.delenv("HOOK_KEY")
    with pytest.raises(ValueError, match=r"webhooks\[3\].secret_variable.*HOOK_KEY.*not set"):
        Webhook(WebhookConfig(receiver.url, secret_variable="HOOK_KEY"), 3)


def test_what_waits_is_bounded_and_the_oldest_goes(receiver: Receiver) -> None:
    receiver.plan = ["slow"]
    hook = Webhook(WebhookConfig(receiver.url, attempts=1, timeout=5))
    hook.send(notice("first"))
    receiver.wait_for(1)  # it is on its way, and no longer waits
    for number in range(WAITING + 2):
        hook.send(notice(str(number)))
    assert hook.counts == {"dropped": 2}
    receiver.let_go.set()
    hook.close(30)
    assert [body["id"] for body in receiver.wait_for(WAITING + 1)][1] == "2"


def test_closing_does_not_wait_for_a_dead_receiver(receiver: Receiver) -> None:
    receiver.plan = [500] * 100
    hook = Webhook(WebhookConfig(receiver.url, attempts=100, timeout=0.2, backoff=1000))
    hook.send(notice())
    receiver.wait_for(1)
    began = time.monotonic()
    hook.close(seconds=0.1)
    assert time.monotonic() - began < 60  # of 1000 seconds until the next try
    hook.send(notice("late"))
    assert hook.counts == {"dropped": 2}
