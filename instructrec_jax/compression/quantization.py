"""Codes for the linear layers of a network, by rounding, SmoothQuant or GPTQ, and the error of each layer."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypedDict, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from instructrec_jax.adapters.lora import find_places, places
from instructrec_jax.adapters.quantized import (
    Format,
    encode,
    linears,
    pack,
    plain_kernel,
    quantize_tables,
    set_codes,
)
from instructrec_jax.backbones.backbone_config import Activations
from instructrec_jax.backbones.folder import family_of
from instructrec_jax.backbones.layers import Linear
from instructrec_jax.compression.calibration import Tap, compared, gram, inputs_of, largest, observe
from instructrec_jax.compression.gptq import gptq
from instructrec_jax.data.batch import Batch
from instructrec_jax.distributed.mesh import DeviceMesh
from instructrec_jax.runs.model import SplitModel
from instructrec_jax.tasks.base import Model

Weights = Literal["int8", "int4", "nf4"]
Method = Literal["rtn", "smoothquant", "gptq"]
WEIGHTS, METHODS = get_args(Weights), get_args(Method)
ALPHAS = (0.5, 0.6, 0.7, 0.8, 0.9)  # migration strengths of SmoothQuant; the paper has one for a whole network


@dataclass(frozen=True)
class Quantization:
    """How to quantize a network.

    Attributes:
      weights, activations, group: see `adapters.quantized.Format`.
      method: "rtn": round to nearest; "smoothquant": with a divisor for each input, which makes outliers of the
        activations smaller (Xiao et al., 2023), of the strength with the smallest output error of each layer on the
        calibration texts; "gptq": see `gptq`.
      keep: layers that stay as they are, as in lora.targets.
      keep_above: also those with a larger relative output error, in any layer of a stack; None: none.
      embeddings: whether tables over the vocabulary become int8, row by row.
    """

    weights: Weights = "int8"
    activations: Activations = "none"
    group: int | None = None
    method: Method = "rtn"
    keep: Sequence[str] = field(default_factory=tuple)
    keep_above: float | None = None
    embeddings: bool = True

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"unknown method {self.method!r}; choose from {', '.join(METHODS)}.")
        if self.method == "smoothquant" and self.activations == "none":
            raise ValueError("smoothquant serves activations in int8: use --activations int8, or another --method.")
        _ = self.format

    @property
    def format(self) -> Format:
        return Format(self.weights, self.group, self.activations, smooth=self.method == "smoothquant")

    @property
    def needs_texts(self) -> bool:
        """Whether the network has to see calibration texts."""
        return self.method != "rtn" or self.keep_above is not None


class LayerError(TypedDict):
    """The relative error ‖z - y‖ / ‖y‖ of a layer's outputs, by HuggingFace's name, and whether it was kept dense."""

    layer: str
    error: float
    kept: bool


def quantized(
    model: SplitModel, mesh: DeviceMesh, batches: Sequence[Batch], how: Quantization
) -> tuple[Model, list[str], list[LayerError]]:
    """(the network with codes, the patterns of the layers that were kept, the error of each layer).

    Args:
      model: a dense network.
      batches: calibration texts, see `calibration_rows.full_rows`; without any, there are no errors.

    Raises ValueError for a pattern without a match, for a method that needs texts without any, and for weights or
    activations that are NaN or infinite.
    """
    if how.needs_texts and not batches:
        raise ValueError(f"{how.method} needs calibration texts, but data.train has none: set it, or use rtn.")
    network = model.network
    every = linears(network.backbone)
    names = _names(network, model)
    config = model.source.config
    kept = find_places(network.backbone, config, how.keep, "--keep", modules=False) if how.keep else []
    keep = {number for number, linear in enumerate(every) if any(linear is place.linear for place in kept)}
    chosen = [number for number in range(len(every)) if number not in keep]
    tap = {"gptq": gram, "smoothquant": largest}.get(how.method)
    seen = {} if tap is None else observe(model, mesh, batches, dict.fromkeys(chosen, tap))
    for number in chosen:
        inputs = seen.get(number, {}).values()
        for what, values in (("weights", [np.asarray(plain_kernel(every[number])[...])]), ("inputs", inputs)):
            if not all(np.isfinite(value).all() for value in values):
                raise ValueError(
                    f"the {what} of {names[number][0]} contain NaN or infinity: choose another checkpoint."
                )
    if how.method == "smoothquant":
        seen = _with_divisors(model, mesh, batches, how, seen)
    for number in chosen:
        _set(every[number], how, seen.get(number, {}))
    errors = _errors(model, network, mesh, batches, chosen) if batches else {}
    too_far = {
        number for number, found in errors.items() if how.keep_above is not None and found.max() > how.keep_above
    }
    dense = linears(model.network.backbone)
    for number in too_far:
        every[number].kernel = dense[number].kernel
    if how.embeddings:
        quantize_tables(network, how.activations)
    patterns = [*how.keep, *(_pattern(names[number]) for number in sorted(too_far))]
    report = [
        LayerError(layer=name, error=float(error), kept=number in too_far)
        for number in errors
        for name, error in zip(names[number], np.atleast_1d(errors[number]), strict=True)
    ]
    if batches:
        report += [LayerError(layer=name, error=0.0, kept=True) for name in _convolutions(network, model)]
    return network, patterns, report


def _convolutions(network: Model, model: SplitModel) -> list[str]:
    """HuggingFace's names of the convolutions, which stay as they are: they have few weights."""
    names = {rule.path: rule.name.removesuffix(".weight") for rule in family_of(model.source.config).mapping}
    return [
        names[".".join(map(str, (*path, "kernel")))]
        for path, node in nnx.iter_modules(network.backbone)
        if not isinstance(node, Linear) and isinstance(getattr(node, "kernel", None), nnx.Param)
    ]


