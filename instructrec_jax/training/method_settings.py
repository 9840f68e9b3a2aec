"""Settings of one of several methods: each has an effect with some of them, and a range."""

from collections.abc import Mapping, Sequence
from typing import Protocol


class MethodConfig(Protocol):
    """A dataclass whose `method` is "none" or a name; all its settings have defaults."""

    @property
    def method(self) -> str: ...


def is_chosen(config: MethodConfig, name: str, settings_of: Mapping[str, Sequence[str]]) -> bool:
    """Whether there is a method.

    Args:
      name: of the group of settings.
      settings_of: setting -> the methods that it is for; a setting without an entry is for all of them.

    Raises ValueError for a changed setting that has no effect with the method.
    """
    default = type(config)()
    given = [key for key, value in vars(default).items() if getattr(config, key) != value and key != "method"]
    if config.method == "none" and given:
        raise ValueError(f"{name}.{given[0]} has no effect without {name}.method: set it, or leave this out.")
    for key in given:
        if config.method not in settings_of.get(key, (config.method,)):
            raise ValueError(f"{name}.{key} has no effect with method: {config.method}: leave it out.")
    return config.method != "none"


def check_ranges(config: MethodConfig, name: str, ranges: Mapping[str, tuple[bool, str]]) -> None:
    """Raises ValueError for a setting out of its range.

    Args:
      ranges: setting -> (whether it is within, what it should be).
    """
    for key, (is_right, wanted) in ranges.items():
        if not is_right:
            raise ValueError(f"{name}.{key} is {getattr(config, key)}, but should be {wanted}.")
