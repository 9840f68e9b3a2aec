"""Starts the service: settings from the command line, then uvicorn."""

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile
from pathlib import Path

import jax
import uvicorn

from instructrec_jax.files import cache_folder
from instructrec_jax.runs.config import DEFAULT, load, parse
from instructrec_jax.runs.directory import is_finished
from instructrec_jax.service.app import make_app
from instructrec_jax.service.models import open_service
from instructrec_jax.service.settings import ModelConfig, ServeConfig


def read_settings(args: Sequence[str]) -> ServeConfig:
    """The settings of `RUN... --config_path serve.yaml --port 8000 ...`; the RUNs come before the file's models."""
    paths = list(takewhile(lambda arg: not arg.startswith("-"), args))
    config = parse(ServeConfig, list(args[len(paths) :]), default=None)
    return replace(config, models=[*map(ModelConfig, paths), *config.models])


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


def keep_programs(config: ServeConfig) -> None:
    """Keeps compiled programs on disk, so that the next start reads them."""
    folder = Path(config.cache) if config.cache else cache_folder() / "programs"
    jax.config.update("jax_compilation_cache_dir", str(folder.expanduser()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def serve(config: ServeConfig) -> None:
    """Serves until SIGTERM or SIGINT; then answers what is running, and ends."""
    config = with_films(config)
    keep_programs(config)
    app = make_app(open_service(config))
    uvicorn.run(app, host=config.host, port=config.port, log_config=None, access_log=False, server_header=False)
