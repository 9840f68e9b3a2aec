"""The options of evaluate and predict about what a run does not know."""

import argparse
from pathlib import Path

from instructrec_jax.metrics.calibration import WAYS
from instructrec_jax.metrics.conformal import SET_KINDS


def add_sets(parser: argparse.ArgumentParser, or_vectors: argparse._ActionsContainer | None = None) -> None:
    """--coverage and --sets; or_vectors: the group of options that exclude --coverage."""
    often = "prediction sets with the right label this often: 0.9"
    (or_vectors or parser).add_argument("--coverage", type=float, metavar="SHARE", help=often)
    add = parser.add_argument
    add("--sets", choices=SET_KINDS, default="lac", help="of --coverage: lac (smallest; default) or aps")


def add_uncertainty(parser: argparse.ArgumentParser) -> None:
    """--calibrate, --coverage, --sets and --out_of_domain."""
    add = parser.add_argument
    ways = "fit probabilities on data.validation: temperature, per_class"
    add("--calibrate", nargs="?", const="temperature", choices=WAYS, metavar="WAY", help=ways)
    add_sets(parser)
    add("--out_of_domain", nargs="+", type=Path, default=[], metavar="FILE", help="texts of other domains")
