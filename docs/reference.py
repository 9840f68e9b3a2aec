"""The reference pages of the site, made from the settings' dataclasses, the verbs' parsers and the public names.

`docs/conf.py` calls `write` before each build; `python docs/reference.py` writes the pages by hand.
"""

import ast
import dataclasses
import importlib
import inspect
import io
import os
import typing
from collections.abc import Iterator
from contextlib import redirect_stdout, suppress
from importlib.util import find_spec
from pathlib import Path

import draccus
from draccus.wrappers import docstring

import instructrec_jax
from instructrec_jax.__main__ import VERBS
from instructrec_jax.inference.generation_config import GenerationConfig
from instructrec_jax.preparation.formats import SOURCES
from instructrec_jax.preparation.own_config import InspectConfig
from instructrec_jax.preparation.prepare_tags import TagsConfig
from instructrec_jax.runs.config import Config

# ------------------------------------------------------------------ settings


def settings_page() -> str:
    """Every setting of a training run: name, type, default and what it does."""
    top = [entry for entry in dataclasses.fields(Config) if not is_group(kind_of(Config, entry.name))]
    parts = [
        "# Settings",
        "What a YAML file for `train FILE.yaml` holds, and what `--name value` sets on the command line of "
        "every verb that opens a run. This page is made from the dataclasses that read them.",
        "## The run",
        table(Config, "", top),
    ]
    for entry in dataclasses.fields(Config):
        kind = kind_of(Config, entry.name)
        if is_group(kind):
            parts += list(section(kind, entry.name))
    return "\n\n".join(parts) + "\n"


def section(kind: type, name: str) -> Iterator[str]:
    """A heading and a table for a group of settings, and for each choice of its `type` where it has some."""
    yield f"## {name}"
    if issubclass(kind, draccus.ChoiceRegistry):
        yield f"`{name}.type` chooses one of the following; each has its own settings."
        for choice, config in sorted(kind.get_known_choices().items()):
            yield f"### {name}.type: {choice}"
            yield summary(config)
            yield table(config, f"{name}.")
            for inside, prefix in nested(config, f"{name}."):
                yield f"Each entry of `{prefix.rstrip('.')}`:"
                yield table(inside, prefix)
        return
    yield summary(kind)
    yield table(kind, f"{name}.")
    for inside, prefix in nested(kind, f"{name}."):
        yield f"### Entries of {prefix.rstrip('.')}"
        yield summary(inside)
        yield table(inside, prefix)


def nested(kind: type, prefix: str) -> Iterator[tuple[type, str]]:
    """Dataclasses inside a group: of lists, and of single fields, with the prefix of their settings."""
    for entry in dataclasses.fields(kind):
        found = kind_of(kind, entry.name)
        inside = typing.get_args(found)[0] if typing.get_origin(found) is list else found
        if isinstance(inside, type) and dataclasses.is_dataclass(inside) and not is_choice(inside):
            once = entry.name if prefix != "data." or entry.name not in ("validation", "test") else ""
            if once:
                yield inside, f"{prefix}{entry.name}."
                yield from nested(inside, f"{prefix}{entry.name}.")


def table(kind: type, prefix: str, entries: typing.Sequence[dataclasses.Field[object]] | None = None) -> str:
    rows = ["| setting | type | default | |", "|---|---|---|---|"]
    for entry in dataclasses.fields(kind) if entries is None else entries:
        words = docstring.get_attribute_docstring(kind, entry.name)
        text = " ".join((words.docstring_below or words.comment_above or "").split() + words.comment_inline.split())
        cells = [f"`{prefix}{entry.name}`", shown_type(kind_of(kind, entry.name)), default(entry), escaped(text)]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) if len(rows) > 2 else "It has no settings of its own."


def kind_of(kind: type, name: str) -> typing.Any:
    return typing.get_type_hints(kind)[name]


def is_choice(kind: typing.Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, draccus.ChoiceRegistry)


def is_group(kind: typing.Any) -> bool:
    return dataclasses.is_dataclass(kind) or is_choice(kind)


