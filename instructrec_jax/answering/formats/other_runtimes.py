"""Formats of other runtimes: each is written from a HuggingFace folder."""

from collections.abc import Callable
from pathlib import Path

from instructrec_jax.answering.formats.onnx import write_onnx
from instructrec_jax.answering.formats.program import write_stablehlo
from instructrec_jax.backbones.compressed_tensors import SCHEMES, compress_folder
from instructrec_jax.backbones.llama_cpp.writing import KINDS, write_gguf

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


def _compressed_tensors(folder: Path, out: Path, dtype: str | None) -> list[str]:
    compress_folder(folder, out, dtype or DTYPES["compressed-tensors"][0])
    return [
        "`transformers`' from_pretrained opens it with the package compressed-tensors.",
        "vLLM reads this form too, but was not tried.",
        "The weights are rounded to the nearest value, without calibration.",
    ]


def _onnx(folder: Path, out: Path, dtype: str | None) -> list[str]:
    return [write_onnx(folder, out)]


def _stablehlo(folder: Path, out: Path, dtype: str | None) -> list[str]:
    return [write_stablehlo(folder, out)]


# Format -> writes an existing, empty folder, and returns what opens it: a sentence each.
OTHER_RUNTIMES: dict[str, Callable[[Path, Path, str | None], list[str]]] = {
    "gguf": _gguf,
    "onnx": _onnx,
    "stablehlo": _stablehlo,
    "compressed-tensors": _compressed_tensors,
}
