"""HuggingFace folders in and out: config, safetensors ↔ parameters by each family's table, pooling."""

import copy
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax import nnx
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from transformers import AutoConfig

from instructrec_jax.backbones import bert, distilbert, modernbert, mpnet, roberta
from instructrec_jax.backbones.family import Family, Rule
from instructrec_jax.backbones.layers import Axes, Stack

FAMILIES: dict[str, Family] = {
    "bert": bert.FAMILY,
    "distilbert": distilbert.FAMILY,
    "modernbert": modernbert.FAMILY,
    "mpnet": mpnet.FAMILY,
    "roberta": roberta.FAMILY,
    "xlm-roberta": roberta.XLM_FAMILY,
}

FILE_DTYPES = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}
DTYPE_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}

Shardings = Callable[[str, tuple[int, ...], Axes], jax.sharding.Sharding]


# ---------------------------------------------------------------- what a folder declares


@dataclass(frozen=True)
class PoolingSpec:
    """How a sentence becomes one vector: what sentence-transformers files declare, else by family.

    Attributes:
        mode: "cls" | "mean" | "max" | "mean_sqrt_len" | "weightedmean" | "lasttoken".
        normalize: scale the vector to length 1.
        max_length: tokens a text is cut to (None: the network's limit).
        lower_case: the text is lower-cased before the tokenizer sees it.
        declared: False when the folder says nothing and this is the family's default.
    """

    mode: str
    normalize: bool = False
    max_length: int | None = None
    lower_case: bool = False
    declared: bool = False


@dataclass(frozen=True)
class LoadReport:
    """What became of each tensor.

    Attributes:
        used: tensor name in the file → its dtype there ("F32", "F16", "BF16").
        unused: names in the file that no parameter took.
        initialised: our parameter paths that the file lacks and that were newly initialised.
    """

    used: Mapping[str, str] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    initialised: tuple[str, ...] = ()

    def __add__(self, other: "LoadReport") -> "LoadReport":
        used = {**self.used, **other.used}
        unused = dict.fromkeys((*self.unused, *other.unused))
        return LoadReport(used, tuple(n for n in unused if n not in used), self.initialised + other.initialised)

    def __str__(self) -> str:
        def some(names: tuple[str, ...]) -> str:
            shown = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
            return f"{len(names)}" + (f" ({shown})" if names else "")

        return (
            f"{len(self.used)} tensors read, {some(self.unused)} not used, "
            f"{some(self.initialised)} parameters newly initialised"
        )


@dataclass(frozen=True)
class Pretrained:
    """A loaded network (parameters fp32), its HuggingFace config, and what there is to know about it."""

    module: nnx.Module
    config: Any
    family: Family
    report: LoadReport
    pooling: PoolingSpec


def find_folder(path_or_hub_id: str | os.PathLike[str]) -> Path:
    """The local folder of a checkpoint; a hub id (`owner/name`) is fetched into huggingface_hub's cache.

    Only config, tokenizer and safetensors files are fetched. Raises ValueError when there is neither.
    """
    folder = Path(path_or_hub_id).expanduser()
    if folder.is_dir():
        return folder
    name = str(path_or_hub_id)
    if name.startswith((".", "~", os.sep)) or name.count("/") > 1 or folder.exists():
        raise ValueError(f"{name} is not a folder. Give a folder with config.json and model.safetensors, or a hub id.")
    import huggingface_hub

    wanted = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*/config.json"]
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=wanted))
    except Exception as error:
        raise ValueError(
            f"{name!r} is neither a local folder nor a checkpoint that could be fetched from the "
            f"HuggingFace hub ({type(error).__name__}: {str(error).partition(chr(10))[0]})."
        ) from error


def read_config(path_or_hub_id: str | os.PathLike[str]) -> Any:
    """The `transformers` config of a folder; ValueError for a missing file or unsupported model_type."""
    folder = find_folder(path_or_hub_id)
    file = folder / "config.json"
    if not file.is_file():
        raise ValueError(f"{folder} has no config.json; it is not a HuggingFace checkpoint folder.")
    content = _read_json(file)
    if not isinstance(content, dict):
        raise ValueError(f"{file} should hold a JSON object, but holds {type(content).__name__}.")
    find_family(content.get("model_type"), str(folder))
    return AutoConfig.from_pretrained(folder)


