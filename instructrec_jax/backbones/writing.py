"""Writes HuggingFace folders: parameters → config.json and safetensors, by each family's mapping table."""

import copy
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from instructrec_jax.backbones.family import Rule
from instructrec_jax.backbones.folder import STALE, family_of
from instructrec_jax.backbones.reading import LoadReport
from instructrec_jax.backbones.tensor_names import (
    DTYPE_NAMES,
    FILE_DTYPES,
    empty,
    file_shape,
    find_name,
    rule_names,
    sites_of,
    to_file,
)
from instructrec_jax.backbones.tensor_writing import write_shards
from instructrec_jax.hf_types import PretrainedConfig


def save_pretrained(
    folder: str | os.PathLike[str],
    backbone: nnx.Module,
    config: PretrainedConfig,
    *,
    report: LoadReport | None = None,
    head: nnx.Module | None = None,
    head_kind: str | None = None,
    dtype: str | None = None,
    max_shard_bytes: int = 2_000_000_000,
) -> None:
    """Writes config.json and safetensors for `transformers`, with one tensor at a time in host memory.

    Args:
        folder: created if necessary; safetensors of an older model in it are deleted.
        backbone, head: modules with their current values.
        config: the HuggingFace config (not changed).
        report: from loading; each tensor is written with its original name and dtype, byte-equal if unchanged.
        head_kind: the kind of `head`: "sequence" | "token" | "span" | "mlm" | "lm".
        dtype: "float32" | "float16" | "bfloat16" for all tensors; None: the original dtypes.
        max_shard_bytes: maximum size of a file; larger weights are split into several files with an index.

    Raises ValueError for a value out of the range of the file's dtype.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = _plan(backbone, config, report=report, head=head, head_kind=head_kind, dtype=dtype)
    write_shards(folder, tensors, max_shard_bytes)
    config = copy.deepcopy(config)
    family = family_of(config)
    name = family.base_class
    if head is not None and head_kind:
        kind = family.heads[head_kind]
        name = kind.architecture or family.base_class.removesuffix("Model") + kind.suffix
    config.architectures = [name]
    for stale in STALE:  # the written weights are not quantized
        if hasattr(config, stale):
            delattr(config, stale)
    kinds = {tensor.kind for tensor in tensors}
    config.dtype = DTYPE_NAMES[kinds.pop()] if len(kinds) == 1 else "float32"
    config.save_pretrained(folder)


def export_tensors(
    backbone: nnx.Module,
    config: PretrainedConfig,
    *,
    report: LoadReport | None = None,
    head: nnx.Module | None = None,
    head_kind: str | None = None,
    dtype: str | None = None,
) -> dict[str, np.ndarray]:
    """HuggingFace name → tensor in HuggingFace's layout and the file's dtype; arguments as in `save_pretrained`."""
    tensors = _plan(backbone, config, report=report, head=head, head_kind=head_kind, dtype=dtype)
    return {tensor.name: tensor.fetch() for tensor in tensors}


@dataclass(frozen=True)
class _Tensor:
    """One tensor to write: a parameter, or one layer of a stacked parameter."""

    name: str
    kind: str  # one of FILE_DTYPES
    shape: tuple[int, ...]  # in the file
    transform: str
    value: jax.Array
    layer: int | None  # index along the value's first axis
    layers: "tuple[_Tensor, ...] | None" = None  # what this tensor holds in place of `value`, one behind the other

    def fetch(self) -> np.ndarray:
        if self.layers is not None:
            out = empty(self.shape, FILE_DTYPES[self.kind])
            for number, layer in enumerate(self.layers):
                out[number] = layer.fetch()
            return out
        one = to_file(self.transform, np.asarray(self._part(), np.float32))
        if self.kind == "F32" and one.flags.c_contiguous:
            return one
        out = empty(one.shape, FILE_DTYPES[self.kind])
        with np.errstate(over="ignore"):
            out[...] = one
        if not np.isfinite(out).all() and np.isfinite(one).all():
            raise ValueError(
                f"a value of {self.name} is out of the range of {DTYPE_NAMES[self.kind]}, the dtype of its original "
                "file: write it with dtype='float32' or 'bfloat16'."
            )
        return out

    def _part(self) -> jax.Array:
        """A copy, because a jax array keeps its host copy for its whole lifetime."""
        return jnp.copy(self.value) if self.layer is None else self.value[self.layer]


def _plan(
    backbone: nnx.Module,
    config: PretrainedConfig,
    *,
    report: LoadReport | None,
    head: nnx.Module | None,
    head_kind: str | None,
    dtype: str | None,
) -> list[_Tensor]:
    family = family_of(config)
    if (head is None) != (head_kind is None):
        raise ValueError("`head` and `head_kind` must be given together.")
    source = dict(report.used) if report else {}
    prefixed = head is not None or bool(family.layouts) or any(name.startswith(family.prefix) for name in source)
    bare = {name.removeprefix(family.prefix): kind for name, kind in source.items()}
    tensors = _plan_module(backbone, family.mapping, family.prefix if prefixed else "", bare, dtype)
    if head is not None and head_kind is not None:
        tensors += _plan_module(head, family.heads[head_kind].mapping, "", bare, dtype)
    assert len({tensor.name for tensor in tensors}) == len(tensors), "two parameters of a family share a name"
    return [replace(tensor, name=family.name_in_files(tensor.name)) for tensor in _stacked(tensors, family.stacked)]


def _stacked(tensors: list[_Tensor], starts: tuple[str, ...]) -> list[_Tensor]:
    """The tensors with all layers of one in a single one, where the names begin with one of `starts`."""
    found: list[_Tensor] = []
    layers: dict[str, dict[int, _Tensor]] = {}
    for tensor in tensors:
        start = next((each for each in starts if tensor.name.startswith(each)), None)
        if start is None:
            found.append(tensor)
        else:
            number, _, name = tensor.name[len(start) :].partition(".")
            layers.setdefault(start + name, {})[int(number)] = tensor
    for name, parts in layers.items():
        whole = tuple(parts[number] for number in sorted(parts))
        found.append(replace(whole[0], name=name, shape=(len(whole), *whole[0].shape), layers=whole))
    return found


def _plan_module(
    module: nnx.Module, rules: tuple[Rule, ...], prefix: str, source: Mapping[str, str], dtype: str | None
) -> list[_Tensor]:
    by_path = {rule.path: rule for rule in rules}
    values = {".".join(map(str, keys)): v[...] for keys, v in nnx.to_flat_state(nnx.state(module))}
    by_name = {name: kind for kind, name in DTYPE_NAMES.items()}
    if dtype is not None and dtype not in by_name:
        raise ValueError(f"unknown dtype {dtype!r}; choose from {', '.join(by_name)}.")
    kinds = list(source.values()) or ["F32"]
    common = max(sorted(set(kinds)), key=kinds.count)  # for new tensors
    tensors = []
    for site in sites_of(module):
        rule = by_path[site.rule_path]
        shape = file_shape(rule.transform, site.shape if site.layers is None else site.shape[1:])
        for i, layer in enumerate(site.layers or (None,)):
            canonical, old_names = rule_names(rule, layer)
            name = find_name(canonical, old_names, "", source) or canonical
            kind = by_name[dtype] if dtype else source.get(name, common)
            index = None if layer is None else i
            tensors.append(_Tensor(prefix + name, kind, shape, rule.transform, values[site.path], index))
    return tensors
