"""Starts the service: settings from the command line, then uvicorn."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile

import uvicorn

from instructrec_jax.runs.config import parse
from instructrec_jax.service.app import make_app
from instructrec_jax.service.models import open_service
from instructrec_jax.service.settings import ModelConfig, ServeConfig


def read_settings(args: Sequence[str]) -> ServeConfig:
    """The settings of `RUN... --config_path serve.yaml --port 8000 ...`; the RUNs come before the file's models."""
    paths = list(takewhile(lambda arg: not arg.startswith("-"), args))
    config = parse(ServeConfig, list(args[len(paths) :]), default=None)
    return replace(config, models=[*map(ModelConfig, paths), *config.models])


def serve(config: ServeConfig) -> None:
    """Serves until SIGTERM or SIGINT; then answers what is running, and ends."""
    app = make_app(open_service(config))
    uvicorn.run(app, host=config.host, port=config.port, log_config=None, access_log=False, server_header=False)
