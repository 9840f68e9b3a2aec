"""Weights that are zero: masks by magnitude, Wanda or SparseGPT, anywhere or n of m.

They are stored and computed as dense ones, so nothing becomes faster or smaller here. They stay zero in an export, and
in training from such a run (`optimizer.keep_zeros`, which its settings have).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import jax.numpy as jnp
import numpy as np
from flax import nnx

from instructrec_jax.adapters.lora import find_places
from instructrec_jax.adapters.quantized import linears
from instructrec_jax.backbones.layers import Linear
from instructrec_jax.compression.calibration import gram, inputs_of, observe
from instructrec_jax.compression.gptq import BLOCK, inverse_factor
from instructrec_jax.compression.importance import squares
from instructrec_jax.data.batch import Batch
from instructrec_jax.distributed.mesh import DeviceMesh
from instructrec_jax.runs.model import SplitModel
from instructrec_jax.tasks.base import Model

Method = Literal["magnitude", "wanda", "sparsegpt"]
METHODS = get_args(Method)


@dataclass(frozen=True)
class Sparsity:
    """How many weights of each linear layer of the backbone become zero.

    Attributes:
      share: of the weights, from 0 to 1.
      group: of that many inputs in a row, `share` are zero in each output ("2:4": 4); None: anywhere.
      method: "magnitude": the smallest |w| of a layer; "wanda": the smallest |w| ‖x‖ of each output, with the length of
        the input over all tokens (Sun et al., 2023, "A Simple and Effective Pruning Approach for Large Language
        Models"); "sparsegpt": see `sparsegpt`.
      keep: layers that stay dense, as in lora.targets.
    """

    share: float
    group: int | None = None
    method: Method = "wanda"
    keep: Sequence[str] = field(default_factory=tuple)

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"--sparsity goes with --method {', '.join(METHODS)}, not {self.method}.")
        if not 0 < self.share < 1:
            raise ValueError(f"--sparsity is {self.share:g}, but should be a share such as 50%, or n:m such as 2:4.")

    @classmethod
    def of(cls, text: str, method: Method, keep: Sequence[str] = ()) -> "Sparsity":
        """From "50%", "0.5" or "2:4" (2 of 4 neighbors are zero). Raises ValueError for another text."""
        if found := re.fullmatch(r"(\d+):(\d+)", text):
            zeros, group = int(found[1]), int(found[2])
            if not 0 < zeros < group:
                raise ValueError(f"--sparsity is {text}, but should be n:m with n below m, such as 2:4.")
            return cls(zeros / group, group, method, tuple(keep))
        try:
            share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            raise ValueError(
                f"--sparsity is {text!r}, but should be a share such as 50%, or n:m such as 2:4."
            ) from None
        return cls(share, None, method, tuple(keep))

    @property
    def needs_texts(self) -> bool:
        return self.method != "magnitude"


def sparsified(model: SplitModel, mesh: DeviceMesh, batches: Sequence[Batch], how: Sparsity) -> Model:
    """The network with zeros among the weights of its linear layers.

    Args:
      model: a dense network.
      batches: calibration texts, see `calibration_rows.full_rows`.

    Raises ValueError for a pattern of `keep` without a match, for a method that needs texts without any, and for
    numbers of inputs that `group` does not divide.
    """
    if how.needs_texts and not batches:
        raise ValueError(
            f"--method {how.method} needs calibration texts, but data.train is empty: set it, or use magnitude."
        )
    network = model.network
    every = linears(network.backbone)
    config = model.source.config
    kept = find_places(network.backbone, config, how.keep, "--keep", modules=False) if how.keep else []
    chosen = [n for n, linear in enumerate(every) if not any(linear is place.linear for place in kept)]
    tap = {"wanda": squares, "sparsegpt": gram}.get(how.method)
    seen = {} if tap is None else observe(model, mesh, batches, dict.fromkeys(chosen, tap))
    for number in chosen:
        _zero(every[number], how, *seen.get(number, {}).values())
    return network


def _zero(linear: Linear, how: Sparsity, seen: np.ndarray | None = None) -> None:
    kernel = linear.kernel
    assert isinstance(kernel, nnx.Param)
    lead, size = inputs_of(linear)
    if how.group is not None and size % how.group:
        raise ValueError(
            f"--sparsity in groups of {how.group}, but a layer has {size} inputs: choose a share, or --keep."
        )
    flat = np.asarray(kernel[...], np.float32).reshape(-1, size, int(np.prod(kernel.shape[len(lead) + 1 :])))
    each = [None] * len(flat) if seen is None else seen.reshape(len(flat), *seen.shape[len(lead) :])
    done = np.stack([zeroed(own, how, of) for own, of in zip(flat, each, strict=True)])
    kernel[...] = jnp.asarray(done.reshape(kernel.shape), kernel.dtype)


def zeroed(kernel: np.ndarray, how: Sparsity, seen: np.ndarray | None) -> np.ndarray:
    """A kernel [in, out] with zeros, fp32.

    Args:
      seen: Σ x² over tokens, [in] (wanda), or Σ x xᵀ, [in, in] (sparsegpt).
    """
    if how.method == "sparsegpt":
        assert seen is not None
        return sparsegpt(kernel, seen, how)
    scores = np.abs(kernel)
    if seen is not None and seen.any():  # else no input reached the layer
        scores = scores * np.sqrt(seen)[:, None]
    alone = how.method == "wanda"  # each output by itself, rather than the layer as a whole
    return np.where(smallest(scores, how.share, how.group, alone), 0, kernel)


def smallest(scores: np.ndarray, share: float, group: int | None, alone: bool) -> np.ndarray:
    """Mask [in, out] of the smallest scores: of each group of inputs, else of each output (`alone`) or of all."""
    size, outputs = scores.shape
    if group is None and not alone:
        return smallest(scores.reshape(-1, 1), share, None, True).reshape(size, outputs)
    parts = scores.reshape(-1, group or size, outputs)
    order = np.argsort(np.argsort(parts, axis=1, kind="stable"), axis=1, kind="stable")
    return (order < round(share * parts.shape[1])).reshape(size, outputs)


def sparsegpt(kernel: np.ndarray, gram: np.ndarray, how: Sparsity) -> np.ndarray:
    """A kernel whose other weights make up for its zeros (Frantar & Alistarh, 2023, algorithm 1), fp32 [in, out].

    As GPTQ (`compression.gptq`), with zero in place of a code where w² / [H⁻¹]² is smallest: in each block of 128
    inputs, or in each group. Computed in float64.
    """
    weights, upper = kernel.astype(np.float64), inverse_factor(gram)
    size = len(weights)
    length = BLOCK if how.group is None else how.group * max(1, BLOCK // how.group)
    for start in range(0, size, length):
        stop = min(start + length, size)
        errors = np.zeros((stop - start, weights.shape[1]))
        mask = np.zeros(errors.shape, bool)
        for i in range(start, stop):
            if (i - start) % (how.group or length) == 0:
                end = min(i + (how.group or length), stop)
                scores = np.square(weights[i:end] / np.diag(upper)[i:end, None])
                mask[i - start : end - start] = smallest(scores, how.share, how.group, alone=False)
            left = np.where(mask[i - start], 0, weights[i])
            errors[i - start] = (weights[i] - left) / upper[i, i]
            weights[i] = left
            weights[i + 1 : stop] -= np.outer(upper[i, i + 1 : stop], errors[i - start])
        weights[stop:] -= upper[start:stop, stop:].T @ errors
    return weights.astype(np.float32)
