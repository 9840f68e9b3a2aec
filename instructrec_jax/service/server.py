"""Starts the service and ends it: settings from the command line, then uvicorn."""

import errno
import ipaddress
import logging
import os
import socket
import ssl
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import FrameType

import uvicorn

from instructrec_jax.distributed.program_cache import keep_programs
from instructrec_jax.runs.config import DEFAULT, load
from instructrec_jax.runs.directory import is_finished
from instructrec_jax.service.app import make_app
from instructrec_jax.service.connections import protocol
from instructrec_jax.service.door import Door
from instructrec_jax.service.keys import Keys, Strangers
from instructrec_jax.service.logs import log_exchange, logs_to
from instructrec_jax.service.models import ROUTES, Service, open_service
from instructrec_jax.service.settings import ModelConfig, ServeConfig

logger = logging.getLogger(__name__)


def with_films(config: ServeConfig) -> ServeConfig:
    """The settings; where they name no model, with the embedded film recommender, which is trained if it is not there.

    Raises ValueError where that training fails.
    """
    if config.models:
        return config
    run_dir = Path(load(DEFAULT).run_dir)
    if not is_finished(run_dir):
        print(f"{run_dir} is not there yet: training the film recommender, which takes minutes.", file=sys.stderr)
        done = subprocess.run([sys.executable, "-m", "instructrec_jax.train"], check=False)
        if done.returncode:
            raise ValueError("training the film recommender failed (see above): run `python -m instructrec_jax.train`.")
    return replace(config, models=[ModelConfig(str(run_dir))])


def serve(config: ServeConfig) -> None:
    """Serves until SIGTERM or SIGINT; then answers what is running, and returns. A second signal ends the process.

    Raises ValueError or OSError, before the models are opened, for settings that cannot work.
    """
    check_address(config)
    check_tls(config)
    keys = Keys(config.keys) if config.keys else None
    listener(config.host, config.port).close()
    with logs_to(config.log) as form:
        config = with_films(config)
        keep_programs(Path(config.cache).expanduser() if config.cache else None)
        service = open_service(config)
        door = Door(keys, config.limits.header_bytes, strangers=Strangers(config.limits.failed_keys))
        app = make_app(service, [log_exchange], door)
        with listener(config.host, config.port) as sock:
            server = Server(_uvicorn_config(app, config), door, config.drain_seconds)
            _announce(config, service, sock, keys)
            form.answering = True
            server.run([sock])
        logger.info("stop")
        form.answering = False


def check_address(config: ServeConfig) -> None:
    """Refuses to listen for other machines without keys."""
    try:
        own = config.host == "localhost" or ipaddress.ip_address(config.host).is_loopback
    except ValueError:
        own = False
    if not own and not config.keys:
        raise ValueError(
            f"--host {config.host} lets other machines in, which needs keys: run `serve keys add NAME --keys "
            "keys.json`, then start with `--keys keys.json`; or leave --host out to serve this machine only."
        )


def check_tls(config: ServeConfig) -> None:
    """Raises ValueError if one of the two TLS files is missing, or they do not fit."""
    certificate, key = config.tls_certificate, config.tls_key
    if bool(certificate) != bool(key):
        raise ValueError("tls_certificate and tls_key belong together: set both, or none.")
    if not certificate:
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=_no_password)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise ValueError(f"tls_certificate {certificate} and tls_key {key} cannot be used ({error}).") from None


def _no_password() -> str:
    raise ValueError("the key has a password: write it without one, with `openssl pkey`")


def listener(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises OSError with a remedy."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        sock = socket.create_server(address[:2], family=family, backlog=1024)
        # asyncio would, if it had made the socket: without it an answer waits 40 ms for the client's acknowledgment
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            remedy = "another program listens there: stop it, or choose another --port (0: a free one)"
        elif error.errno == errno.EACCES:
            remedy = "ports below 1024 need rights: choose another --port"
        else:
            remedy = "check --host and --port"
        raise OSError(error.errno, f"cannot listen on {host}:{port} ({error.strerror or error}): {remedy}") from None


def _announce(config: ServeConfig, service: Service, sock: socket.socket, keys: Keys | None) -> None:
    """The line of the log that says where the service is, what it answers and who may ask."""
    host = f"[{config.host}]" if ":" in config.host else config.host
    address = f"{'https' if config.tls_key else 'http'}://{host}:{sock.getsockname()[1]}"
    models = {name: sorted(ROUTES[each] for each in model.abilities) for name, model in service.models.items()}
    fields = {"address": address, "models": models, "keys": config.keys or None}
    logger.info("start", extra={"fields": fields})
    if config.log:
        print(f"serving on {address}; the log is {config.log}", file=sys.stderr, flush=True)
    for key in keys or ():
        for pattern in key.models:
            if not any(replace(key, models=(pattern,), roles=()).may_use(name) for name in service.models):
                logger.warning("the key %s names a model that is not served: %s", key.name, pattern)


def _uvicorn_config(app: object, config: ServeConfig) -> uvicorn.Config:
    return uvicorn.Config(
        app,  # type: ignore[arg-type]
        http=protocol(config.limits),
        ws="none",
        loop="asyncio",
        workers=1,  # one process owns the accelerator, and the queues are in it
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        h11_max_incomplete_event_size=config.limits.header_bytes,
        timeout_graceful_shutdown=1,  # after draining
        ssl_certfile=config.tls_certificate or None,
        ssl_keyfile=config.tls_key or None,
    )


class Server(uvicorn.Server):
    """uvicorn, which goes on listening while running requests end, so that /ready says so."""

    def __init__(self, config: uvicorn.Config, door: Door, drain_seconds: float):
        super().__init__(config)
        self._door, self._drain_seconds = door, drain_seconds
        self._end: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._door.closing:
            os._exit(128 + sig)
        self._door.closing = True  # no more: this runs between any two instructions of the loop

    async def on_tick(self, counter: int) -> bool:
        if self._door.closing:
            if self._end is None:
                self._end = time.monotonic() + self._drain_seconds
                logger.info("shutting down", extra={"fields": {"running": self._door.inside}})
            if self._door.inside == 0 or time.monotonic() > self._end:
                self.should_exit = True
        return await super().on_tick(counter)
