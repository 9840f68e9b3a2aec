"""Targets lie along the axes of a batch that they say they do."""

import jax
import numpy as np

from instructrec_jax.data.batch import Along, map_arrays, of_texts
from instructrec_jax.tasks.targets import TextTargets, TokenLabels

TOKENS = TokenLabels(np.array([3, 1, 2, 5, 4], np.int32), np.array([1, 0, 1, 1, 0], np.int32))
TEXTS = TextTargets(np.array([[1.0, 2.0], [3.0, 4.0]], np.float32), np.ones(2, np.float32))


def axes(own: object) -> list[Along]:
    found: list[Along] = []
    map_arrays(lambda along, array: found.append(along) or array, own)  # type: ignore[func-returns-value]
    return found


def test_each_array_names_its_axis() -> None:
    assert axes(TEXTS) == [Along.TEXTS] * 2 and axes(TOKENS) == [Along.TOKENS] * 2


def test_they_are_pytrees() -> None:
    for own in (TEXTS, TOKENS):
        leaves, structure = jax.tree.flatten(own)
        assert len(leaves) == 2 and type(jax.tree.unflatten(structure, leaves)) is type(own)
        doubled = jax.jit(lambda tree: jax.tree.map(lambda x: 2 * x, tree))(own)
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, 2 * b), doubled, own)


def test_weights_of_tokens_are_float32() -> None:
    assert TOKENS.weights.dtype == np.float32 and TOKENS.weights.tolist() == [1, 0, 1, 1, 0]


def test_a_part_of_a_batch_has_the_targets_of_its_texts() -> None:
    lengths = np.array([2, 3])
    assert of_texts(TOKENS, lengths, np.array([1])).labels.tolist() == [2, 5, 4]
    assert of_texts(TOKENS, lengths, np.array([1, 0])).supervised.tolist() == [1, 1, 0, 1, 0]
    assert of_texts(TEXTS, lengths, np.array([1])).targets.tolist() == [[3.0, 4.0]]