def _names(network: Model, model: SplitModel) -> list[tuple[str, ...]]:
    """HuggingFace's names of each linear layer, one for each layer of a stack."""
    found = places(network.backbone, model.source.config, modules=False)
    by_linear = {id(place.linear): place.names for place in found}
    return [by_linear[id(linear)] for linear in linears(network.backbone)]


def _pattern(names: Collection[str]) -> str:
    """A regular expression that matches these names and no others."""
    return "|".join(f".*{name}".replace(".", r"\.").replace(r"\.*", ".*", 1) for name in names)


def _with_divisors(
    model: SplitModel,
    mesh: DeviceMesh,
    batches: Sequence[Batch],
    how: Quantization,
    seen: Mapping[int, Mapping[str, np.ndarray]],
) -> dict[int, dict[str, np.ndarray]]:
    """ "divisors" of each layer, [in] or [layers, in]: those of `ALPHAS` with the smallest error of its outputs.

    Args:
      seen: place of a layer -> "largest", see `calibration.largest`.
    """
    choices, errors = [], []
    for alpha in ALPHAS:
        network = model.network
        every = linears(network.backbone)
        divisors = {number: _divisors(every[number], own["largest"], alpha) for number, own in seen.items()}
        for number in seen:
            _set(every[number], how, {"divisors": divisors[number]})
        choices.append(divisors)
        errors.append(_errors(model, network, mesh, batches, list(seen)))
    best = {number: np.argmin([found[number] for found in errors], axis=0) for number in seen}
    return {
        number: {"divisors": np.choose(best[number][..., None], [divisors[number] for divisors in choices])}
        for number in seen
    }


def _divisors(linear: Linear, largest: np.ndarray, alpha: float) -> np.ndarray:
    """The divisors of a layer, [in] or [layers, in]."""
    kernels = _kernels(linear)
    pairs = zip(kernels, largest.reshape(len(kernels), -1), strict=True)
    return np.stack([smoothing(kernel, own, alpha) for kernel, own in pairs]).reshape(largest.shape)


def _kernels(linear: Linear) -> np.ndarray:
    """A layer's kernels [layers, in, ..., out] in fp32, one for a layer outside of a stack."""
    kernel = plain_kernel(linear)
    layers, size = inputs_of(linear)
    return np.asarray(kernel[...], np.float32).reshape(-1, size, *kernel.shape[len(layers) + 1 :])


def _set(linear: Linear, how: Quantization, seen: Mapping[str, np.ndarray]) -> None:
    """Puts codes in place of a layer's kernel, layer by layer of a stack."""
    layers, size = inputs_of(linear)
    kernels = _kernels(linear)
    divisors = None
    if "divisors" in seen:
        divisors = seen["divisors"].reshape(-1, size)
        kernels = kernels * divisors.reshape(*divisors.shape, *(1 for _ in kernels.shape[2:]))
    grams = seen["gram"].reshape(-1, size, size) if "gram" in seen else [None] * len(kernels)
    pairs = [_encoded(how.format, each, own) for each, own in zip(kernels, grams, strict=True)]

    def joined(values: Sequence[jax.Array | np.ndarray]) -> jax.Array:
        return jnp.stack(values) if layers else jnp.asarray(values[0])

    smooth = None if divisors is None else joined(list(divisors))
    codes, scales = (joined([pair[i] for pair in pairs]) for i in range(2))
    set_codes(linear, how.format, codes, scales, smooth)


def _encoded(format: Format, kernel: np.ndarray, gram: np.ndarray | None) -> tuple[jax.Array, jax.Array]:
    """(codes, scales) of one layer, by GPTQ where there is a Gram matrix."""
    if gram is None:
        return _encode(format, jnp.asarray(kernel))
    size, *rest = kernel.shape
    numbers, scales = gptq(kernel.reshape(size, -1), gram, format)
    codes = pack(format.weights, jnp.asarray(numbers.reshape(size, *rest)))
    return codes, jnp.asarray(scales.reshape(-1, *rest))


_encode = jax.jit(encode, static_argnums=0)


def smoothing(kernel: np.ndarray, largest: np.ndarray, alpha: float) -> np.ndarray:
    """SmoothQuant's divisor of each input, fp32 [in]: max |x|^α / max |w|^(1 - α) (equation 4), 1 where either is 0.

    Args:
      kernel: [in, ..., out].
      largest: max |x| of each input on calibration texts, [in].
      alpha: how much of the activations' range goes to the weights, from 0 to 1.
    """
    weights = np.abs(kernel).reshape(len(kernel), -1).max(1)
    known = (weights > 0) & (largest > 0)
    ratio = np.where(known, largest, 1) ** alpha / np.where(known, weights, 1) ** (1 - alpha)
    return np.where(known, ratio, 1).astype(np.float32)


def _errors(
    model: SplitModel, network: Model, mesh: DeviceMesh, batches: Sequence[Batch], chosen: Sequence[int]
) -> dict[int, np.ndarray]:
    """The relative output error of each chosen layer, [] or [layers], with the dense network's inputs."""
    every = linears(network.backbone)

    def tap(number: int) -> Callable[[Linear], Tap]:
        return lambda linear: compared(linear, every[number].kernel)

    seen = observe(model, mesh, batches, {number: tap(number) for number in chosen})
    return {
        number: np.sqrt(found["error"] / np.where(found["power"] > 0, found["power"], 1))
        for number, found in seen.items()
    }
