"""Traces: a span per request, the caller's trace continued, and nobody's words in what is sent."""

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from instructrec_jax.service.exchange import Observed
from instructrec_jax.service.monitoring_settings import TracingConfig
from instructrec_jax.service.tracing import add_tracing

SAID = "Rumpelstiltskin"
TRACE = "0af7651916cd43dd8448eb211c80319c"


def app_with_routes() -> FastAPI:
    app = FastAPI()

    @app.post("/say/{name}")
    async def say(name: str, request: Request) -> str:
        request.state.exchange.model = "tiny"
        request.state.exchange.counts["texts"] += 2
        if name == "fail":
            raise RuntimeError(SAID)
        return name

    return app


def spans_of(config: TracingConfig, **headers: str) -> list[ReadableSpan]:
    exporter, app = InMemorySpanExporter(), app_with_routes()
    end = add_tracing(app, config, SimpleSpanProcessor(exporter))
    app.add_middleware(Observed, observers=[])
    with TestClient(app, raise_server_exceptions=False) as client:
        client.post(f"/say/hello?{SAID}={SAID}", content=SAID, headers={"baggage": f"said={SAID}", **headers})
        client.post("/say/fail", content=SAID)
        client.get(f"/{SAID}")
    end()
    return list(exporter.get_finished_spans())


def test_a_span_has_names_and_counts_and_no_words() -> None:
    spans = spans_of(TracingConfig("http://127.0.0.1:9"), traceparent=f"00-{TRACE}-b7ad6b7169203331-01")
    assert [span.name for span in spans] == ["/say/{name}", "/say/{name}", "unknown"]
    said, failed, missed = (dict(span.attributes or {}) for span in spans)
    assert said["http.response.status_code"] == 200 and said["instructrec.model"] == "tiny"
    assert said["instructrec.texts"] == 2 and said["http.route"] == "/say/{name}"
    assert failed["http.response.status_code"] == 500 and missed["http.response.status_code"] == 404
    assert [span.status.is_ok for span in spans] == [True, False, True]
    assert f"{spans[0].context.trace_id:032x}" == TRACE and f"{spans[1].context.trace_id:032x}" != TRACE
    assert all(SAID not in span.to_json() for span in spans)


def test_the_share_is_of_requests_without_a_trace() -> None:
    spans = spans_of(TracingConfig("http://127.0.0.1:9", share=0.0), traceparent=f"00-{TRACE}-b7ad6b7169203331-01")
    assert [span.name for span in spans] == ["/say/{name}"]


def test_a_collector_gets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    got: list[tuple[str, bytes]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Collector)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        app = app_with_routes()
        end = add_tracing(app, TracingConfig(f"http://127.0.0.1:{server.server_port}/v1/traces"))
        app.add_middleware(Observed, observers=[])
        with TestClient(app, raise_server_exceptions=False) as client:
            client.post("/say/hello", content=SAID)
            client.post("/say/fail", content=SAID)
        end()
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert {path for path, _ in got} == {"/v1/traces"}
    sent = b"".join(body for _, body in got)
    assert b"/say/{name}" in sent and b"instructrec_jax" in sent and SAID.encode() not in sent


def test_without_an_endpoint_there_are_none() -> None:
    app = FastAPI()
    add_tracing(app, TracingConfig())()
    assert app.user_middleware == []


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry.sdk.trace.sampling", None)
    with pytest.raises(ValueError, match=r"tracing.endpoint.*instructrec_jax\[otel\]"):
        add_tracing(FastAPI(), TracingConfig("http://127.0.0.1:9"))
