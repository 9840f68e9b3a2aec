"""Zeros by magnitude, Wanda and SparseGPT, against their definitions."""

import itertools
from typing import Any

import numpy as np
import pytest

from instructrec_jax.compression.gptq import inverse_factor
from instructrec_jax.compression.sparsity import Sparsity, sparsegpt, zeroed

RNG = np.random.default_rng(0)
KERNEL = RNG.normal(size=(16, 5)).astype(np.float32)
INPUTS = RNG.normal(size=(200, 16)) @ RNG.normal(size=(16, 16)) * np.linspace(0.1, 3, 16)
GRAM, SQUARES = INPUTS.T @ INPUTS, np.square(INPUTS).sum(0)


def test_the_smallest_of_the_layer_and_of_each_output() -> None:
    left = zeroed(KERNEL, Sparsity(0.25, method="magnitude"), None)
    assert (left == 0).sum() == 20 and np.abs(KERNEL[left == 0]).max() < np.abs(KERNEL[left != 0]).min()
    left = zeroed(KERNEL, Sparsity(0.25, method="wanda"), SQUARES)
    scores = np.abs(KERNEL) * np.sqrt(SQUARES)[:, None]
    for column in range(5):
        zero = left[:, column] == 0
        assert zero.sum() == 4 and scores[zero, column].max() < scores[~zero, column].min()
    np.testing.assert_array_equal(left[left != 0], KERNEL[left != 0])


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
def test_two_of_four_neighbors(method: Any) -> None:
    seen = {"magnitude": None, "wanda": SQUARES, "sparsegpt": GRAM}[method]
    left = zeroed(KERNEL, Sparsity.of("2:4", method), seen)
    assert ((left == 0).reshape(4, 4, 5).sum(1) == 2).all()


def test_sparsegpt_makes_up_for_each_zero() -> None:
    """With one zero for each group, against the optimal brain surgeon: w_q² / [H⁻¹]_qq and its update (one output)."""
    left = sparsegpt(KERNEL[:, :1], GRAM, Sparsity.of("1:16", "sparsegpt"))
    upper = inverse_factor(GRAM)
    place = int(np.argmin(np.square(KERNEL[:, 0] / np.diag(upper))))
    inverse = (upper.T @ upper)[place:, place:]
    # inputs before the place are done already: the inverse of the rest
    rest = inverse - upper[:place, place:].T @ upper[:place, place:]
    expected = KERNEL[:, 0].astype(np.float64)
    expected[place:] -= expected[place] / rest[0, 0] * rest[:, 0]
    np.testing.assert_allclose(left[:, 0], expected, atol=1e-5)
    assert left[place, 0] == 0


def test_the_order_of_the_errors() -> None:
    """Of the layer's outputs, where inputs differ in size and are correlated."""

    def error(method: Any, seen: Any) -> float:
        return float(np.square(INPUTS @ (zeroed(KERNEL, Sparsity(0.5, method=method), seen) - KERNEL)).sum())

    found = [error("sparsegpt", GRAM), error("wanda", SQUARES), error("magnitude", None)]
    assert all(a < b for a, b in itertools.pairwise(found))


@pytest.mark.parametrize("text", ["0", "100%", "-1", "half", "4:4", "0:4", "5:4"])
def test_what_is_no_share_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="--sparsity is .*, but should be"):
        Sparsity.of(text, "magnitude")
    with pytest.raises(ValueError, match="goes with --method magnitude, wanda, sparsegpt, not gptq"):
        Sparsity(0.5, method="gptq")  # type: ignore[arg-type]
