"""Reading of JSON files written by other programs: config.json and the like, an index of shards, an adapter's config.

For any content, reading returns values of the expected type, or raises a ValueError that names file, field and value.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from instructrec_jax.files import read_json

DEEPEST = 64  # maximum levels of nesting; real files have about six, and libraries traverse them recursively


@dataclass(frozen=True)
class Fields:
    """A JSON object and its origin. A field with the value null counts as absent.

    Attributes:
        where: the file (and for a nested object its field), named in errors.
        values: field name -> JSON value.
    """

    where: str
    values: Mapping[str, object]

    def refuse(self, name: str, expected: str) -> NoReturn:
        """Raises the ValueError of a missing or invalid field."""
        if self.values.get(name) is None:
            raise ValueError(f"{self.where}: {name} is missing, but must be {expected}.")
        raise ValueError(f"{self.where}: {name} is {_shown(self.values[name])}, but must be {expected}.")

    def text(self, name: str) -> str | None:
        value = self.values.get(name)
        if value is not None and not isinstance(value, str):
            self.refuse(name, "a text")
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        value = self.values.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.refuse(name, "true or false")
        return value

    def integer(self, name: str, least: int, most: int = 2**31 - 1) -> int | None:
        value = self.values.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            self.refuse(name, f"an integer from {least:,} to {most:,}")
        return value

    def number(self, name: str, least: float = -math.inf, most: float = math.inf) -> float | None:
        value = self.values.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            self.refuse(name, "a number" if math.isinf(least) else f"a number from {least:g} to {most:g}")
        return float(value)

    def object(self, name: str) -> "Fields | None":
        value = self.values.get(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            self.refuse(name, "a JSON object")
        return Fields(f"{self.where}, {name}", value)

    def texts(self, name: str) -> list[str] | None:
        value = self.values.get(name)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            self.refuse(name, "a list of texts")
        return [str(one) for one in value]


def read_fields(file: Path) -> Fields:
    """The JSON object of a file. Raises ValueError for another value, deep nesting and numbers beyond a float."""
    value = _checked(file)
    if not isinstance(value, dict):
        raise ValueError(f"{file} must contain a JSON object, but contains {_shown(value)}.")
    return Fields(str(file), value)


def read_objects(file: Path) -> list[Fields]:
    """The JSON objects of a file with a list of objects. Raises ValueError as `read_fields` does."""
    value = _checked(file)
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise ValueError(f"{file} must contain a JSON list of objects, but contains {_shown(value)}.")
    return [Fields(f"{file}, entry {number}", one) for number, one in enumerate(value)]


def _checked(file: Path) -> object:
    value: object = read_json(file)
    for number in _numbers(value, file):
        if isinstance(number, float) and not math.isfinite(number):
            raise ValueError(f"{file} contains a number that is too large for a float.")
    return value


def _numbers(value: object, file: Path) -> Iterator[float]:
    """All numbers in a JSON value, without recursion. Raises ValueError for a value nested too deeply."""
    waiting: list[tuple[object, int]] = [(value, 0)]
    while waiting:
        one, depth = waiting.pop()
        if depth > DEEPEST:
            raise ValueError(f"{file} nests lists or objects more than {DEEPEST} levels deep.")
        if isinstance(one, dict):
            waiting += [(inner, depth + 1) for inner in one.values()]
        elif isinstance(one, list):
            waiting += [(inner, depth + 1) for inner in one]
        elif isinstance(one, int | float):
            yield one


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
