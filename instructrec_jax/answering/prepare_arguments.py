"""The command line of `prepare`: a format and its settings."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from instructrec_jax.data.example import suggest
from instructrec_jax.preparation.formats import SOURCES
from instructrec_jax.preparation.own_config import IdsConfig, InspectConfig, MaskFilesConfig
from instructrec_jax.preparation.prepare_data import PrepareConfig
from instructrec_jax.preparation.prepare_tags import TagsConfig
from instructrec_jax.runs.config import parse
from instructrec_jax.runs.help_text import fitted_help

Settings = InspectConfig | MaskFilesConfig | PrepareConfig | TagsConfig | IdsConfig
FORMATS: Mapping[str, type[Settings]] = {
    "inspect": InspectConfig,
    "mask": MaskFilesConfig,
    **SOURCES,
    "tags": TagsConfig,
    "ids": IdsConfig,
}


def prepare_settings(doc: str, args: Sequence[str]) -> Settings:
    """The settings of `prepare FORMAT ...`; without a format, prints the help, `doc`.

    Raises ValueError for an unknown format, ConfigError for its settings.
    """
    name, *rest = args or ["--help"]
    if name in ("-h", "--help"):
        print(fitted_help(doc))
        raise SystemExit(0)
    if name not in FORMATS:
        raise ValueError(f"unknown format {name!r}: choose from {', '.join(FORMATS)}.{suggest(name, list(FORMATS))}")
    kind = FORMATS[name]
    if kind in (InspectConfig, MaskFilesConfig):
        files, options = split_arguments(rest)
        return replace(parse(kind, options, default=None), files=files)
    return parse(kind, rest, default=None)


def split_arguments(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """(files, options with their values) of a command line: arguments without dashes are files."""
    files, options, rest = [], [], list(args)
    while rest:
        arg = rest.pop(0)
        if not arg.startswith("--"):
            files.append(arg)
            continue
        options.append(arg)
        options += [rest.pop(0)] if rest and "=" not in arg and arg != "--help" else []
    return files, options
