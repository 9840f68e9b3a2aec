"""Formats of other runtimes: each is written from a HuggingFace folder."""

from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from instructrec_jax.adapters.lora import lora_of, places
from instructrec_jax.adapters.quantized import Quantized, unpack
from instructrec_jax.answering.formats.onnx import write_onnx
from instructrec_jax.answering.formats.program import write_stablehlo
from instructrec_jax.backbones import compressed_tensors
from instructrec_jax.backbones.compressed_tensors import SCHEMES, compress_folder
from instructrec_jax.backbones.llama_cpp.writing import KINDS, write_gguf
from instructrec_jax.hf_types import PretrainedConfig

# --dtype of each format; the first one is the default
DTYPES: dict[str, tuple[str, ...]] = {
    "gguf": ("F16", *(kind for kind in KINDS if kind != "F16")),
    "compressed-tensors": tuple(SCHEMES),
    "onnx": (),
    "stablehlo": (),
}


def _gguf(folder: Path, out: Path, dtype: str | None) -> list[str]:
    write_gguf(folder, out / "model.gguf", dtype or DTYPES["gguf"][0])
    return ["`llama-cli -m model.gguf` (llama.cpp) opens it; so does `--backbone.path model.gguf` here."]


def write_compressed_tensors(
    folder: Path, out: Path, dtype: str | None, codes: Mapping[str, compressed_tensors.Quantized] | None = None
) -> list[str]:
    """As the functions of `OTHER_RUNTIMES`; `codes`: see `stored_codes`."""
    compress_folder(folder, out, dtype or DTYPES["compressed-tensors"][0], codes)
    return [
        "`transformers`' from_pretrained opens it with the package compressed-tensors.",
        "vLLM reads this form too, but was not tried.",
        "The weights are rounded to the nearest value, without calibration."
        if codes is None
        else "The codes are those of the run; what its tables and heads in codes stand for is in floating point.",
    ]


def stored_codes(
    backbone: nnx.Module, config: PretrainedConfig, dtype: str | None
) -> tuple[str, dict[str, compressed_tensors.Quantized]] | None:
    """(the scheme, kernels by HuggingFace's names without prefix) of a compressed network whose form is a scheme's.

    None for a network without codes, with LoRA on them, and with codes that no scheme has: NF4, SmoothQuant's divisors,
    int8 in groups, groups that do not divide all inputs; and for another `dtype` than theirs.
    """
    found: dict[str, compressed_tensors.Quantized] = {}
    forms = set()
    for place in places(backbone, config):
        kernel = place.linear.kernel
        if lora_of(place.linear) is not None:
            return None
        if not isinstance(kernel, Quantized):
            continue
        kind, groups = kernel.format.weights, kernel.scales.shape[kernel.codes.ndim > len(kernel.axes)]
        group = kernel.format.group_of(kernel.size)
        scheme = {"int8": "W8A8", "int4": "W4A16"}.get(kind)
        fits = groups == 1 if kind == "int8" else groups * group == kernel.size
        if scheme is None or kernel.smooth is not None or not fits or dtype not in (None, scheme):
            return None
        forms.add(scheme)
        layers = len(place.names) if kernel.codes.ndim > len(kernel.axes) else 1
        codes, scales = (np.asarray(x).reshape(layers, -1, *x.shape[-1:]) for x in _whole(kernel))
        for name, own, factors in zip(place.names, codes, scales, strict=True):
            found[f"{name}.weight"] = compressed_tensors.Quantized(own.T, np.ascontiguousarray(factors.T))
    return (forms.pop(), found) if forms else None


def _whole(kernel: Quantized) -> tuple[jax.Array, jax.Array]:
    """Codes of 8 bits [(layers,) in, out] and their scales."""
    stacked = kernel.codes.ndim > len(kernel.axes)

    def numbers(codes: jax.Array) -> jax.Array:
        return unpack(kernel.format.weights, codes, kernel.size)

    return (jax.vmap(numbers) if stacked else numbers)(kernel.codes[...]), kernel.scales[...]


def _onnx(folder: Path, out: Path, dtype: str | None) -> list[str]:
    return [write_onnx(folder, out)]


def _stablehlo(folder: Path, out: Path, dtype: str | None) -> list[str]:
    return [write_stablehlo(folder, out)]


# Format -> writes an existing, empty folder, and returns what opens it: a sentence each.
OTHER_RUNTIMES: dict[str, Callable[[Path, Path, str | None], list[str]]] = {
    "gguf": _gguf,
    "onnx": _onnx,
    "stablehlo": _stablehlo,
    "compressed-tensors": write_compressed_tensors,
}
