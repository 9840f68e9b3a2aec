"""Settings as a tree of plain values, before they become dataclasses; and names that are nearly right."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Collection, Mapping
from pathlib import Path

import draccus

# Names of other libraries -> names here, for the suggestion in an error; the first that exists counts.
SYNONYMS = {
    "lr": ("optimizer.learning_rate",),
    "wd": ("optimizer.weight_decay",),
    "batch": ("data.batch_size",),
    "bs": ("data.batch_size",),
    "train_batch_size": ("data.batch_size",),
    "per_device_train_batch_size": ("data.batch_size",),
    "gradient_accumulation_steps": ("accumulation",),
    "grad_accum": ("accumulation",),
    "epochs": ("steps",),
    "num_epochs": ("steps",),
    "num_train_epochs": ("steps",),
    "max_steps": ("steps",),
    "warmup_steps": ("optimizer.warmup",),
    "warmup_ratio": ("optimizer.warmup",),
    "max_grad_norm": ("optimizer.clip_norm",),
    "random_seed": ("seed",),
    "max_len": ("data.max_length",),
    "max_seq_length": ("data.max_length",),
    "seq_len": ("data.max_length",),
    "model": ("backbone.path",),
    "model_name": ("backbone.path",),
    "model_name_or_path": ("backbone.path",),
    "gradient_checkpointing": ("backbone.remat",),
    "bf16": ("backbone.dtype",),
    "fp16": ("backbone.dtype",),
    "train_file": ("data.train",),
    "validation_file": ("data.validation",),
    "test_file": ("data.test",),
    "eval_steps": ("evaluation.every",),
    "save_steps": ("checkpoint.every",),
    "logging_steps": ("tracking.log_every",),
    "config": ("config_path",),
    "output": ("out", "run_dir"),
    "output_dir": ("out", "run_dir"),
    "out": ("run_dir",),
    "file": ("input", "data.test"),
    "query": ("instruction", "prompt"),
    "filter": ("where",),
    "top_k": ("k",),
    "topk": ("k",),
    "max_tokens": ("max_new_tokens",),
}


def nearest(name: str, known: Collection[str], own: Collection[str] = ()) -> str | None:
    """The setting or option that somebody who wrote `name` probably meant.

    Args:
      own: a verb's own options, which come before settings.
    """
    name = name.replace("-", "_")
    every = {*known, *own}
    if name in every:
        return name
    meant = [other for other in SYNONYMS.get(name, ()) if other in every]
    last = {key.split(".")[-1]: key for key in sorted(known)}
    if not meant and name in last:
        return last[name]
    meant = meant or difflib.get_close_matches(name, sorted(own), 1, 0.7)
    meant = meant or difflib.get_close_matches(name, sorted(known), 1)
    meant = meant or [last[match] for match in difflib.get_close_matches(name.split(".")[-1], last, 1)]
    return meant[0] if meant else None


def plain(value: object) -> object:
    """A value from Python as YAML would have it: paths as text, tuples as lists, dataclasses as mappings."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return draccus.encode(value)
    return str(value) if isinstance(value, Path) else value


def completed(kind: typing.Any, value: object, name: str = "") -> object:
    """A tree of settings with its short forms written out: a path alone is a source.

    Args:
      kind: the type that the value will have: a dataclass, a list, a number ...
      name: the dotted name of the value, for errors.

    Raises ValueError for a value of another form than `kind`, and for an unknown type of task.
    """
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        arms = [arm for arm in typing.get_args(kind) if arm is not type(None)]
        kind = arms[0] if len(arms) == 1 and value is not None else None
    if value is None:
        is_group = isinstance(kind, type) and (
            dataclasses.is_dataclass(kind) or issubclass(kind, draccus.ChoiceRegistry)
        )
        if typing.get_origin(kind) is list or is_group:
            raise ValueError(f"`{name}` needs a value, but is null.")
        return value
    if kind is str and isinstance(value, list | dict):
        raise ValueError(f"`{name}` should be a text, but is {value!r}.")
    if isinstance(kind, type) and issubclass(kind, draccus.ChoiceRegistry):
        kind = _chosen(kind, value, name)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise ValueError(f"`{name}` should be settings, as {{name: value}}, but is {value!r}.")
        hints = typing.get_type_hints(kind)
        below = {key: f"{name}.{key}" if name else str(key) for key in value}
        return {key: completed(hints.get(key), entry, below[key]) for key, entry in value.items()}
    if typing.get_origin(kind) is not list:
        return value
    inside = typing.get_args(kind)[0]
    has_path = dataclasses.is_dataclass(inside) and any(entry.name == "path" for entry in dataclasses.fields(inside))
    if has_path and isinstance(value, str | dict):
        value = [value]
    if not isinstance(value, list):
        one = "reviews.csv" if has_path else "[a, b]"
        raise ValueError(f"`{name}` should be a list, such as {one}, but is {value!r}.")
    entries = [{"path": entry} if has_path and isinstance(entry, str) else entry for entry in value]
    return [completed(inside, entry, f"{name}.{number}") for number, entry in enumerate(entries)]


def _chosen(kind: type[draccus.ChoiceRegistry], value: object, name: str) -> type:
    """The class that `type` names."""
    choices = {str(key): choice for key, choice in sorted(kind.get_known_choices().items())}
    if not isinstance(value, dict):
        example = value if value in choices else next(iter(choices))
        raise ValueError(f"`{name}` should be settings with a type, as {{type: {example}}}, but is {value!r}.")
    if "type" not in value:
        raise ValueError(f"`{name}.type` is missing: set it to one of {', '.join(choices)}.")
    wanted = value["type"]
    if not isinstance(wanted, str) or wanted not in choices:
        near = difflib.get_close_matches(str(wanted), choices, 1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"`{name}.type` is {wanted!r}, which does not exist.{hint} It is one of {', '.join(choices)}.")
    return choices[wanted]