def find_family(model_type: str | None, where: str = "the config") -> Family:
    """The family of a `model_type`. Raises ValueError that lists the supported ones."""
    if model_type not in FAMILIES:
        raise ValueError(
            f"model_type {model_type!r} of {where} is not supported. Supported: {', '.join(sorted(FAMILIES))}."
        )
    return FAMILIES[model_type]


def declared_head(config: Any) -> str | None:
    """The kind of task head the checkpoint's `architectures` promises: "sequence", "token", "mlm" or None."""
    names = getattr(config, "architectures", None) or ()
    for kind, head in find_family(config.model_type).heads.items():
        suffixes = (head.suffix, "ForPreTraining") if kind == "mlm" else (head.suffix,)
        if any(name.endswith(suffixes) for name in names):
            return kind
    return None


def read_pooling(path_or_hub_id: str | os.PathLike[str]) -> PoolingSpec:
    """The pooling that a sentence-transformers folder declares in `modules.json`, else the family's.

    Raises ValueError for a module or mode that is not implemented.
    """
    folder = find_folder(path_or_hub_id)
    if not (folder / "modules.json").is_file():
        return PoolingSpec(find_family(_read_json(folder / "config.json").get("model_type"), str(folder)).pooling)
    mode, normalize = "mean", False
    for module in _read_json(folder / "modules.json"):
        kind = module["type"].rsplit(".", 1)[-1]
        if kind == "Pooling":
            mode = _pooling_mode(_read_json(folder / module["path"] / "config.json"), folder)
        elif kind == "Normalize":
            normalize = True
        elif kind != "Transformer":
            raise ValueError(
                f"{folder / 'modules.json'} lists a {kind!r} module, which is not supported "
                "(supported: Transformer, Pooling, Normalize). Ignoring it would change the vectors."
            )
    files = sorted(folder.glob("sentence_*_config.json"))
    text = _read_json(files[0]) if files else {}
    return PoolingSpec(
        mode, normalize, text.get("max_seq_length"), bool(text.get("do_lower_case", False)), declared=True
    )


POOLING_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


def _pooling_mode(config: Mapping[str, Any], folder: Path) -> str:
    named = config.get("pooling_mode")
    if named is not None:
        modes = [named] if isinstance(named, str) else list(named)
    else:
        modes = [POOLING_MODES.get(k, k) for k, on in config.items() if k.startswith("pooling_mode_") and on]
    if len(modes) != 1 or modes[0] not in POOLING_MODES.values():
        raise ValueError(
            f"{folder}: pooling {' + '.join(modes) or '(none)'} is not supported; supported is exactly one "
            f"of {', '.join(POOLING_MODES.values())}."
        )
    return modes[0]


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"Cannot read {file}: {error}.") from error


# ---------------------------------------------------------------- building and loading


def build_backbone(
    config: Any,
    *,
    dtype: Any = jnp.float32,
    remat: str = "none",
    pooler: bool = True,
    rngs: nnx.Rngs,
) -> nnx.Module:
    """The network of a HuggingFace config, initialised as HuggingFace does; see `Family` for its call."""
    return find_family(config.model_type).build(config, dtype=dtype, remat=remat, pooler=pooler, rngs=rngs)


def input_limit(config: Any) -> int:
    """The most tokens one input may have, special tokens included.

    Not always `max_position_embeddings`: RoBERTa and MPNet keep the first rows of that table for padding.
    """
    module: Any = _abstract(lambda key: build_backbone(config, rngs=nnx.Rngs(params=key)))
    return module.max_length


