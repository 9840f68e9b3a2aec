"""Writes HuggingFace folders: parameters → config.json and safetensors, by each family's table."""

import copy
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from instructrec_jax.backbones.family import Rule
from instructrec_jax.backbones.folder import find_family
from instructrec_jax.backbones.reading import LoadReport
from instructrec_jax.backbones.tensors import DTYPE_NAMES, FILE_DTYPES, find_name, rule_names, sites_of, to_file


def save_pretrained(
    folder: str | os.PathLike[str],
    backbone: nnx.Module,
    config: Any,
    *,
    report: LoadReport | None = None,
    head: nnx.Module | None = None,
    head_kind: str | None = None,
    dtype: str | None = None,
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Writes config.json and safetensors that `transformers` opens.

    Args:
        folder: made if need be.
        backbone, head: modules with their present values; `head_kind` is "sequence" | "token" | "mlm" | "lm".
        config: the HuggingFace config (not changed).
        report: of the load; each tensor is then written under the name and in the dtype it was read with,
            byte-equal if untouched.
        dtype: "float32" | "float16" | "bfloat16" for all tensors instead.
        max_shard_bytes: beyond it the weights are split into several files with an index.

    Raises ValueError when a value does not fit the file's dtype.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = export_tensors(backbone, config, report=report, head=head, head_kind=head_kind, dtype=dtype)
    _write_shards(folder, tensors, max_shard_bytes)
    config = copy.deepcopy(config)
    family = find_family(config.model_type)
    name = family.base_class
    if head is not None and head_kind:
        kind = family.heads[head_kind]
        name = kind.architecture or family.base_class.removesuffix("Model") + kind.suffix
    config.architectures = [name]
    dtypes = {str(t.dtype) for t in tensors.values()}
    config.dtype = dtypes.pop() if len(dtypes) == 1 else "float32"
    config.save_pretrained(folder)


def export_tensors(
    backbone: nnx.Module,
    config: Any,
    *,
    report: LoadReport | None = None,
    head: nnx.Module | None = None,
    head_kind: str | None = None,
    dtype: str | None = None,
) -> dict[str, np.ndarray]:
    """HuggingFace name → tensor in its layout and the file's dtype; arguments as in `save_pretrained`."""
    family = find_family(config.model_type)
    if (head is None) != (head_kind is None):
        raise ValueError("Give `head` and `head_kind` together.")
    source = dict(report.used) if report else {}
    prefixed = head is not None or any(name.startswith(family.prefix) for name in source)
    bare = {name.removeprefix(family.prefix): kind for name, kind in source.items()}
    tensors = dict(_export(backbone, family.mapping, family.prefix if prefixed else "", bare, dtype))
    if head is not None and head_kind is not None:
        tensors.update(_export(head, family.heads[head_kind].mapping, "", bare, dtype))
    return tensors


def _export(
    module: nnx.Module, rules: tuple[Rule, ...], prefix: str, source: Mapping[str, str], dtype: str | None
) -> Iterator[tuple[str, np.ndarray]]:
    by_path = {rule.path: rule for rule in rules}
    values = {".".join(map(str, keys)): v[...] for keys, v in nnx.to_flat_state(nnx.state(module))}
    wanted = {name: kind for kind, name in DTYPE_NAMES.items()}
    if dtype is not None and dtype not in wanted:
        raise ValueError(f"dtype {dtype!r} cannot be written; choose one of {', '.join(wanted)}.")
    kinds = list(source.values()) or ["F32"]
    common = max(sorted(set(kinds)), key=kinds.count)  # for what is new
    for site in sites_of(module):
        rule = by_path[site.rule_path]
        value = np.asarray(jax.device_get(values[site.path]), np.float32)
        for i, layer in enumerate(site.layers or (None,)):
            canonical, old_names = rule_names(rule, layer)
            name = find_name(canonical, old_names, "", source) or canonical
            kind = wanted[dtype] if dtype else source.get(name, common)
            one = to_file(rule.transform, value if layer is None else value[i])
            with np.errstate(over="ignore"):
                cast = np.ascontiguousarray(one.astype(FILE_DTYPES[kind]))
            if not np.isfinite(cast.astype(np.float32)).all() and np.isfinite(one).all():
                raise ValueError(
                    f"A value of {prefix + name} does not fit {DTYPE_NAMES[kind]}, the dtype of the file "
                    "it came from. Write it with dtype='float32' or 'bfloat16'."
                )
            yield prefix + name, cast


def _write_shards(folder: Path, tensors: Mapping[str, np.ndarray], max_shard_bytes: int) -> None:
    shards: list[dict[str, np.ndarray]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > max_shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    if len(shards) == 1:
        save_file(shards[0], folder / "model.safetensors", metadata={"format": "pt"})
        return
    index: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        index.update(dict.fromkeys(shard, file))
    total = sum(tensor.nbytes for tensor in tensors.values())
    content = {"metadata": {"total_size": total}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(content, indent=2), encoding="utf-8")
