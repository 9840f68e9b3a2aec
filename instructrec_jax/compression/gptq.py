"""GPTQ (Frantar et al., 2023): codes of a kernel that keep the layer's outputs, rather than its weights."""

import numpy as np

from instructrec_jax.adapters.quantized import LARGEST, NF4, Format

DAMPING = 0.01  # added to the diagonal of the Hessian, as a share of its mean: the paper's, section 4
BLOCK = 128  # inputs between two updates of all later ones: the paper's


def gptq(kernel: np.ndarray, gram: np.ndarray, format: Format) -> tuple[np.ndarray, np.ndarray]:
    """The numbers int8 [in, out] of codes (see `adapters.quantized.pack`) and their scales fp32 [groups, out].

    Inputs are rounded one after the other; the error of each is made up for by the inputs that follow, with the inverse
    of the Hessian H = 2 X Xᵀ of the squared error of the layer's outputs (algorithm 1 of the paper, with the Cholesky
    factor of the damped inverse). The inputs with the largest activations come first, while most others can still make
    up for their errors (the authors' `act-order`); so the scale of a group is that of its weights before any of them is
    rounded (their `static-groups`). Computed in float64. An input that is zero in all of X is rounded to nearest.

    Args:
        kernel: [in, out].
        gram: X Xᵀ over the calibration tokens, [in, in]; its scale does not matter.
    """
    size, outputs = kernel.shape
    group = format.group_of(size)
    starts = range(0, size, group)
    scales = np.stack([np.abs(kernel[start : start + group]).max(0) for start in starts]) / LARGEST[format.weights]
    order = np.argsort(-np.diag(gram), kind="stable")
    scale_of = np.repeat(scales.astype(np.float64), group, axis=0)[order]
    weights, upper = kernel[order].astype(np.float64), inverse_factor(gram[np.ix_(order, order)])
    numbers = np.zeros((size, outputs), np.int8)
    for start in range(0, size, BLOCK):
        stop = min(start + BLOCK, size)
        errors = np.zeros((stop - start, outputs))
        for i in range(start, stop):
            scale = scale_of[i]
            numbers[order[i]], values = nearest(format.weights, weights[i] / np.where(scale == 0, 1, scale))
            errors[i - start] = (weights[i] - values * scale) / upper[i, i]
            weights[i + 1 : stop] -= np.outer(upper[i, i + 1 : stop], errors[i - start])
        weights[stop:] -= upper[start:stop, stop:].T @ errors
    return numbers, scales.astype(np.float32)


def inverse_factor(gram: np.ndarray) -> np.ndarray:
    """The upper Cholesky factor of the inverse of a damped Gram matrix, float64 [in, in]."""
    hessian = gram.astype(np.float64)
    unseen = np.diag(hessian) <= 0
    hessian[unseen, unseen] = 1.0
    hessian[np.diag_indices(len(hessian))] += DAMPING * np.diag(hessian).mean()
    return np.linalg.cholesky(np.linalg.inv(hessian)).T


def nearest(kind: str, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(the numbers, the values) of the codes nearest to scaled weights, in float64."""
    if kind == "nf4":
        numbers = np.searchsorted((NF4[1:] + NF4[:-1]) / 2, values)
        return numbers.astype(np.int8), NF4[numbers].astype(np.float64)
    numbers = np.clip(np.round(values), -LARGEST[kind], LARGEST[kind])
    return numbers.astype(np.int8), numbers
