"""OpenTelemetry traces (extra otel): one span per request, sent to an OTLP collector.

A span has the route, the model, the status, the request's id and counts; no path, query, header or error message,
because these hold what users said. A caller's `traceparent` header is continued (W3C Trace Context), its baggage is
ignored.
"""

from collections.abc import Callable
from importlib.metadata import version
from typing import TYPE_CHECKING

from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from instructrec_jax.extras import EXTRAS
from instructrec_jax.service.exchange import Exchange
from instructrec_jax.service.monitoring_settings import TracingConfig

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanProcessor


class Traced:
    """An ASGI layer inside `Observed`: a span around each request, the current one while it is answered."""

    def __init__(self, app: ASGIApp, provider: "TracerProvider"):
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self.app, self._tracer = app, provider.get_tracer("instructrec_jax")
        self._extract = TraceContextTextMapPropagator().extract

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        from opentelemetry.trace import SpanKind, Status, StatusCode

        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange: Exchange = scope["state"]["exchange"]
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        context = self._extract({name: headers[name] for name in ("traceparent", "tracestate") if name in headers})
        with self._tracer.start_as_current_span(
            "request", context, SpanKind.SERVER, record_exception=False, set_status_on_exception=False
        ) as span:
            try:
                await self.app(scope, receive, send)
            except Exception:
                exchange.status = 500
                raise
            finally:
                route = getattr(scope.get("route"), "path", "unknown")
                span.update_name(route)
                span.set_attributes(
                    {
                        "http.route": route,
                        "http.response.status_code": exchange.status,
                        "instructrec.model": exchange.model,
                        "instructrec.request_id": exchange.request_id,
                        **{f"instructrec.{name}": number for name, number in exchange.counts.items()},
                    }
                )
                if exchange.status >= 500:
                    span.set_status(Status(StatusCode.ERROR))


def add_tracing(app: FastAPI, config: TracingConfig, processor: "SpanProcessor | None" = None) -> Callable[[], None]:
    """Adds the layer to an app where the settings ask for it; returns what sends the last spans and ends its thread.

    Args:
      processor: gets the spans in place of the collector.

    Raises ValueError if the extra is not installed.
    """
    if not config.endpoint:
        return lambda: None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
    except ImportError as error:  # `require` would find the namespace package, which other libraries bring
        command = f'pip install "instructrec_jax[{EXTRAS["opentelemetry"]}]"'
        raise ValueError(f"monitoring.tracing.endpoint needs {error.name}. Run `{command}`.") from None

    about = {"service.name": "instructrec_jax", "service.version": version("instructrec_jax")}
    sampler = ParentBased(TraceIdRatioBased(config.share))
    provider = TracerProvider(sampler=sampler, resource=Resource.create(about), shutdown_on_exit=False)
    provider.add_span_processor(processor or BatchSpanProcessor(OTLPSpanExporter(config.endpoint)))
    app.add_middleware(Traced, provider=provider)
    return provider.shutdown
