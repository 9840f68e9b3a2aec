"""Kinds of sources beside files and data sets, registered by the rooms above: `{kind: NAME, path: ...}`."""

from collections.abc import Callable

from instructrec_jax.data.rows import Rows

Opener = Callable[[str, str], Rows]

_openers: dict[str, Opener] = {}


def register_kind(name: str, opener: Opener) -> None:
    """Makes `kind: NAME` known. opener: (path, split) of the source -> its rows; raises ValueError for a bad one."""
    _openers[name] = opener


def open_kind(name: str, path: str, split: str) -> Rows:
    """The rows of a source of a registered kind."""
    return _openers[name](path, split)


def is_registered(name: str) -> bool:
    return name in _openers
