"""What the tests of batches share: examples whose tokens are their number, and what a batch holds of them."""

from dataclasses import dataclass

import jax
import numpy as np

from instructrec_jax.data.batch import BatchTexts, PerText, Text
from instructrec_jax.data.loader import HostBatch

SIZE = 23  # examples: no batch size below divides it


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Noise:
    """Random numbers, to tell the draws of two batches apart."""

    noise: PerText


def tokens_of(number: int) -> np.ndarray:
    return np.full(number % 9 + 1, number, np.int32)


def gather(indices: np.ndarray, rng: np.random.Generator) -> BatchTexts:
    noise = rng.integers(0, 1000, len(indices)).astype(np.int32)
    return BatchTexts([Text(tokens_of(int(i))) for i in indices], Noise(noise))


def contents(batch: HostBatch) -> list[int]:
    """Numbers of the examples in a batch, in the order of the batch."""
    texts, numbers = batch.batch.texts, batch.batch.text_numbers
    rows, columns = np.nonzero((texts.segment_ids > 0) & (texts.positions == 0))
    order = numbers[rows, texts.segment_ids[rows, columns] - 1]
    return [int(n) for _, n in sorted(zip(order, texts.tokens[rows, columns], strict=True))]


def noise(batch: HostBatch) -> list[int]:
    """What was drawn for each text, in the order of the batch."""
    numbers, drawn = batch.batch.text_numbers, batch.batch.own.noise
    segments = np.arange(1, numbers.shape[1] + 1)
    rows, columns = np.nonzero((batch.batch.texts.segment_ids[:, None] == segments[:, None]).any(-1))
    return [int(value) for _, value in sorted(zip(numbers[rows, columns], drawn[rows, columns], strict=True))]


def assert_same(first: HostBatch, second: HostBatch) -> None:
    assert (first.tokens, first.shape) == (second.tokens, second.shape)
    jax.tree.map(np.testing.assert_array_equal, first.batch, second.batch)


def row_tokens(number: int) -> np.ndarray:
    return np.full(3 * (number % 9) + 2, number, np.int32)


def row_target(number: int) -> np.ndarray:
    return np.full(number % 4 + 1, number, np.int32)


def gather_pairs(indices: np.ndarray, rng: np.random.Generator) -> BatchTexts:
    """Targets of other lengths than their texts, with the same tokens."""
    texts = [Text(row_tokens(int(i)), target=row_target(int(i))) for i in indices]
    return BatchTexts(texts, gather(indices, rng).own)