def load_backbone(
    path_or_hub_id: str | os.PathLike[str],
    *,
    dtype: Any = jnp.float32,
    remat: str = "none",
    pooler: bool = True,
    random_init: bool = False,
    rngs: nnx.Rngs,
    shardings: Shardings | None = None,
) -> Pretrained:
    """Reads a pretrained network.

    Args:
        path_or_hub_id: a HuggingFace folder with config.json and safetensors, or a hub id.
        dtype: of the activations; parameters are fp32 whatever the file holds.
        remat: see `layers.Stack`.
        pooler: keep BERT's pooler (newly initialised and reported when the file has none); False leaves it
            out.
        random_init: take only the config from the folder and draw fresh weights.
        rngs: its "params" stream serves what is newly initialised.
        shardings: shardings(path, shape, axes) -> Sharding for each parameter; stacked parameters come with
            a leading "layers" axis in both. Each device's slice is read straight from the file. None: the
            default device.

    Raises ValueError for an unsupported model_type or config field, a missing or misshapen tensor, a
    pickle-only folder.
    """
    folder = find_folder(path_or_hub_id)
    config = read_config(folder)
    family = find_family(config.model_type)

    def build(key: jax.Array) -> nnx.Module:
        return build_backbone(config, dtype=dtype, remat=remat, pooler=pooler, rngs=nnx.Rngs(params=key))

    if random_init:
        module, report = _fill(build, None, (), "", rngs.params(), shardings, lambda path: True)
    else:
        with TensorFiles(folder) as files:
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
        kind: "sequence" | "token" | "mlm".
        build: build(key) -> head module (`adapters.heads`), key a jax random key.

    Returns the head and a report; where the checkpoint has no such head, every parameter is in
    `report.initialised`.
    Raises ValueError when only a part of the head is there, or when its shape (number of labels) differs.
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
        wanted = [path for site in _sites(_abstract(build)) for path in [site.path]]
        present = {rule.path for rule in rules if _find(rule.name, rule.old_names, "", files.names)}
        if not present & set(wanted):
            return _fill(build, None, (), "", rngs.params(), shardings, lambda path: True)
        _check_tied(files, family, rules, wanted)
        return _fill(build, files, rules, "", rngs.params(), shardings, lambda path: False)


def _refuse_leftovers(files: "TensorFiles", family: Family, prefix: str, report: LoadReport, pooler: bool) -> None:
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


def _check_tied(files: "TensorFiles", family: Family, rules: tuple[Rule, ...], wanted: list[str]) -> None:
    """An untied output matrix in the file of a network whose config says "tied" would be lost: refuse it."""
    for rule in rules:
        if rule.path == "table" and rule.path not in wanted and rule.name in files.names:
            source = next(r for r in family.mapping if r.path == "word_embeddings.table")
            name = _find(source.name, source.old_names, family.prefix, files.names)
            if name is None or not np.array_equal(files.read(rule.name), files.read(name)):
                raise ValueError(
                    f"{files.folder}: {rule.name} differs from the word embeddings, though config.json "
                    "says they are tied. Set tie_word_embeddings to false in config.json to use it."
                )


