"""The registry of embedded demos: data sets and backbones that come with this package and need no download.

A demo is a package beside this file that calls `register`; `preparation/__init__.py` imports it. The rest of the
project asks here by the name that the settings give (`backbone.path`, `data.prepare`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Demo:
    """A data set that comes with the package.

    Attributes:
      name: what settings call it.
      source: what the card of a prepared folder calls it (`card.json`, "source"), by which `demo_of` finds it again.
      backbone: the HuggingFace folder of its small backbone.
      prepare: writes the prepared layout of `ranking.catalogue` into a new folder.
      complete: writes the files that a folder of an earlier version lacks, so that settings may name them.
      instructions: what its training instructions say for (nothing, a history, a history and a wish), with the places
        {history} and {intention}.
      listing: titles, oldest first, as an instruction lists them.
      titles_in_prompt: how many of the last titles an instruction names.
    """

    name: str
    source: str
    backbone: Path
    prepare: Callable[[Path], object]
    complete: Callable[[Path], object]
    instructions: tuple[str, str, str]
    listing: Callable[[Sequence[str]], str]
    titles_in_prompt: int


_demos: dict[str, Demo] = {}


def register(demo: Demo) -> Demo:
    """Makes a demo known by its name."""
    _demos[demo.name] = demo
    return demo


def names() -> list[str]:
    """The names of all demos."""
    return sorted(_demos)


def is_demo(name: str) -> bool:
    return name in _demos


def find(name: str, setting: str) -> Demo:
    """The demo of this name.

    Raises ValueError, which names the setting that gave the name and the demos that there are.
    """
    if name not in _demos:
        raise ValueError(f"{setting} is {name!r}, which is not an embedded demo. There is: {', '.join(names())}.")
    return _demos[name]


def demo_of(card: Mapping[str, object]) -> Demo | None:
    """The demo that a prepared folder holds, by its card; None for other data."""
    return next((demo for demo in _demos.values() if demo.source == card.get("source")), None)
