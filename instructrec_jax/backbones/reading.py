"""Reads HuggingFace folders: safetensors → parameters, by each family's mapping table."""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from instructrec_jax.backbones.family import Backbone, Family, Rule
from instructrec_jax.backbones.folder import (
    PoolingSpec,
    declared_head,
    family_of,
    find_folder,
    read_config,
    read_pooling,
)
from instructrec_jax.backbones.json_fields import read_fields
from instructrec_jax.backbones.layers import WHOLE_STACK, Axes, StackOptions
from instructrec_jax.backbones.network_config import quantization_method
from instructrec_jax.backbones.tensor_names import (
    FILE_DTYPES,
    Network,
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
from instructrec_jax.hf_types import PretrainedConfig

Shardings = Callable[[str, tuple[int, ...], Axes], jax.sharding.Sharding]


@dataclass(frozen=True)
class LoadReport:
    """The tensors that were loaded, ignored and newly initialized.

    Attributes:
        used: loaded tensors: name in the file → dtype in the file ("F32", "F16", "BF16").
        unused: names of the file's other tensors.
        initialized: paths of newly initialized parameters, which the file lacks.
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
            return f"{len(names)} ({shown})" if names else "none"

        return (
            f"{len(self.used)} tensors loaded, {some(self.unused)} unused, {some(self.initialized)} newly initialized"
        )


@dataclass(frozen=True)
class Pretrained:
    """A loaded network (parameters fp32) with its HuggingFace config, family, load report and pooling."""

    module: Backbone
    config: PretrainedConfig
    family: Family
    report: LoadReport
    pooling: PoolingSpec


def build_backbone(
    config: PretrainedConfig,
    *,
    dtype: DTypeLike = jnp.float32,
    stack: StackOptions = WHOLE_STACK,
    pooler: bool = True,
    rngs: nnx.Rngs,
) -> Backbone:
    """The network of a HuggingFace config, initialized as in HuggingFace; see `Family` for its call.

    Raises ValueError for an impossible config.
    """
    family = family_of(config)
    try:
        return family.build(config, dtype=dtype, stack=stack, pooler=pooler, rngs=rngs)
    except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError) as error:
        if "config.json" in str(error) or "backbone." in str(error):  # it names its cause
            raise
        raise ValueError(
            f"no network can be built from the config.json of this {config.model_type} model "
            f"({type(error).__name__}: {error})"
        ) from error


_LIMITS: dict[str, tuple[int, int | None]] = {}  # by the content of a config
MOST_LIMITS = 64


def _limits(config: PretrainedConfig) -> tuple[int, int | None]:
    """Of inputs and of answers. A network is traced for them, which takes as long as reading a small one: once."""
    content = config.to_json_string(use_diff=False)
    if content not in _LIMITS:
        if len(_LIMITS) == MOST_LIMITS:
            _LIMITS.clear()
        module = abstract_module(lambda key: build_backbone(config, rngs=nnx.Rngs(params=key)))
        _LIMITS[content] = (module.max_length, getattr(module, "max_target_length", None))
    return _LIMITS[content]


def input_limit(config: PretrainedConfig) -> int:
    """Maximum number of tokens of an input, including special tokens.

    It may differ from `max_position_embeddings`: RoBERTa and MPNet reserve the first rows of that table for padding.
    """
    return _limits(config)[0]


def answer_limit(config: PretrainedConfig) -> int | None:
    """Maximum number of tokens of an encoder–decoder's answer; None for other networks."""
    return _limits(config)[1]


def answer_vocabulary(config: PretrainedConfig) -> int | None:
    """Tokens of a language model's answers, where they are other ones than those of its prompts; else None."""
    return getattr(family_of(config).heads["lm"].spec(config), "size", None)


def load_backbone(
    path_or_hub_id: str | os.PathLike[str],
    *,
    dtype: DTypeLike = jnp.float32,
    stack: StackOptions = WHOLE_STACK,
    pooler: bool = True,
    random_init: bool = False,
    rngs: nnx.Rngs,
    shardings: Shardings | None = None,
    verify: bool = False,
    images: bool = False,
    tower: bool = False,
) -> Pretrained:
    """Reads a pretrained network.

    Args:
        path_or_hub_id: a HuggingFace folder with config.json and safetensors, or a hub id.
        dtype: of the activations; parameters are always fp32.
        stack: see `layers.StackOptions`.
        pooler: include BERT's pooler (newly initialized and reported if the file has none).
        random_init: use only the folder's config, with randomly initialized weights.
        rngs: its "params" stream initializes new parameters.
        shardings: shardings(path, shape, axes) -> Sharding for each parameter; shape and axes of stacked parameters
            start with "layers". Each device's slice is read directly from the file. None: the default device.
        verify: first compare the files with the hub's SHA-256 (see `verify_checksums`), which reads them twice.
        images: also networks of images, see `Family.kind`.
        tower: of a pair of an image network and a text network, only the image network.

    Raises ValueError for an unsupported model_type or config field, a missing or misshapen tensor, NaN or infinity,
    quantized weights, a folder with only pickles.
    """
    folder = find_folder(path_or_hub_id)
    config = read_config(folder, images=images, tower=tower)
    family = family_of(config)
    if verify and not random_init:
        verify_checksums(folder)

    def build(key: jax.Array) -> Backbone:
        return build_backbone(config, dtype=dtype, stack=stack, pooler=pooler, rngs=nnx.Rngs(params=key))

    if random_init:
        module, report = _fill(build, None, (), "", rngs.params(), shardings, lambda path: True)
    else:
        with TensorFiles(folder, family.name_here, family.stacked) as files:
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
    build: Callable[[jax.Array], Network],
    *,
    rngs: nnx.Rngs,
    shardings: Shardings | None = None,
) -> tuple[Network, LoadReport]:
    """Builds a task head and loads the checkpoint's own head into it, if it has one of this kind.

    Args:
        kind: "sequence" | "token" | "span" | "mlm" | "lm" | "image".
        build: build(key) -> head module (`adapters.heads`), key a jax random key.

    Returns the head and a report; if the checkpoint has no such head, `report.initialized` has every parameter.
    Raises ValueError for an incomplete head, another shape (number of labels), and a language model without its output
    matrix.
    """
    folder = find_folder(path_or_hub_id)
    config = read_config(folder, images=True, tower=kind == "image")
    family = family_of(config)
    if kind not in family.heads:
        raise ValueError(f"model_type {config.model_type!r} has no {kind!r} head; it has: {', '.join(family.heads)}.")
    if declared_head(config) not in (kind, None):
        return _fill(build, None, (), "", rngs.params(), shardings, lambda path: True)
    rules = family.heads[kind].mapping
    with TensorFiles(folder, family.name_here, family.stacked) as files:
        needed = [site.path for site in sites_of(abstract_module(build))]
        present = {rule.path for rule in rules if find_name(rule.name, rule.old_names, "", files.names)}
        _check_tied(files, family, rules, needed)
        if kind == "lm" and declared_head(config) == kind and "table" in needed and "table" not in present:
            name = next(rule.name for rule in rules if rule.path == "table")
            raise ValueError(
                f"{folder}: {name} is missing. If the output layer shares the word embeddings, set tie_word_embeddings "
                "to true in config.json; a newly initialized output layer would have to be trained from scratch."
            )
        if not present & set(needed):
            return _fill(build, None, (), "", rngs.params(), shardings, lambda path: True)
        return _fill(build, files, rules, "", rngs.params(), shardings, lambda path: False)


