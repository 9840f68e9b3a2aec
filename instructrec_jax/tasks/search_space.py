"""What `tune` may change: ranges and options of settings, by their dotted names."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Range:
    """A number from low to high, both included; `log`: uniform in its logarithm. Two whole numbers give whole ones."""

    low: float
    high: float
    log: bool = False


@dataclass(frozen=True)
class Options:
    """One of several values."""

    values: tuple[object, ...]


SearchSpace = Mapping[str, Range | Options]

TIMES = 10  # a learning rate is searched from a tenth to ten times the settings' own


def around(rate: float) -> Range:
    """A range of learning rates around one."""
    return Range(rate / TIMES, rate * TIMES, log=True)
