"""Tiny language models whose vocabulary has the codes of the tests' twelve items."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from instructrec_jax.backbones.wider_vocabulary import widen
from instructrec_jax.ranking.semantic_ids import FOLDER, SemanticIds, fit

ITEMS = [f"item-{number}" for number in range(12)]


def codes_of(items: Sequence[str]) -> SemanticIds:
    """Codes of two levels, and one more where items share them."""
    return fit(items, np.random.default_rng(0).normal(size=(len(items), 5)), levels=2, codes=3, seed=0)


def coded_network(folder: Path, network: Path, items: Sequence[str] = ITEMS) -> Path:
    """Writes a network with the items' codes to an empty folder, and returns it."""
    ids = codes_of(items)
    widen(network, ids.tokens, folder, seed=0)
    ids.save(folder / FOLDER)
    return folder