# Suffixes of the names of packed weights and their scales: GPTQ and AWQ, bitsandbytes, compressed-tensors and FP8,
# MXFP4.
PACKED = (
    *(".qweight", ".qzeros", ".g_idx"),
    *(".absmax", ".quant_map", ".SCB", ".weight_format"),
    *(".weight_packed", ".weight_scale", ".weight_scale_inv"),
    *("_proj_blocks", "_proj_scales"),
)


def _refuse_quantized(files: TensorFiles) -> None:
    """Raises ValueError for quantized weights.

    A quantization_config with plain weights is ignored, because tools for merging leave it behind.
    """
    file = files.folder / "config.json"
    method = quantization_method(read_fields(file).values, str(file))
    packed = next((name for name in files.names if name.endswith(PACKED)), None)
    if packed is None and method is not None:
        packed = next((name for name in files.names if files.dtype(name) not in FILE_DTYPES), None)
    if packed is not None:
        by = f"by {method} (quantization_config in config.json)" if method else "(its method is not declared)"
        raise ValueError(
            f"{files.folder}: the checkpoint is quantized {by}: tensor {packed} has dtype {files.dtype(packed)}. Use "
            "the original, unquantized checkpoint instead; backbone.quantize can quantize it."
        )


def _refuse_leftovers(files: TensorFiles, family: Family, prefix: str, report: LoadReport, pooler: bool) -> None:
    """Raises ValueError for an unused tensor that a rule matches, such as a 13th layer's: the config does not fit.

    In a family whose files are `whole`, any unused tensor means that.
    """
    if family.whole and report.unused:
        raise ValueError(
            f"{files.folder}: config.json does not fit the weights: its network has no parameter for tensor "
            f"{report.unused[0]}."
        )
    known = [(rule, re.escape(prefix + rule.name).replace(r"\{layer\}", r"\d+")) for rule in family.mapping]
    for name in report.unused:
        for rule, pattern in known:
            twins = [prefix + old for old in rule.old_names] if "{layer}" not in rule.name else []
            dropped = rule.path.startswith("pooler.") and not pooler
            if re.fullmatch(pattern, name) and not dropped and not any(twin in report.used for twin in twins):
                raise ValueError(
                    f"{files.folder}: config.json does not fit the weights: its network has no parameter for tensor "
                    f"{name}."
                )


