"""HuggingFace folders with quantized weights in the format compressed-tensors, for vLLM and transformers.

Layouts and names are those of the package compressed-tensors ("int-quantized" and "pack-quantized"); it is not needed
here.
"""

import copy
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from instructrec_jax.backbones.folder import find_family, read_config
from instructrec_jax.backbones.tensor_names import FILE_DTYPES, TensorFiles
from instructrec_jax.backbones.tensor_writing import write_shards
from instructrec_jax.files import read_json, write_json
from instructrec_jax.hf_types import PretrainedConfig

GROUPS = (128, 64, 32)  # sizes that vLLM's kernels have; the first one that divides all rows is taken
PER_INT32 = 8  # codes of 4 bits


@dataclass(frozen=True)
class Scheme:
    """How weights are stored, and whether activations are rounded while computing.

    Attributes:
        bits: of a weight: 8, one scale for each row, or 4, one for each group of a row.
        activations: rounded to 8 bits with one scale for each token.
    """

    bits: int
    activations: bool


SCHEMES = {"W8A8": Scheme(8, True), "W4A16": Scheme(4, False)}


@dataclass(frozen=True)
class Quantized:
    """A kernel in HuggingFace's layout: weight[o, i] = codes[o, i] · scales[o, i // group].

    Attributes:
        codes: int8 [out, in], from -128 to 127 (8 bits) or -8 to 7 (4 bits).
        scales: float32 [out, groups]; one group for 8 bits.
    """

    codes: np.ndarray
    scales: np.ndarray

    def dequantized(self) -> np.ndarray:
        """The float32 weights [out, in]."""
        return self.codes * np.repeat(self.scales, self.codes.shape[1] // self.scales.shape[1], axis=1)


Tensor = np.ndarray | Quantized


@dataclass(frozen=True)
class _Stored:
    """See `tensor_writing.FileTensor`."""

    name: str
    kind: str
    shape: tuple[int, ...]
    fetch: Callable[[], np.ndarray]


def rounded(weight: np.ndarray, bits: int, group: int | None) -> Quantized:
    """Rounds weights [out, in] to the nearest of 2^bits - 1 values, symmetric around 0."""
    out, width = weight.shape
    rows = weight.astype(np.float32).reshape(out, -1, group or width)
    most = 2 ** (bits - 1) - 1
    scales = np.maximum(np.abs(rows).max(-1) / np.float32(most), np.finfo(np.float32).tiny)
    codes = np.clip(np.rint(rows / scales[..., None]), -most, most)
    return Quantized(codes.reshape(out, width).astype(np.int8), scales)


def packed(codes: np.ndarray) -> np.ndarray:
    """int8 codes of 4 bits [out, in] -> int32 [out, in / 8], the first code in the lowest bits, each plus 8."""
    unsigned = (codes.astype(np.int32) + 8).astype(np.uint32).reshape(len(codes), -1, PER_INT32)
    shifts = np.arange(0, 32, 4, dtype=np.uint32)
    return np.bitwise_or.reduce(unsigned << shifts, axis=-1).view(np.int32)


def write_compressed_tensors(
    folder: Path,
    config: PretrainedConfig,
    tensors: Mapping[str, Tensor | Callable[[], Tensor]],
    scheme: Scheme,
    *,
    ignored: Sequence[str],
) -> None:
    """Writes config.json and safetensors.

    Args:
        folder: exists, with the tokenizer's files.
        config: of the dense network (not changed).
        tensors: HuggingFace's names -> floats, or a kernel's codes and scales; a function is called twice, when the
        file
            is planned and when it is written, so that one kernel at a time is in memory.
        ignored: the names of linear layers that stay dense.

    Raises ValueError if no tensor is quantized.
    """
    stored: list[_Stored] = []
    group = None
    for name, given in tensors.items():
        value = given() if callable(given) else given
        if not isinstance(value, Quantized):
            kind = next(kind for kind, dtype in FILE_DTYPES.items() if dtype == value.dtype)
            stored.append(_Stored(name, kind, value.shape, partial(_fetch, given, "dense")))
            continue
        stem, (out, width) = name.removesuffix("weight"), value.codes.shape
        group = width // value.scales.shape[1] if scheme.bits == 4 else None
        stored.append(_Stored(f"{stem}weight_scale", "F32", value.scales.shape, partial(_fetch, given, "scales")))
        if scheme.bits == 8:
            stored.append(_Stored(name, "I8", (out, width), partial(_fetch, given, "codes")))
        else:
            shape = (out, width // PER_INT32)
            stored.append(_Stored(f"{stem}weight_packed", "I32", shape, partial(_fetch, given, "packed")))
            size = np.array([out, width], np.int64)
            stored.append(_Stored(f"{stem}weight_shape", "I64", (2,), partial(np.copy, size)))
    if not any(each.name.endswith("weight_scale") for each in stored):
        raise ValueError(f"no linear layer of this {config.model_type} network can be quantized.")
    write_shards(folder, stored)
    config = copy.deepcopy(config)
    config.save_pretrained(folder)
    fields = read_json(folder / "config.json", dict)
    write_json(folder / "config.json", fields | {"quantization_config": _declared(scheme, group, ignored)})


def _fetch(given: Tensor | Callable[[], Tensor], part: str) -> np.ndarray:
    value = given() if callable(given) else given
    if not isinstance(value, Quantized):
        return value
    return packed(value.codes) if part == "packed" else value.codes if part == "codes" else value.scales


def _declared(scheme: Scheme, group: int | None, ignored: Sequence[str]) -> dict[str, object]:
    """The quantization_config of config.json."""
    weights = {"num_bits": scheme.bits, "type": "int", "symmetric": True, "dynamic": False}
    weights |= {"strategy": "channel"} if group is None else {"strategy": "group", "group_size": group}
    tokens = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
    layers = {"targets": ["Linear"], "weights": weights, "input_activations": tokens if scheme.activations else None}
    return {
        "quant_method": "compressed-tensors",
        "format": "int-quantized" if scheme.bits == 8 else "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": layers | {"output_activations": None}},
        "ignore": list(ignored),
        "kv_cache_scheme": None,
    }


def compress_folder(folder: Path, out: Path, scheme: str, codes: Mapping[str, Quantized] | None = None) -> None:
    """Writes a HuggingFace folder with the kernels of its backbone rounded to the nearest value.

    Heads, tables and norms stay as they are. Raises ValueError for an unknown scheme, and for rows that no group
    divides.

    Args:
        codes: kernels in the form of the scheme, by their names without the model's prefix: they are written as they
            are, and the other layers stay dense.
    """
    if scheme not in SCHEMES:
        raise ValueError(f"--dtype is {scheme!r}, but should be one of {', '.join(SCHEMES)} for compressed-tensors.")
    config, how = read_config(folder), SCHEMES[scheme]
    shutil.copytree(folder, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns("model*.safetensors*"))
    with TensorFiles(folder) as files:
        linear, dense = _linear_layers(config, list(files.names))
        group: int | None = None
        known: dict[str, Quantized] = {}
        if codes is not None:
            short = {name: name.removeprefix(find_family(config.model_type).prefix) for name in linear}
            known = {name: codes[stem] for name, stem in short.items() if stem in codes}
            dense, linear = (
                sorted({*dense, *(name.removesuffix(".weight") for name in linear - known.keys())}),
                set(known),
            )
        elif how.bits == 4:
            widths = {name: files.shape(name)[1] for name in linear}
            group = next((size for size in GROUPS if all(width % size == 0 for width in widths.values())), None)
            if group is None:
                name = next(name for name, width in widths.items() if width % GROUPS[-1])
                raise ValueError(
                    f"--dtype {scheme}: the rows of {name} have {widths[name]} values, which groups of {GROUPS[-1]} "
                    "do not "
                    "divide: use W8A8."
                )

        def fetch(name: str) -> Tensor:
            if name in known:
                return known[name]
            value = files.read(name)
            return rounded(value, how.bits, group) if name in linear else value

        # older BERTs have a table of the numbers 0, 1, 2, ..., which transformers makes itself
        tensors = {name: partial(fetch, name) for name in files.names if not name.endswith("position_ids")}
        write_compressed_tensors(out, config, tensors, how, ignored=dense)


def _linear_layers(config: PretrainedConfig, names: list[str]) -> tuple[set[str], list[str]]:
    """(tensors to quantize, names of linear layers that stay dense)."""
    family = find_family(config.model_type)
    kernels = [rule.name for rule in family.mapping if rule.transform == "transpose" and rule.name.endswith(".weight")]
    within = [name for name in kernels if "{layer}" in name]  # not those beside the layers, such as a pooler
    pattern = re.compile("|".join(re.escape(name).replace(r"\{layer\}", r"\d+") for name in within) or "(?!)")
    found = {name for name in names if pattern.fullmatch(name.removeprefix(family.prefix))}
    heads = {rule.name for head in family.heads.values() for rule in head.mapping if rule.name.endswith(".weight")}
    beside = heads | {name for name in kernels if "{layer}" not in name} | {"lm_head.weight"}
    dense = {name.removesuffix(".weight") for name in beside}
    return found, sorted(dense | {f"{family.prefix}{name}" for name in dense})
