"""`serve keys add|list|revoke`: who may use the service."""

import argparse

from instructrec_jax.answering.arguments import verb_parser
from instructrec_jax.service.keys import add_key, read_keys, revoke_key, unknown_routes
from instructrec_jax.service.settings import ServeConfig

DOC = """Add, list and revoke the keys of the service: `python -m instructrec_jax.serve keys add NAME --keys FILE`.

    serve keys add shop --keys keys.json --routes recommend,chat --models films --per_minute 60
    serve keys list --keys keys.json
    serve keys revoke shop --keys keys.json      within a second, without a restart

`add` prints the key once; the file has a salted hash of it only. `serve --keys keys.json` starts the service with them.
"""


def main(args: list[str]) -> None:
    options = read(args)
    if options.command == "list":
        print(_table(options.keys))
    elif options.name is None:
        raise ValueError(f"whose key? `serve keys {options.command} NAME --keys {options.keys}`.")
    elif options.command == "revoke":
        revoke_key(options.keys, options.name)
        print(f"revoked the key {options.name}: running services refuse it within a second.")
    else:
        _check_routes(options.routes)
        limits = {"per_minute": options.per_minute, "tokens_per_day": options.tokens_per_day}
        which = {"routes": options.routes, "models": options.models, "roles": options.roles}
        print(add_key(options.keys, options.name, **which, **limits))


def read(args: list[str]) -> argparse.Namespace:
    parser = verb_parser("serve keys", DOC)
    add = parser.add_argument
    add("command", choices=("add", "list", "revoke"), help="what to do")
    add("name", nargs="?", help="name of the key: who uses it; logs and metrics have it")
    add("--keys", required=True, help="the file of the keys")
    add("--routes", type=_names, default=["*"], help="recommend,chat or patterns: /v1/*; default: all")
    add("--models", type=_names, default=["*"], help="names of models, or patterns; default: all")
    add("--roles", type=_names, default=["user"], help="user, metrics (/metrics), admin (everything); default: user")
    add("--per_minute", type=int, help="requests per minute; default: any number")
    add("--tokens_per_day", type=int, help="tokens read and written per day (UTC); default: any number")
    return parser.parse_intermixed_args(args)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _check_routes(patterns: list[str]) -> None:
    from instructrec_jax.service.app import make_app  # needs jax
    from instructrec_jax.service.models import Service

    paths = list(make_app(Service(ServeConfig(), {})).openapi()["paths"])
    if unknown := unknown_routes(patterns, paths):
        raise ValueError(f"no route fits {unknown[0]!r}; the routes are: {', '.join(sorted(paths))}.")


def _table(path: str) -> str:
    rows = [("name", "id", "routes", "models", "roles", "per_minute", "tokens_per_day", "created", "revoked")]
    for key in read_keys(path):
        lists = (",".join(key.routes), ",".join(key.models), ",".join(key.roles))
        limits = (str(key.per_minute or "-"), str(key.tokens_per_day or "-"))
        rows.append((key.name, key.id, *lists, *limits, key.created, key.revoked or "-"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