def _check_copies(files: TensorFiles, family: Family, prefix: str) -> None:
    """Raises ValueError for a copy that differs from its tensor, because it would be lost."""
    for rule in family.mapping:
        for copy in rule.copies:
            if prefix + copy in files.names and not files.equal(prefix + copy, prefix + rule.name):
                raise ValueError(
                    f"{files.folder}: {prefix + copy} differs from {prefix + rule.name}, but this family shares both; "
                    "networks that do not are not supported."
                )


def _check_tied(files: TensorFiles, family: Family, rules: tuple[Rule, ...], needed: list[str]) -> None:
    """Raises ValueError for an untied output matrix of a network whose config says "tied", because it would be lost."""
    for rule in rules:
        if rule.path == "table" and rule.path not in needed and rule.name in files.names:
            source = next(r for r in family.mapping if r.path == "word_embeddings.table")
            names = [find_name(source.name, source.old_names, prefix, files.names) for prefix in (family.prefix, "")]
            name = names[0] or names[1]
            if name is None or not files.equal(rule.name, name):
                raise ValueError(
                    f"{files.folder}: {rule.name} differs from the word embeddings, but config.json declares them "
                    f"tied: set tie_word_embeddings to false in config.json to use {rule.name}."
                )


def _fill(
    build: Callable[[jax.Array], Network],
    files: TensorFiles | None,
    rules: tuple[Rule, ...],
    prefix: str,
    key: jax.Array,
    shardings: Shardings | None,
    may_lack: Callable[[str], bool],
) -> tuple[Network, LoadReport]:
    """Builds a module with parameters from `files` by `rules`; initializes absent ones if `may_lack(path)`."""
    by_path = {rule.path: rule for rule in rules}
    abstract = abstract_module(build)
    sites = sites_of(abstract)
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
            f"{files.folder if files else ''}: {len(missing)} tensors of the network are missing: "
            f"{', '.join(missing[:8])}{', …' if len(missing) > 8 else ''}. {_likely_cause(missing, files)}"
        )

    values: dict[str, jax.Array] = {}
    for site in sites:
        if site.path in found:
            assert files is not None
            values[site.path] = _read(site, by_path[site.rule_path], found[site.path], files, shardings)
    if lacking:
        values.update(_initialize(build, key, [s for s in sites if s.path in set(lacking)], shardings))

    graphdef, state = nnx.split(abstract)
    flat = [(keys, variable.replace(values[".".join(map(str, keys))])) for keys, variable in nnx.to_flat_state(state)]
    module = nnx.merge(graphdef, nnx.from_flat_state(flat))
    used = {name: files.dtype(name) for names in found.values() for name in names} if files else {}
    unused = tuple(sorted(name for name in files.names if name not in used)) if files else ()
    return module, LoadReport(used, unused, tuple(lacking))


