"""The service as an ASGI application."""

import gc
import logging
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import Depends, FastAPI
from starlette.middleware.cors import CORSMiddleware

from instructrec_jax.service.body import CheckedBody
from instructrec_jax.service.door import Door, Guarded, allowed
from instructrec_jax.service.errors import RESPONSES, Contained, add_handlers
from instructrec_jax.service.exchange import Observed, Observer
from instructrec_jax.service.models import Service
from instructrec_jax.service.monitoring import Monitoring
from instructrec_jax.service.privacy import Privacy
from instructrec_jax.service.routes import drawings, generation, items, metrics, page, records, status, vectors
from instructrec_jax.service.tracing import add_tracing

logger = logging.getLogger(__name__)


def make_app(service: Service, observers: Sequence[Observer] = (), door: Door | None = None) -> FastAPI:
    """The application; it warms up in the background after the start, and drains its queues at the end.

    Args:
      observers: each is called with every `Exchange` once it has ended.
      door: who comes in; None: everyone.
    """
    monitoring = Monitoring(service)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.started = time.time()
        warming = threading.Thread(target=_warm_up, args=(service, monitoring), name="warm-up", daemon=True)
        monitoring.start()
        warming.start()
        yield
        service.ready, service.stopping = False, True
        warming.join()  # a process that ends while XLA compiles is aborted
        service.close()
        monitoring.close()

    app = FastAPI(
        title="instructrec_jax",
        version=version("instructrec_jax"),
        lifespan=lifespan,
        dependencies=[Depends(allowed)],
        responses=RESPONSES,
        redirect_slashes=False,  # a redirect would repeat the caller's own Host
        openapi_url=None,  # these three would be open to everyone: routes/status.py has the first
        docs_url=None,
        redoc_url=None,
    )
    app.state.service, app.state.door, app.state.monitoring = service, door or Door(), monitoring
    app.state.privacy = Privacy(service.config.mask)
    add_handlers(app)
    for routes in (page, status, metrics, vectors, records, items, drawings, generation):
        app.include_router(routes.router)
    app.add_middleware(CheckedBody, limits=service.config.limits)  # the innermost; the last is the outermost
    app.add_middleware(Guarded, door=app.state.door)
    if origins := service.config.cors_origins:
        app.add_middleware(CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"])
    app.add_middleware(Contained)
    monitoring.at_end(add_tracing(app, service.config.monitoring.tracing))
    app.add_middleware(Observed, observers=[app.state.door.ended, *observers, monitoring.observe])
    return app


def _warm_up(service: Service, monitoring: Monitoring) -> None:
    began = time.perf_counter()
    service.warm_up()
    if not gc.isenabled():  # as `serve` starts
        gc.freeze()  # what the start made stays: no later pass walks through it
        gc.enable()
    if service.ready:
        monitoring.warmed_up()
        logger.info("ready", extra={"fields": {"seconds": round(time.perf_counter() - began, 3)}})
