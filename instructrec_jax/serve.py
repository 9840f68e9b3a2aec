"""Serve tuned models over HTTP: `python -m instructrec_jax.serve RUN_OR_HF_FOLDER [MORE...]`.

    serve runs/films                             recommendations, on http://127.0.0.1:8000
    serve runs/desk runs/chat --port 9000        several models; requests name one of them
    serve --config_path serve.yaml               all settings from a file (docs/serving.md)
    serve keys add NAME --keys keys.json         a key; `serve keys --help` has more

Routes follow from what each run can do: /v1/chat/completions, /v1/embeddings, /classify, /recommend ...; /v1/models
lists them. Without a run, it serves the embedded film recommender.
"""

import gc
from argparse import Namespace

from instructrec_jax.answering.arguments import verb_parser
from instructrec_jax.extras import require
from instructrec_jax.runs.config import main_guard, read_first
from instructrec_jax.service import key_commands
from instructrec_jax.service.settings import ServeConfig, read_settings


def main(args: list[str]) -> None:
    settings = read(args)
    if isinstance(settings, Namespace):
        return key_commands.main(args[1:])
    from instructrec_jax.service import server  # needs jax, and the packages of an extra

    server.serve(settings)


def read(args: list[str]) -> ServeConfig | Namespace:
    """The settings of the service, or the options of `serve keys`."""
    for package in ("fastapi", "prometheus_client", "uvicorn"):
        require(package, "the service")
    if args[:1] == ["keys"]:
        return key_commands.read(args[1:])
    if {"-h", "--help"} & set(args):
        print(verb_parser("serve", __doc__).format_help().partition("\noptions:")[0])
    return read_settings(args)


if __name__ == "__main__":
    gc.disable()  # until the service is ready (`service.app`): its passes are a tenth of the start, and find nothing
    read_first(read)
    main_guard(main)
