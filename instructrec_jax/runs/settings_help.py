"""`--help` of settings, made from the config dataclasses: one screen of the most common, one group, or everything."""

import dataclasses
import shutil
import textwrap
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import draccus
from draccus.wrappers import docstring

# The settings that most people set, in the order in which one thinks of them.
COMMON = (
    "run_dir",
    "overwrite",
    "steps",
    "seed",
    "backbone.path",
    "lora.rank",
    "task.type",
    "data.train",
    "data.validation",
    "data.test",
    "data.batch_size",
    "data.max_length",
    "optimizer.learning_rate",
)
COLUMN = 29  # where the explanations begin


@dataclass(frozen=True)
class Setting:
    """A setting as help shows it; `owners` are the types of task that have it, empty outside of tasks."""

    name: str
    kind: str
    default: str
    text: str
    owners: tuple[str, ...] = ()


@dataclass(frozen=True)
class Section:
    """A heading and its settings; `names` are the topics that show it."""

    heading: str
    settings: list[Setting]
    names: tuple[str, ...]
    are_entries: bool = False  # whether they belong to the entries of a list, which only a YAML file sets one by one


def help_topic(args: list[str]) -> str | None:
    """What follows --help ("" for nothing: the short help); None without --help."""
    for place, arg in enumerate(args):
        name, _, value = arg.partition("=")
        if name in ("-h", "--help"):
            following = args[place + 1 : place + 2]
            return value or next((each for each in following if not each.startswith("-")), "")
    return None


def settings_help(config_class: type, topic: str, unknown: Callable[[str, set[str]], str]) -> str:
    """The help on a topic: "" (common settings), all, a group (data, task), a type of task, or one setting.

    A class without the common settings (a format of prepare) shows everything.

    Args:
      unknown: (topic, known topics) -> the message for an unknown topic.

    Raises ValueError for an unknown topic.
    """
    sections = list(sections_of(config_class))
    names = {each.name for section in sections for each in section.settings if not section.are_entries}
    if topic == "all" or len(sections) == 1 or not topic and not set(COMMON) <= names:
        return "\n\n".join(_shown(section) for section in sections)
    if not topic:
        return _common(config_class)
    topic = topic.removeprefix("--")
    kinds = [kind for name, kind in _groups(config_class, "") if name == topic and _is_choice(kind)]
    if kinds:
        return _types(topic, kinds[0])
    found = _of_task(config_class, topic) or [
        section for section in sections if any(f"{name}.".startswith(f"{topic}.") for name in section.names)
    ]
    if not found:
        named = [(s, each) for s in sections for each in s.settings if each.name == topic and not s.are_entries]
        found = [Section(section.heading, [each], ()) for section, each in named]
    if not found:
        groups = {name for name, _ in _groups(config_class, "")}
        tasks = {f"{name}.{choice}" for name, kind in _groups(config_class, "") for choice in _choices(kind)}
        raise ValueError(unknown(topic, groups | tasks | names))
    return "\n\n".join(_shown(section) for section in found)


# ------------------------------------------------------------------ what there is


def sections_of(kind: type, prefix: str = "", heading: str = "") -> Iterator[Section]:
    """The settings of a dataclass: its own, then each group's; each setting once."""
    own = [_setting(kind, entry, prefix) for entry in dataclasses.fields(kind) if not _is_group(_kind(kind, entry))]
    if own or not prefix:
        yield Section(heading or summary(kind), own, (prefix.rstrip("."),))
    for entry in dataclasses.fields(kind):
        name, found = prefix + entry.name, _kind(kind, entry)
        if _is_choice(found):
            yield _all_types(name, found)
        elif _is_group(found):
            yield from sections_of(found, f"{name}.", f"--{name} : {summary(found)}")
    yield from _entries(kind, prefix)


def _entries(kind: type, prefix: str) -> Iterator[Section]:
    """The settings of the entries of lists; lists with entries of one class share a section."""
    lists: dict[type, list[str]] = {}
    for entry in dataclasses.fields(kind):
        inside = typing.get_args(_kind(kind, entry))[:1]
        if typing.get_origin(_kind(kind, entry)) is list and dataclasses.is_dataclass(inside[0]):
            lists.setdefault(typing.cast(type, inside[0]), []).append(prefix + entry.name)
    for inside_class, names in lists.items():
        settings = list(_flat(inside_class, ""))
        plain = ", or its path alone" if any(each.name == "path" for each in settings) else ""
        heading = f"Each entry of {', '.join(names)} (in a YAML file{plain}):"
        yield Section(heading, settings, tuple(names), are_entries=True)


def _flat(kind: type, prefix: str) -> Iterator[Setting]:
    for entry in dataclasses.fields(kind):
        found = _kind(kind, entry)
        if _is_group(found) and not _is_choice(found):
            yield from _flat(found, f"{prefix}{entry.name}.")
        else:
            yield _setting(kind, entry, prefix)


def _all_types(name: str, kind: type) -> Section:
    """The settings of all types of a choice; those that several types share stand there once, with their owners."""
    owners: dict[Setting, list[str]] = {}
    for choice, config in _choices(kind).items():
        for setting in _flat(config, f"{name}."):
            owners.setdefault(setting, []).append(choice)
    chosen = Setting(f"{name}.type", "", "", f"one of {', '.join(_choices(kind))}")
    every = len(_choices(kind))
    settings = [dataclasses.replace(each, owners=tuple(of) if len(of) < every else ()) for each, of in owners.items()]
    return Section(f"--{name} : {summary(kind)}", [chosen, *sorted(settings, key=lambda each: each.name)], (name,))


