"""What scripts that compare ways of training share: their arguments, and means with paired intervals over seeds."""

import argparse
from collections.abc import Sequence

import numpy as np

from instructrec_jax.labeling.simulate import interval
from instructrec_jax.parsing import parse_yaml

Settings = dict[str, object]


def add_ways(parser: argparse.ArgumentParser) -> None:
    """--way NAME SETTINGS, as often as there are ways."""
    parser.add_argument("--way", nargs=2, action="append", default=[], metavar=("NAME", "SETTINGS"))


def ways_of(given: Sequence[tuple[str, str]]) -> dict[str, Settings]:
    """The settings of each way."""
    return {name: mapping(text, f"--way {name}") for name, text in given}


def mapping(text: str, name: str) -> Settings:
    """The settings of an argument."""
    found = parse_yaml(text, name)
    if not isinstance(found, dict):
        raise SystemExit(f"{name} should be settings such as {{steps: 200, task.type: setfit}}, but is {text!r}.")
    return found


def overrides(rest: Sequence[str]) -> Settings:
    """Settings of pairs `--name value`."""
    if len(rest) % 2 or not all(name.startswith("--") for name in rest[::2]):
        raise SystemExit(f"settings are pairs `--name value`, but found {' '.join(rest)}.")
    return {name[2:]: parse_yaml(value, name) for name, value in zip(rest[::2], rest[1::2], strict=True)}


def cell(values: Sequence[float], base: Sequence[float]) -> str:
    """The mean over seeds and the mean difference from the base, in points, with its 95% interval (Student's t)."""
    gain = 100 * (np.array(values) - np.array(base))
    text = f"{100 * np.mean(values):.1f}"
    if not gain.any():
        return text
    mean, low, high = interval(gain.tolist())
    return f"{text}, {mean:+.1f}" + (f" ({low:+.1f} to {high:+.1f})" if len(gain) > 1 else "")
