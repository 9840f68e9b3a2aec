"""The search space of `tune`: a task's own, or a YAML file."""

import math
from collections.abc import Mapping
from pathlib import Path

from instructrec_jax.parsing import read_yaml
from instructrec_jax.runs.config import Config, ConfigError, load, setting_names, to_dict, unknown_key
from instructrec_jax.tasks.search_space import Options, Range, SearchSpace, around
from instructrec_jax.training.optimizer import DEFAULT_RATES

FIXED = ("run_dir", "overwrite", "data.validation", "data.test", "evaluation", "checkpoint", "tracking", "profile")


def default_space(config: Config) -> SearchSpace:
    """The learning rate, around that of the settings or their default, the weight decay, and what the task declares."""
    is_new = config.backbone.random_init or config.backbone.train_last == 0
    kind = "lora" if config.lora.on else "new" if is_new else "pretrained"
    rate = config.optimizer.learning_rate or DEFAULT_RATES[kind]
    own: dict[str, Range | Options] = {
        "optimizer.learning_rate": around(rate),
        "optimizer.weight_decay": Options((0.0, 0.01, 0.1)),
    }
    return {**own, **config.task.search_space}


def read_space(path: Path) -> SearchSpace:
    """A YAML file with a line for each setting: `optimizer.learning_rate: {low: 1e-5, high: 1e-3, log: true}` or
    `task.dropout: [0.1, 0.3, 0.5]`.

    Raises ConfigError for a setting that does not exist or must not change, and for anything else.
    """
    tree = read_yaml(path)
    if not isinstance(tree, dict) or not tree:
        raise ConfigError(f"{path} must list settings and their ranges, as `task.dropout: [0.1, 0.3]`.")
    known = set(setting_names(Config))
    found = {}
    for name, given in tree.items():
        where = f"{path}: {name}"
        if name not in known:
            raise ConfigError(f"{path}: {unknown_key(str(name), known)}")
        if any(name == fixed or str(name).startswith(f"{fixed}.") for fixed in FIXED):
            raise ConfigError(f"{where} is the same in all trials: leave it out.")
        found[str(name)] = _entry(given, where)
    return found


def _entry(given: object, where: str) -> Range | Options:
    if isinstance(given, list):
        if len(given) < 2 or len({repr(value) for value in given}) < len(given):
            raise ConfigError(f"{where} needs at least two different values, but lists {given}.")
        return Options(tuple(given))
    if not isinstance(given, dict) or not {"low", "high"} <= set(given) <= {"low", "high", "log"}:
        raise ConfigError(f"{where} should be {{low: ..., high: ..., log: true}} or a list of values, not {given!r}.")
    low, high, log = given["low"], given["high"], given.get("log", False)
    if any(isinstance(end, bool) or not isinstance(end, int | float) or not math.isfinite(end) for end in (low, high)):
        raise ConfigError(f"{where}: low and high should be numbers, but are {low!r} and {high!r}.")
    if not isinstance(log, bool):
        raise ConfigError(f"{where}: log should be true or false, not {log!r}.")
    if low >= high or (log and low <= 0):
        raise ConfigError(f"{where}: low ({low}) should be below high ({high}){' and above 0' * log}.")
    return Range(low, high, log)


def with_settings(config: Config, changes: Mapping[str, object]) -> Config:
    """The settings with dotted names set. Raises ConfigError for a value that does not fit."""
    return load({**to_dict(config), **changes})


def own_values(config: Config, space: SearchSpace) -> dict[str, object] | None:
    """The settings' own values of the space's names; None where one is outside of it.

    A learning rate that is not set is the default one, in the middle of its range.
    """
    tree = to_dict(config)
    found: dict[str, object] = {}
    for name, entry in space.items():
        value: object = tree
        for key in name.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if value is None and isinstance(entry, Range) and entry.log:
            value = math.sqrt(entry.low * entry.high)
        if isinstance(entry, Options):
            inside = value in entry.values
        else:
            inside = isinstance(value, int | float) and entry.low <= value <= entry.high
        if not inside:
            return None
        found[name] = value
    return found