# Prefixes that torch.compile, DistributedDataParallel and PEFT add to the names of a wrapped network.
WRAPPERS = ("_orig_mod.", "module.", "base_model.model.")


def _likely_cause(missing: list[str], files: TensorFiles | None) -> str:
    """The likely cause of missing tensors: an added or missing prefix of the names, or an incomplete checkpoint."""
    names = list(files.names) if files is not None else []
    for lacking in missing:
        for name in names:
            if name.endswith(f".{lacking}"):
                before = name.removesuffix(lacking)
                before = next((wrapper for wrapper in WRAPPERS if before.startswith(wrapper)), before)
                return f"The file has {name}: rename its tensors without the prefix {before!r}."
            if lacking.endswith(f".{name}") and name.count(".") > 1:
                before = lacking.removesuffix(name)
                return f"The file has {name}: rename its tensors with the prefix {before!r}."
    return "Is the checkpoint complete, and does config.json belong to it?"


def _initialize(
    build: Callable[[jax.Array], nnx.Module], key: jax.Array, sites: list[Site], shardings: Shardings | None
) -> dict[str, jax.Array]:
    paths = {site.path for site in sites}

    def draw(key: jax.Array) -> dict[str, jax.Array]:
        flat = nnx.to_flat_state(nnx.state(build(key)))
        return {p: v[...] for keys, v in flat for p in [".".join(map(str, keys))] if p in paths}

    out = {s.path: shardings(s.path, s.shape, s.axes) for s in sites} if shardings else None
    return jax.jit(draw, out_shardings=out)(key)  # under jit only these parameters are computed


def _read(site: Site, rule: Rule, names: list[str], files: TensorFiles, shardings: Shardings | None) -> jax.Array:
    shape = site.shape if site.layers is None else site.shape[1:]
    expected = file_shape(rule.transform, shape)
    for name in names:
        if files.shape(name) != expected:
            raise ValueError(
                f"{files.folder}: tensor {name} has shape {list(files.shape(name))}, but config.json needs "
                f"{list(expected)}: the config belongs to other weights, or the number of labels differs."
            )

    def read(index: tuple[slice, ...]) -> np.ndarray:
        if site.layers is None:
            return read_slice(files, names[0], rule.transform, shape, index)
        chosen = names[index[0]]
        first = read_slice(files, chosen[0], rule.transform, shape, index[1:])
        out = empty((len(chosen), *first.shape), np.float32)
        out[0] = first
        for i, name in enumerate(chosen[1:], 1):  # one layer at a time: the host has the result and one slice in memory
            out[i] = read_slice(files, name, rule.transform, shape, index[1:])
        return out

    sharding: jax.sharding.Sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    if shardings is not None:
        sharding = shardings(site.path, site.shape, site.axes)
    where = sharding.addressable_devices_indices_map(site.shape)
    # One slice at a time in host memory, unlike `jax.make_array_from_callback`.
    arrays, at, value = [], "", np.empty(0)
    for device, index in sorted(where.items(), key=lambda item: repr(item[1])):
        if repr(index) != at:  # replicas share a slice
            at, value = repr(index), np.empty(0)
            value = read(index or (slice(None),) * len(site.shape))
        arrays.append(jax.device_put(value, device).block_until_ready())
    return jax.make_array_from_single_device_arrays(site.shape, sharding, arrays)