class TensorFiles:
    """The safetensors files of a folder, opened lazily and read slice by slice. A context manager."""

    def __init__(self, folder: Path):
        self.folder = folder
        index = folder / "model.safetensors.index.json"
        if (folder / "model.safetensors").is_file():
            files = ["model.safetensors"]
        elif index.is_file():
            files = sorted(set(_read_json(index)["weight_map"].values()))
        else:
            pickles = [f.name for f in (*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.ckpt"))]
            remedy = (
                f" It has {', '.join(sorted(pickles))}, which is a pickle and is never opened here. "
                "Convert it once, on a machine you trust it on, with transformers and torch: "
                "`AutoModel.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER)` writes safetensors."
                if pickles
                else ""
            )
            raise ValueError(f"{folder} has no model.safetensors (nor model.safetensors.index.json).{remedy}")
        self._stack = ExitStack()
        self._files: dict[str, Any] = {}
        for file in files:
            try:
                handle = self._stack.enter_context(safe_open(folder / file, framework="np"))
            except (OSError, SafetensorError) as error:
                self._stack.close()
                raise ValueError(f"Cannot open {folder / file}: {error}. Is the download complete?") from error
            self._files.update(dict.fromkeys(handle.keys(), handle))

    def __enter__(self) -> "TensorFiles":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def names(self) -> Mapping[str, Any]:
        return self._files

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._files[name].get_slice(name).get_shape())

    def dtype(self, name: str) -> str:
        return self._files[name].get_slice(name).get_dtype()

    def read(self, name: str, index: tuple[slice, ...] | None = None) -> np.ndarray:
        """The tensor, or a rectangular slice of it, in the file's dtype."""
        if index is None:
            return self._files[name].get_tensor(name)
        return self._files[name].get_slice(name)[index]


@dataclass(frozen=True)
class _Site:
    """One parameter: its dotted path, the same with "{layer}" for the block, its layers, shape and axes."""

    path: str
    rule_path: str
    layers: tuple[int, ...] | None
    shape: tuple[int, ...]
    axes: Axes


def _abstract(build: Callable[[jax.Array], nnx.Module]) -> nnx.Module:
    """The module with shapes for values: nothing is allocated."""
    return nnx.merge(*jax.eval_shape(lambda key: nnx.split(build(key)), jax.random.key(0)))


def _sites(module: nnx.Module) -> list[_Site]:
    sites = []
    for keys, variable in nnx.to_flat_state(nnx.state(module)):
        owner: Any = module
        rule_keys, layers = list(keys), None
        for depth, key in enumerate(keys):
            if isinstance(owner, Stack):
                block = next(b for b in owner.blocks if b.name == key)
                layers, rule_keys[depth] = tuple(block.layers), "{layer}"
            owner = getattr(owner, str(key))
        axes = variable.get_metadata()["axes"]
        axes = axes if layers is None else ("layers", *axes)
        path = ".".join(map(str, keys))
        sites.append(_Site(path, ".".join(map(str, rule_keys)), layers, tuple(variable.shape), axes))
    return sites


def _find(name: str, old_names: Iterable[str], prefix: str, names: Mapping[str, Any]) -> str | None:
    """The name under which a tensor is in the file, older names first."""
    return next((prefix + n for n in (*old_names, name) if prefix + n in names), None)


def _names(rule: Rule, layer: int | None) -> tuple[str, tuple[str, ...]]:
    if layer is None:
        return rule.name, rule.old_names
    number = str(layer)
    return rule.name.replace("{layer}", number), tuple(n.replace("{layer}", number) for n in rule.old_names)


def _fill(
    build: Callable[[jax.Array], nnx.Module],
    files: TensorFiles | None,
    rules: tuple[Rule, ...],
    prefix: str,
    key: jax.Array,
    shardings: Shardings | None,
    may_lack: Callable[[str], bool],
) -> tuple[nnx.Module, LoadReport]:
    """Builds a module whose parameters come from `files` by `rules`; the ones it may lack are initialised."""
    by_path = {rule.path: rule for rule in rules}
    sites = _sites(_abstract(build))
    found: dict[str, list[str]] = {}
    lacking: list[str] = []
    missing: list[str] = []
    for site in sites:
        if files is None:
            lacking.append(site.path)
            continue
        rule = by_path[site.rule_path]
        names = [(_find(*_names(rule, i), prefix, files.names), _names(rule, i)[0]) for i in site.layers or (None,)]
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
            f"{', '.join(missing[:8])}{', …' if len(missing) > 8 else ''}. Is this the whole checkpoint, "
            "and does config.json belong to it?"
        )

    values: dict[str, jax.Array] = {}
    for site in sites:
        if site.path in found:
            assert files is not None
            values[site.path] = _read(site, by_path[site.rule_path], found[site.path], files, shardings)
    if lacking:
        values.update(_initialise(build, key, [s for s in sites if s.path in set(lacking)], shardings))

    graphdef, state = nnx.split(_abstract(build))
    flat = [(keys, variable.replace(values[".".join(map(str, keys))])) for keys, variable in nnx.to_flat_state(state)]
    module = nnx.merge(graphdef, nnx.from_flat_state(flat))
    used = {name: files.dtype(name) for names in found.values() for name in names} if files else {}
    unused = tuple(sorted(name for name in files.names if name not in used)) if files else ()
    return module, LoadReport(used, unused, tuple(lacking))


def _initialise(
    build: Callable[[jax.Array], nnx.Module], key: jax.Array, sites: list[_Site], shardings: Shardings | None
) -> dict[str, jax.Array]:
    wanted = {site.path for site in sites}

    def draw(key: jax.Array) -> dict[str, jax.Array]:
        flat = nnx.to_flat_state(nnx.state(build(key)))
        return {p: v[...] for keys, v in flat for p in [".".join(map(str, keys))] if p in wanted}

    out = {s.path: shardings(s.path, s.shape, s.axes) for s in sites} if shardings else None
    return jax.jit(draw, out_shardings=out)(key)  # under jit only the wanted parameters are ever made