def shown_type(kind: typing.Any) -> str:
    """`float or null`, `none, int8 or nf4`, `list of str`: as one would say it."""
    if typing.get_origin(kind) is typing.Literal:
        return " \\| ".join(f"`{value}`" for value in typing.get_args(kind))
    if typing.get_origin(kind) is list:
        return f"list of {shown_type(typing.get_args(kind)[0])}"
    if typing.get_origin(kind) is dict:
        return "mapping"
    if arms := typing.get_args(kind):
        return " \\| ".join("null" if arm is type(None) else shown_type(arm) for arm in arms)
    return "settings" if dataclasses.is_dataclass(kind) else getattr(kind, "__name__", str(kind))


def default(entry: dataclasses.Field[object]) -> str:
    if entry.default_factory is not dataclasses.MISSING:
        made = entry.default_factory()
        return "" if dataclasses.is_dataclass(made) else f"`{made}`"
    if entry.default is dataclasses.MISSING:
        return "required"
    if entry.default is None or isinstance(entry.default, bool):
        return "`null`" if entry.default is None else f"`{str(entry.default).lower()}`"
    return f"`{entry.default}`" if entry.default != "" else '`""`'


def summary(kind: type) -> str:
    """The first paragraph of a dataclass's docstring."""
    return escaped(inspect.cleandoc(kind.__doc__ or "").split("\n\n")[0].replace("\n", " "))


def escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*").replace("[", "\\[").replace("{", "\\{")


# ------------------------------------------------------------------ verbs


def verbs_page() -> str:
    """`--help` of each verb as it prints it; train's settings have a page of their own."""
    parts = ["# Verbs", "Each is `python -m instructrec_jax VERB`, the same as `python -m instructrec_jax.VERB`."]
    for verb in VERBS:
        text = docstring_of(verb) if verb == "prepare" else help_of(verb)
        parts += [f"## {verb}", f"```text\n{text.rstrip()}\n```"]
        if verb == "train":
            parts.append("Every setting stands on the page [Settings](settings.md).")
        if verb == "prepare":
            for name, config in {"inspect": InspectConfig, **SOURCES, "tags": TagsConfig}.items():
                parts += [f"### prepare {name}", summary(config), table(config, "--")]
        if verb == "generate":
            parts += ["### GenerationConfig", summary(GenerationConfig), table(GenerationConfig, "")]
    return "\n\n".join(parts) + "\n"


def docstring_of(verb: str) -> str:
    spec = find_spec(f"instructrec_jax.{verb}")
    assert spec is not None and spec.origin is not None
    return ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))) or ""


def help_of(verb: str) -> str:
    """What `VERB --help` prints."""
    os.environ["COLUMNS"] = "100"  # the same pages on every terminal
    shown = io.StringIO()
    with redirect_stdout(shown), suppress(SystemExit):
        importlib.import_module(f"instructrec_jax.{verb}").main(["--help"])
    return shown.getvalue()


# ------------------------------------------------------------------ Python


def python_page() -> str:
    """The public names with their signatures and docstrings."""
    parts = ["# Python", f"```text\n{inspect.cleandoc(instructrec_jax.__doc__ or '')}\n```"]
    for name in instructrec_jax.__all__:
        found = getattr(instructrec_jax, name)
        parts += [f"## {name}", f"```text\n{described(found)}\n```"]
        methods = [] if not inspect.isclass(found) or dataclasses.is_dataclass(found) and name != "Run" else vars(found)
        for method in methods:
            member = inspect.getattr_static(found, method)
            is_method = inspect.isfunction(member) or isinstance(member, classmethod)
            if is_method and not method.startswith("_") and inspect.getdoc(getattr(found, method)):
                parts += [f"### {name}.{method}", f"```text\n{described(getattr(found, method))}\n```"]
    return "\n\n".join(parts) + "\n"


def described(found: typing.Any) -> str:
    signature = str(inspect.signature(found)).replace("instructrec_jax.", "") if callable(found) else ""
    if len(signature) > 100:
        signature = "(\n    " + signature[1:].replace(", *, ", ", *, ").replace(", ", ",\n    ")
    return f"{found.__name__}{signature}\n\n{inspect.getdoc(found) or ''}".rstrip()


# ------------------------------------------------------------------ all of them

PAGES = {"settings.md": settings_page, "verbs.md": verbs_page, "python.md": python_page}


def write(folder: Path) -> None:
    """Writes the three pages into `folder`; one that has not changed is left alone, so that Sphinx skips it."""
    folder.mkdir(exist_ok=True)
    for name, page in PAGES.items():
        text, path = page(), folder / name
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write(Path(__file__).parent / "reference")
