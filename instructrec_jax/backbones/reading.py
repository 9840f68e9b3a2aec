"""Reads HuggingFace folders: safetensors → parameters, by each family's table."""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from instructrec_jax.backbones.family import Family, Rule
from instructrec_jax.backbones.folder import (
    PoolingSpec,
    declared_head,
    find_family,
    find_folder,
    read_config,
    read_pooling,
)
from instructrec_jax.backbones.json_fields import read_fields
from instructrec_jax.backbones.layers import WHOLE_STACK, Axes, StackOptions
from instructrec_jax.backbones.network_config import quantization_method
from instructrec_jax.backbones.tensor_names import (
    FILE_DTYPES,
    Site,
    TensorFiles,
    abstract_module,
    empty,
    file_shape,
    find_name,
    read_slice,
    rule_names,
    sites_of,
    verify_checksums,
)

Shardings = Callable[[str, tuple[int, ...], Axes], jax.sharding.Sharding]


@dataclass(frozen=True)
class LoadReport:
    """What became of each tensor.

    Attributes:
        used: tensor name in the file → its dtype there ("F32", "F16", "BF16").
        unused: names in the file that no parameter took.
        initialized: our parameter paths that the file lacks and that were newly initialized.
    """

    used: Mapping[str, str] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    initialized: tuple[str, ...] = ()

    def __add__(self, other: "LoadReport") -> "LoadReport":
        used = {**self.used, **other.used}
        unused = dict.fromkeys((*self.unused, *other.unused))
        return LoadReport(used, tuple(n for n in unused if n not in used), self.initialized + other.initialized)

    def __str__(self) -> str:
        def some(names: tuple[str, ...]) -> str:
            shown = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
            return f"{len(names)}" + (f" ({shown})" if names else "")

        return (
            f"{len(self.used)} tensors read, {some(self.unused)} not used, "
            f"{some(self.initialized)} parameters newly initialized"
        )


@dataclass(frozen=True)
class Pretrained:
    """A loaded network (parameters fp32), its HuggingFace config, and what there is to know about it."""

    module: nnx.Module
    config: Any
    family: Family
    report: LoadReport
    pooling: PoolingSpec


def build_backbone(
    config: Any,
    *,
    dtype: Any = jnp.float32,
    stack: StackOptions = WHOLE_STACK,
    pooler: bool = True,
    rngs: nnx.Rngs,
) -> nnx.Module:
    """The network of a HuggingFace config, initialized as HuggingFace does; see `Family` for its call.

    Raises ValueError for a config that no network can have.
    """
    family = find_family(config.model_type)
    try:
        return family.build(config, dtype=dtype, stack=stack, pooler=pooler, rngs=rngs)
    except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError) as error:
        if "config.json" in str(error):
            raise
        raise ValueError(
            f"config.json of this {config.model_type} model describes no network that can be built "
            f"({type(error).__name__}: {error})"
        ) from error


def input_limit(config: Any) -> int:
    """The most tokens one input may have, special tokens included.

    Not always `max_position_embeddings`: RoBERTa and MPNet keep the first rows of that table for padding.
    """
    module: Any = abstract_module(lambda key: build_backbone(config, rngs=nnx.Rngs(params=key)))
    return module.max_length


