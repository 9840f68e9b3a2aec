"""The service as an ASGI application."""

import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI

from instructrec_jax.service.body import CheckedBody
from instructrec_jax.service.errors import add_handlers
from instructrec_jax.service.exchange import Observed, Observer
from instructrec_jax.service.models import Service
from instructrec_jax.service.routes import items, records, status, vectors


def make_app(service: Service, observers: Sequence[Observer] = ()) -> FastAPI:
    """The application; it warms up in the background after the start, and drains its queues at the end.

    Args:
      observers: each is called with every `Exchange` once it has ended.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.started = time.time()
        warming = threading.Thread(target=service.warm_up, daemon=True)
        warming.start()
        yield
        service.ready = False
        service.close()

    app = FastAPI(
        title="instructrec_jax", version=version("instructrec_jax"), lifespan=lifespan, docs_url=None, redoc_url=None
    )
    app.state.service = service
    add_handlers(app)
    for routes in (status, vectors, records, items):
        app.include_router(routes.router)
    app.add_middleware(CheckedBody, limits=service.config.limits)
    app.add_middleware(Observed, observers=observers)  # the last is the outermost
    return app