def _of_task(config_class: type, topic: str) -> list[Section]:
    group, _, choice = topic.rpartition(".")
    for name, kind in _groups(config_class, ""):
        if name == group and choice in _choices(kind):
            config = _choices(kind)[choice]
            heading = f"--{name}.type {choice} : {summary(config)}"
            return [Section(heading, list(_flat(config, f"{name}.")), (topic,)), *_entries(config, f"{name}.")]
    return []


def _types(name: str, kind: type) -> str:
    """The types of a choice with a line each."""
    lines = [f"--{name}.type : {summary(kind)}", ""]
    for choice, config in _choices(kind).items():
        lines += _entry(choice, summary(config))
    return "\n".join([*lines, "", f"The settings of a type: --help {name}.{next(iter(_choices(kind)))}"])


def _groups(kind: type, prefix: str) -> Iterator[tuple[str, type]]:
    for entry in dataclasses.fields(kind):
        found = _kind(kind, entry)
        if _is_group(found):
            yield prefix + entry.name, found
            if not _is_choice(found):
                yield from _groups(found, f"{prefix}{entry.name}.")


def _setting(kind: type, entry: dataclasses.Field[object], prefix: str) -> Setting:
    # draccus itself gives up after the first base class
    declared = next(base for base in kind.__mro__ if entry.name in vars(base).get("__annotations__", {}))
    words = docstring.get_attribute_docstring(declared, entry.name)
    text = " ".join((words.docstring_below or words.comment_above or "").split() + words.comment_inline.split())
    if not text and _is_choice(_kind(kind, entry)):
        text = summary(_kind(kind, entry))
    return Setting(prefix + entry.name, _type(_kind(kind, entry)), _default(entry), text)


def _kind(kind: type, entry: dataclasses.Field[object]) -> typing.Any:
    return typing.get_type_hints(kind)[entry.name]


def _is_choice(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, draccus.ChoiceRegistry)


def _is_group(kind: object) -> bool:
    return isinstance(kind, type) and (dataclasses.is_dataclass(kind) or _is_choice(kind))


def _choices(kind: typing.Any) -> dict[str, type]:
    return dict(sorted(kind.get_known_choices().items())) if _is_choice(kind) else {}


def _type(kind: typing.Any) -> str:
    """`int or null`, `none, int8 or nf4`, `list`: as one would say it."""
    origin, arms = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return ", ".join(map(str, arms[:-1])) + f" or {arms[-1]}" if len(arms) > 1 else str(arms[0])
    if origin in (typing.Union, types.UnionType):
        return " or ".join("null" if arm is type(None) else _type(arm) for arm in arms)
    if origin in (list, dict):
        return "list" if origin is list else "mapping"
    return {str: "text", bool: "true or false"}.get(kind, getattr(kind, "__name__", str(kind)))


def _default(entry: dataclasses.Field[object]) -> str:
    if entry.default_factory is not dataclasses.MISSING:
        made = entry.default_factory()
        return "" if _is_group(type(made)) else _literal(made)
    return "required" if entry.default is dataclasses.MISSING else _literal(entry.default)


def _literal(value: object) -> str:
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_literal, value))}]"
    return str(value) or '""'


def summary(kind: type) -> str:
    """The first paragraph of a dataclass's docstring."""
    return " ".join((kind.__doc__ or "").split("\n\n")[0].split())


# ------------------------------------------------------------------ how it looks


def _width() -> int:
    return min(max(shutil.get_terminal_size().columns, 60), 120)


def _shown(section: Section) -> str:
    lines = textwrap.wrap(section.heading, _width())
    for each in section.settings:
        name = each.name if section.are_entries else f"--{each.name}"
        facts = [each.kind, "required" if each.default == "required" else each.default and f"default: {each.default}"]
        inside = "; ".join(fact for fact in facts if fact)
        owners = f" [{', '.join(each.owners)}]" if each.owners else ""
        lines += _entry(name, f"{each.text}{f' ({inside})' if inside else ''}{owners}")
    return "\n".join(lines)


def _entry(name: str, text: str) -> list[str]:
    """A name and its explanation, in two columns."""
    indent = " " * COLUMN
    first, fits = f"  {name}".ljust(COLUMN), len(name) + 4 <= COLUMN
    lines = textwrap.wrap(
        text, _width(), initial_indent=first if fits else indent, subsequent_indent=indent, break_on_hyphens=False
    )
    return lines if fits and lines else [f"  {name} ".rstrip(), *lines]


def _common(config_class: type) -> str:
    by_name = {each.name: each for section in sections_of(config_class) for each in section.settings}
    lines = [
        "usage: instructrec train [FILE.yaml] [--SETTING VALUE ...]",
        "",
        "  train                          the embedded film recommender",
        "  train my.yaml                  the settings of a file",
        "  train my.yaml --steps 500      ... with some of them overridden",
        "",
        "The settings that most people set:",
    ]
    for name in COMMON:
        each = by_name[name]
        # the first sentence; --help NAME shows the others, --help task the many types
        text = "what is learned; --help task names the types" if name == "task.type" else each.text.split(". ")[0]
        lines += _entry(f"--{name}", f"{text} (default: {each.default})" if each.default else text)
    lines += ["", "More:", *_entry("--help all", "every setting")]
    lines += _entry("--help task", "the types; --help task.classification: one of them")
    groups = ", ".join(
        name for name, _ in _groups(config_class, "") if "." not in name and name not in ("data", "task")
    )
    return "\n".join([*lines, *_entry("--help data", f"the settings of a group; also {groups}")])