def load_backbone(
    path_or_hub_id: str | os.PathLike[str],
    *,
    dtype: Any = jnp.float32,
    stack: StackOptions = WHOLE_STACK,
    pooler: bool = True,
    random_init: bool = False,
    rngs: nnx.Rngs,
    shardings: Shardings | None = None,
    verify: bool = False,
) -> Pretrained:
    """Reads a pretrained network.

    Args:
        path_or_hub_id: a HuggingFace folder with config.json and safetensors, or a hub id.
        dtype: of the activations; parameters are fp32 whatever the file holds.
        stack: see `layers.StackOptions`.
        pooler: keep BERT's pooler (newly initialized and reported when the file has none); False leaves it
            out.
        random_init: take only the config from the folder and draw fresh weights.
        rngs: its "params" stream serves what is newly initialized.
        shardings: shardings(path, shape, axes) -> Sharding for each parameter; stacked parameters come with
            a leading "layers" axis in both. Each device's slice is read straight from the file. None: the
            default device.
        verify: compare the files with the hub's SHA-256 first (see `verify_checksums`); reads them once more.

    Raises ValueError for an unsupported model_type or config field, a missing or misshapen tensor, NaN or infinity in
    one, quantized weights, a pickle-only folder.
    """
    folder = find_folder(path_or_hub_id)
    config = read_config(folder)
    family = find_family(config.model_type)
    if verify and not random_init:
        verify_checksums(folder)

    def build(key: jax.Array) -> nnx.Module:
        return build_backbone(config, dtype=dtype, stack=stack, pooler=pooler, rngs=nnx.Rngs(params=key))

    if random_init:
        module, report = _fill(build, None, (), "", rngs.params(), shardings, lambda path: True)
    else:
        with TensorFiles(folder) as files:
            _refuse_quantized(files)
            prefix = family.prefix if any(name.startswith(family.prefix) for name in files.names) else ""
            module, report = _fill(
                build,
                files,
                family.mapping,
                prefix,
                rngs.params(),
                shardings,
                lambda path: path.startswith("pooler."),
            )
            _refuse_leftovers(files, family, prefix, report, pooler)
            _check_copies(files, family, prefix)
    return Pretrained(module, config, family, report, read_pooling(folder))


def load_head(
    path_or_hub_id: str | os.PathLike[str],
    kind: str,
    build: Callable[[jax.Array], nnx.Module],
    *,
    rngs: nnx.Rngs,
    shardings: Shardings | None = None,
) -> tuple[nnx.Module, LoadReport]:
    """Builds a task head and fills it with the checkpoint's own, when it has one of this kind.

    Args:
        kind: "sequence" | "token" | "span" | "mlm" | "lm".
        build: build(key) -> head module (`adapters.heads`), key a jax random key.

    Returns the head and a report; where the checkpoint has no such head, every parameter is in
    `report.initialized`.
    Raises ValueError when only a part of the head is there, when its shape (number of labels) differs, or when a
    language model lacks its output matrix.
    """
    folder = find_folder(path_or_hub_id)
    config = read_config(folder)
    family = find_family(config.model_type)
    if kind not in family.heads:
        raise ValueError(f"model_type {config.model_type!r} has no {kind!r} head; it has: {', '.join(family.heads)}.")
    if declared_head(config) not in (kind, None):
        return _fill(build, None, (), "", rngs.params(), shardings, lambda path: True)
    rules = family.heads[kind].mapping
    with TensorFiles(folder) as files:
        wanted = [path for site in sites_of(abstract_module(build)) for path in [site.path]]
        present = {rule.path for rule in rules if find_name(rule.name, rule.old_names, "", files.names)}
        _check_tied(files, family, rules, wanted)
        if kind == "lm" and declared_head(config) == kind and "table" in wanted and "table" not in present:
            name = next(rule.name for rule in rules if rule.path == "table")
            raise ValueError(
                f"{folder}: {name} is missing. If the output layer is the word embeddings, set tie_word_embeddings to "
                "true in config.json; a newly initialized one would have to learn all words again."
            )
        if not present & set(wanted):
            return _fill(build, None, (), "", rngs.params(), shardings, lambda path: True)
        return _fill(build, files, rules, "", rngs.params(), shardings, lambda path: False)


# Endings of tensor names that hold packed weights or their scales: GPTQ and AWQ, bitsandbytes, compressed-tensors and
# FP8, MXFP4.
PACKED = (
    *(".qweight", ".qzeros", ".g_idx"),
    *(".absmax", ".quant_map", ".SCB", ".weight_format"),
    *(".weight_packed", ".weight_scale", ".weight_scale_inv"),
    *("_proj_blocks", "_proj_scales"),
)