def _read(site: _Site, rule: Rule, names: list[str], files: TensorFiles, shardings: Shardings | None) -> jax.Array:
    shape = site.shape if site.layers is None else site.shape[1:]
    expected = _file_shape(rule.transform, shape)
    for name in names:
        if files.shape(name) != expected:
            raise ValueError(
                f"{files.folder}: tensor {name} has shape {list(files.shape(name))}, but config.json calls "
                f"for {list(expected)}. The config does not belong to these weights (or the number of "
                "labels differs)."
            )
        if files.dtype(name) not in FILE_DTYPES:
            raise ValueError(
                f"{files.folder}: tensor {name} is stored as {files.dtype(name)}; only "
                f"{', '.join(FILE_DTYPES)} weights can be loaded (not quantised or 64-bit ones)."
            )

    def read(index: tuple[slice, ...]) -> np.ndarray:
        if site.layers is None:
            return _read_slice(files, names[0], rule.transform, shape, index)
        chosen = names[index[0]]
        first = _read_slice(files, chosen[0], rule.transform, shape, index[1:])
        out = np.empty((len(chosen), *first.shape), np.float32)
        out[0] = first
        for i, name in enumerate(chosen[1:], 1):  # one layer at a time: the host holds the result and one slice
            out[i] = _read_slice(files, name, rule.transform, shape, index[1:])
        return out

    if shardings is None:
        return jnp.asarray(read((slice(None),) * len(site.shape)))
    cache: dict[str, np.ndarray] = {}  # replicas ask for the same slice

    def slice_for_device(index: tuple[slice, ...] | None) -> np.ndarray:
        index = index or ()
        if repr(index) not in cache:
            cache.clear()
            cache[repr(index)] = read(index)
        return cache[repr(index)]

    return jax.make_array_from_callback(site.shape, shardings(site.path, site.shape, site.axes), slice_for_device)


def _file_shape(transform: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape a tensor has in the file, from our shape of one layer."""
    if transform == "transpose":
        return (int(np.prod(shape[1:])), shape[0])
    return (int(np.prod(shape)),) if transform == "split" else shape


def _read_slice(
    files: TensorFiles, name: str, transform: str, shape: tuple[int, ...], index: tuple[slice, ...]
) -> np.ndarray:
    """The slice `index` of our array of `shape`, in fp32, from the file's tensor: nothing more is read."""
    if transform == "none":
        return files.read(name, index).astype(np.float32, copy=False)
    if transform == "transpose" and len(shape) == 2:
        return files.read(name, (index[1], index[0])).T.astype(np.float32, order="C")
    # [in, parts, out] or [parts, out] here, [parts * out, in] or [parts * out] there
    *outer, part_index, out_index = index
    start, stop, _ = out_index.indices(shape[-1])
    offsets = [part * shape[-1] for part in range(*part_index.indices(shape[-2]))]
    parts = [files.read(name, (slice(o + start, o + stop), *outer)).T for o in offsets]
    return np.stack(parts, axis=-2).astype(np.float32, copy=False)


def _to_file(transform: str, value: np.ndarray) -> np.ndarray:
    """One layer's parameter in the file's layout."""
    if transform == "transpose":
        return value.reshape(value.shape[0], -1).T
    return value.reshape(-1) if transform == "split" else value


# ---------------------------------------------------------------- writing


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
        backbone, head: modules with their present values; `head_kind` is "sequence" | "token" | "mlm".
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
    suffix = family.heads[head_kind].suffix if head is not None and head_kind else "Model"
    config.architectures = [family.base_class.removesuffix("Model") + suffix]
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
    for site in _sites(module):
        rule = by_path[site.rule_path]
        value = np.asarray(jax.device_get(values[site.path]), np.float32)
        for i, layer in enumerate(site.layers or (None,)):
            canonical, old_names = _names(rule, layer)
            name = _find(canonical, old_names, "", source) or canonical
            kind = wanted[dtype] if dtype else source.get(name, common)
            one = _to_file(rule.transform, value if layer is None else value[i])
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