def _refuse_quantized(files: TensorFiles) -> None:
    """Refuses weights that another program packed.

    A quantization_config beside plain weights says nothing (merging tools leave it behind), and is not taken over.
    """
    file = files.folder / "config.json"
    method = quantization_method(read_fields(file).values, str(file))
    packed = next((name for name in files.names if name.endswith(PACKED)), None)
    if packed is None and method is not None:
        packed = next((name for name in files.names if files.dtype(name) not in FILE_DTYPES), None)
    if packed is not None:
        by = f"by {method} (quantization_config in config.json)" if method else "(its method is not declared)"
        raise ValueError(
            f"{files.folder}: this checkpoint is quantized {by}: tensor {packed} is stored as {files.dtype(packed)}. "
            "Take the original, unquantized checkpoint instead; backbone.quantize quantizes it here."
        )


def _refuse_leftovers(files: TensorFiles, family: Family, prefix: str, report: LoadReport, pooler: bool) -> None:
    """A tensor that a rule knows but no parameter took (a 13th layer, say): config and weights disagree."""
    known = [(rule, re.escape(prefix + rule.name).replace(r"\{layer\}", r"\d+")) for rule in family.mapping]
    for name in report.unused:
        for rule, pattern in known:
            twins = [prefix + old for old in rule.old_names] if "{layer}" not in rule.name else []
            dropped = rule.path.startswith("pooler.") and not pooler
            if re.fullmatch(pattern, name) and not dropped and not any(twin in report.used for twin in twins):
                raise ValueError(
                    f"{files.folder}: the network that config.json describes has no place for tensor "
                    f"{name}. The config does not belong to these weights."
                )


def _check_copies(files: TensorFiles, family: Family, prefix: str) -> None:
    """A copy of a tensor that differs from it would be lost: refuse it."""
    for rule in family.mapping:
        for copy in rule.copies:
            if prefix + copy in files.names and not files.equal(prefix + copy, prefix + rule.name):
                raise ValueError(
                    f"{files.folder}: {prefix + copy} differs from {prefix + rule.name}; in this family both are one "
                    "tensor. A network where they differ is not supported."
                )


def _check_tied(files: TensorFiles, family: Family, rules: tuple[Rule, ...], wanted: list[str]) -> None:
    """An untied output matrix in the file of a network whose config says "tied" would be lost: refuse it."""
    for rule in rules:
        if rule.path == "table" and rule.path not in wanted and rule.name in files.names:
            source = next(r for r in family.mapping if r.path == "word_embeddings.table")
            names = [find_name(source.name, source.old_names, prefix, files.names) for prefix in (family.prefix, "")]
            name = names[0] or names[1]
            if name is None or not files.equal(rule.name, name):
                raise ValueError(
                    f"{files.folder}: {rule.name} differs from the word embeddings, though config.json "
                    "says they are tied. Set tie_word_embeddings to false in config.json to use it."
                )


def _fill(
    build: Callable[[jax.Array], nnx.Module],
    files: TensorFiles | None,
    rules: tuple[Rule, ...],
    prefix: str,
    key: jax.Array,
    shardings: Shardings | None,
    may_lack: Callable[[str], bool],
) -> tuple[nnx.Module, LoadReport]:
    """Builds a module whose parameters come from `files` by `rules`; the ones it may lack are initialized."""
    by_path = {rule.path: rule for rule in rules}
    sites = sites_of(abstract_module(build))
    found: dict[str, list[str]] = {}
    lacking: list[str] = []
    missing: list[str] = []
    for site in sites:
        if files is None:
            lacking.append(site.path)
            continue
        rule = by_path[site.rule_path]
        names = [
            (find_name(*rule_names(rule, i), prefix, files.names), rule_names(rule, i)[0])
            for i in site.layers or (None,)
        ]
        absent = [prefix + canonical for name, canonical in names if name is None]
        if not absent:
            found[site.path] = [name for name, _ in names if name is not None]
        elif may_lack(site.path) and len(absent) == len(names):
            lacking.append(site.path)
        else:
            missing += absent
    if missing:
        raise ValueError(
            f"{files.folder if files else ''}: {len(missing)} tensors that this network needs are missing: "
            f"{', '.join(missing[:8])}{', …' if len(missing) > 8 else ''}. {_where_else(missing, files)}"
        )

    values: dict[str, jax.Array] = {}
    for site in sites:
        if site.path in found:
            assert files is not None
            values[site.path] = _read(site, by_path[site.rule_path], found[site.path], files, shardings)
    if lacking:
        values.update(_initialize(build, key, [s for s in sites if s.path in set(lacking)], shardings))

    graphdef, state = nnx.split(abstract_module(build))
    flat = [(keys, variable.replace(values[".".join(map(str, keys))])) for keys, variable in nnx.to_flat_state(state)]
    module = nnx.merge(graphdef, nnx.from_flat_state(flat))
    used = {name: files.dtype(name) for names in found.values() for name in names} if files else {}
    unused = tuple(sorted(name for name in files.names if name not in used)) if files else ()
    return module, LoadReport(used, unused, tuple(lacking))


# What torch.compile, DistributedDataParallel and PEFT put before the names of a network that is saved inside of them.
WRAPPERS = ("_orig_mod.", "module.", "base_model.model.")


def _where_else(missing: list[str], files: TensorFiles | None) -> str:
    """What may be wrong: the same tensors under names with something before them (or less), or not all of them."""
    names = list(files.names) if files is not None else []
    for lacking in missing:
        for name in names:
            if name.endswith(f".{lacking}"):
                before = name.removesuffix(lacking)
                before = next((wrapper for wrapper in WRAPPERS if before.startswith(wrapper)), before)
                return f"The file has {name}: rename its tensors, without {before!r} at the beginning."
            if lacking.endswith(f".{name}") and name.count(".") > 1:
                before = lacking.removesuffix(name)
                return f"The file has {name}: rename its tensors, with {before!r} at the beginning."
    return "Is this the whole checkpoint, and does config.json belong to it?"


def _initialize(
    build: Callable[[jax.Array], nnx.Module], key: jax.Array, sites: list[Site], shardings: Shardings | None
) -> dict[str, jax.Array]:
    wanted = {site.path for site in sites}

    def draw(key: jax.Array) -> dict[str, jax.Array]:
        flat = nnx.to_flat_state(nnx.state(build(key)))
        return {p: v[...] for keys, v in flat for p in [".".join(map(str, keys))] if p in wanted}

    out = {s.path: shardings(s.path, s.shape, s.axes) for s in sites} if shardings else None
    return jax.jit(draw, out_shardings=out)(key)  # under jit only the wanted parameters are ever made


def _read(site: Site, rule: Rule, names: list[str], files: TensorFiles, shardings: Shardings | None) -> jax.Array:
    shape = site.shape if site.layers is None else site.shape[1:]
    expected = file_shape(rule.transform, shape)
    for name in names:
        if files.shape(name) != expected:
            raise ValueError(
                f"{files.folder}: tensor {name} has shape {list(files.shape(name))}, but config.json calls "
                f"for {list(expected)}. The config does not belong to these weights (or the number of "
                "labels differs)."
            )

    def read(index: tuple[slice, ...]) -> np.ndarray:
        if site.layers is None:
            return read_slice(files, names[0], rule.transform, shape, index)
        chosen = names[index[0]]
        first = read_slice(files, chosen[0], rule.transform, shape, index[1:])
        out = empty((len(chosen), *first.shape), np.float32)
        out[0] = first
        for i, name in enumerate(chosen[1:], 1):  # one layer at a time: the host holds the result and one slice
            out[i] = read_slice(files, name, rule.transform, shape, index[1:])
        return out

    sharding: Any = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    if shardings is not None:
        sharding = shardings(site.path, site.shape, site.axes)
    where = sharding.addressable_devices_indices_map(site.shape)
    # One slice at a time on the host, which is why this is not `jax.make_array_from_callback`.
    arrays, at, value = [], "", np.empty(0)
    for device, index in sorted(where.items(), key=lambda item: repr(item[1])):
        if repr(index) != at:  # replicas ask for the same slice
            at, value = repr(index), np.empty(0)
            value = read(index or (slice(None),) * len(site.shape))
        arrays.append(jax.device_put(value, device).block_until_ready())
    return jax.make_array_from_single_device_arrays(site.shape, sharding, arrays)
