"""LoRA adapters in HuggingFace's PEFT format: adapter_config.json and adapter_model.safetensors."""

import functools
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from instructrec_jax.adapters.adapter_config import LoraConfig
from instructrec_jax.adapters.lora import Place, lora_of, places, set_lora
from instructrec_jax.adapters.peft_config import CONFIG, Adapter, first, is_target, read_config
from instructrec_jax.adapters.quantized import dense_kernel
from instructrec_jax.adapters.token_rows import read_rows, written_rows
from instructrec_jax.backbones.family import Head, Rule
from instructrec_jax.backbones.folder import family_of
from instructrec_jax.backbones.tensor_names import file_shape, to_file
from instructrec_jax.files import write_json
from instructrec_jax.hf_types import PretrainedConfig

TENSORS = "adapter_model.safetensors"
ROOT = "base_model.model."  # PEFT's wrappers around the HuggingFace model
# Heads that are trained and saved with LoRA (modules_to_save): kind -> PEFT's name of the task; None: it has none.
TRAINED_HEADS = {"sequence": "SEQ_CLS", "token": "TOKEN_CLS", "span": "QUESTION_ANS", "image": None}
TASK_TYPES = (*filter(None, TRAINED_HEADS.values()), "CAUSAL_LM", "SEQ_2_SEQ_LM", "FEATURE_EXTRACTION")


def write_peft(
    folder: str | os.PathLike[str],
    backbone: nnx.Module,
    hf_config: PretrainedConfig,
    config: LoraConfig,
    base_name: str,
    task_type: str | None,
    head: nnx.Module | None = None,
    head_kind: str | None = None,
    saved: Sequence[str] = (),
    language_head: nnx.Module | None = None,
) -> None:
    """Writes an adapter for `peft.PeftModel.from_pretrained(base model, folder)`.

    Args:
        folder: created if necessary.
        backbone: with LoRA (`add_lora`), quantized or not; only LoRA's matrices are written.
        hf_config: the HuggingFace config of the backbone.
        config: the settings of its LoRA.
        base_name: folder or hub id of the base model.
        task_type: PEFT's name of the task, one of `TASK_TYPES`; None for any other task.
        head: the trained head, of a kind in `TRAINED_HEADS`, to be saved with LoRA (PEFT's modules_to_save).
        head_kind: the kind of head in the HuggingFace model, a key of `Family.heads`; None for the bare network.
        saved: names of linear layers of the backbone that are written whole, with their update merged, because the base
            model lacks them: "pooler.dense" for a newly initialized pooler.

    Raises ValueError for a network without LoRA, and for inconsistent head, kind and task.
    """
    family = family_of(hf_config)
    _check_head(hf_config, task_type, head, head_kind)
    prefix = family.prefix if head_kind else ""
    written = _lora_tensors(places(backbone, hf_config), config, prefix, saved)
    rows = written_rows(backbone, head or language_head, hf_config, prefix)
    tensors, modules = written.tensors | rows.tensors, [prefix + name for name in saved]
    if head is not None and head_kind is not None:
        of_head = _head_tensors(head, family.heads[head_kind])
        modules += sorted({name.partition(".")[0] for name in of_head})
        tensors |= of_head
    settings = {
        "peft_type": "LORA",
        "task_type": task_type,
        "base_model_name_or_path": str(base_name),
        "r": config.rank,
        "lora_alpha": int(config.alpha) if config.alpha == int(config.alpha) else config.alpha,
        "lora_dropout": config.dropout,
        "use_rslora": config.rslora,
        "target_modules": sorted(written.targets),
        "rank_pattern": written.ranks,
        "alpha_pattern": written.alphas,
        "modules_to_save": modules or None,
        "bias": "none",
        "fan_in_fan_out": any(is_conv1d(place.rule) for place in places(backbone, hf_config)),
        "init_lora_weights": True,
        "trainable_token_indices": rows.indices,
        "inference_mode": True,
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    contiguous = {ROOT + name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    save_file(contiguous, folder / TENSORS, metadata={"format": "pt"})
    write_json(folder / CONFIG, settings)


def _check_head(
    hf_config: PretrainedConfig, task_type: str | None, head: nnx.Module | None, head_kind: str | None
) -> None:
    """Raises ValueError for inconsistent head, kind and task, see `write_peft`."""
    heads = family_of(hf_config).heads
    if task_type not in (*TASK_TYPES, None):
        raise ValueError(f"unknown PEFT task type {task_type!r}; choose from {', '.join(TASK_TYPES)} or None.")
    if head_kind is not None and head_kind not in heads:
        raise ValueError(f"model_type {hf_config.model_type!r} has no {head_kind!r} head; it has: {', '.join(heads)}.")
    trained = TRAINED_HEADS.get(head_kind or "")
    trained_task = task_type if task_type in TRAINED_HEADS.values() else None
    if (head is not None) != (head_kind in TRAINED_HEADS) or trained != trained_task:
        raise ValueError(
            f"the PEFT task {task_type!r} does not fit the head kind {head_kind!r} and "
            f"{'a' if head is not None else 'no'} head: SEQ_CLS, TOKEN_CLS and QUESTION_ANS need the kind 'sequence', "
            "'token' or 'span' and the trained head, no task needs 'image' and its head; other heads belong to the "
            "base model and are not written."
        )


@dataclass(frozen=True)
class _Written:
    """Tensors of an adapter, the names of its modules with LoRA, and ranks and alphas that differ from the config's."""

    tensors: dict[str, np.ndarray] = field(default_factory=dict)
    targets: list[str] = field(default_factory=list)
    ranks: dict[str, int] = field(default_factory=dict)
    alphas: dict[str, float] = field(default_factory=dict)


def _lora_tensors(found: Sequence[Place], config: LoraConfig, prefix: str, saved: Sequence[str]) -> _Written:
    out = _Written()
    for place in found:
        lora = lora_of(place.linear)
        if any(name in saved for name in place.names):
            out.tensors.update({f"{prefix}{name}": value for name, value in _whole(place).items()})
        elif lora is not None:
            a, b = _by_layer(lora.a[...], 2), _by_layer(lora.b[...], len(place.axes))
            rank = a.shape[-1]
            alpha = lora.scale * (math.sqrt(rank) if config.rslora else rank)
            for name, one_a, one_b in zip(place.names, a, b, strict=True):
                full = prefix + name
                out.targets.append(full)
                out.tensors[f"{full}.lora_A.weight"] = one_a.T
                out.tensors[f"{full}.lora_B.weight"] = one_b.reshape(rank, -1).T
                if rank != config.rank:
                    out.ranks[full] = rank
                if not math.isclose(alpha, config.alpha):
                    out.alphas[full] = alpha
    if not out.targets:
        raise ValueError("the network has no LoRA to write (it may be merged already).")
    return out


def read_peft(
    folder: str | os.PathLike[str],
    backbone: nnx.Module,
    hf_config: PretrainedConfig,
    head: nnx.Module | None = None,
    head_kind: str | None = None,
) -> LoraConfig:
    """Loads a PEFT adapter's LoRA matrices into a network, and its head into `head`, both in place.

    Args:
        backbone: the loaded base network, without LoRA.
        hf_config: the HuggingFace config of the backbone.
        head: the base's head; its modules that the adapter has (modules_to_save) take the adapter's values.
        head_kind: the kind of `head`, one of `TRAINED_HEADS`, or "lm", of which the adapter has rows of tokens only.

    Returns the adapter's settings. If ranks or alphas differ between modules, the network has each module's own.
    Raises ValueError for anything but plain LoRA on linear layers (DoRA, trained biases, …), differing layers of one
    stack, a base of another shape, missing or unknown tensors, and pickles.
    """
    folder = Path(folder)
    adapter = read_config(folder)
    family = family_of(hf_config)
    tensors = {family.name_here(name): tensor for name, tensor in _read_tensors(folder).items()}
    prefix = family.prefix if any(name.startswith(family.prefix) for name in tensors) else ""
    missing = []
    for place in places(backbone, hf_config):
        missing += _fill_place(place, adapter, tensors, prefix, folder)
    if missing:
        raise ValueError(f"{folder / TENSORS} lacks {len(missing)} tensors: {_some(missing)}.")
    read_rows(tensors, adapter.tokens, backbone, head, hf_config, prefix, folder / TENSORS)
    if head is not None and head_kind != "lm":
        if head_kind not in TRAINED_HEADS:
            known = ", ".join(map(repr, TRAINED_HEADS))
            raise ValueError(f"a {head_kind!r} head cannot be read from an adapter; the kinds that can are {known}.")
        _fill_head(head, family.heads[head_kind], tensors, folder)
    if tensors:
        raise ValueError(
            f"{folder / TENSORS} contains {len(tensors)} tensors unknown to this {hf_config.model_type} network"
            f"{' without its head' if head is None else ''}: {_some(sorted(tensors))}."
        )
    targets = adapter.targets or ["all-linear"]
    return LoraConfig(
        rank=adapter.rank,
        alpha=adapter.alpha,
        targets=[targets] if isinstance(targets, str) else sorted(targets),
        dropout=adapter.dropout,
        rslora=adapter.rslora,
    )


def _fill_place(
    place: Place, adapter: "Adapter", tensors: dict[str, np.ndarray], prefix: str, folder: Path
) -> list[str]:
    """Moves a module's tensors out of `tensors` into the network. Returns the names of missing tensors."""
    full = [prefix + name for name in place.names]
    old = [prefix + name for name in place.old_names]
    full = old if any(f"{name}.lora_A.weight" in tensors for name in old) else full
    here = [name for name in full if any(f"{name}.lora_{m}.weight" in tensors for m in "AB")]
    saved = [name for name in full if f"{name}.weight" in tensors]
    if saved:
        _set_whole(place, tensors, saved[0], folder)
        return []
    lacking = [name for name in full if name not in here]
    if here and lacking and adapter.chooses_layers:
        raise ValueError(
            f"{folder}: layers_to_transform excludes {lacking[0]}, but these layers are stacked and get LoRA together: "
            f"{', '.join(full)}."
        )
    if lacking:
        return [f"{name}.lora_A.weight" for name in lacking if here or is_target(adapter, name)]
    ranks = {(first(adapter.ranks, name, adapter.rank), first(adapter.alphas, name, adapter.alpha)) for name in full}
    if len(ranks) > 1:
        raise ValueError(
            f"{folder}: rank_pattern or alpha_pattern differs between the layers {full[0]} … {full[-1]}, but these "
            "layers are stacked and need one rank and one alpha."
        )
    ((rank, alpha),) = ranks
    matrices = [_pop_matrices(tensors, name, place, rank, folder) for name in full]
    stack = np.stack if place.kernel_shape[0] else lambda arrays: arrays[0]
    a, b = (jnp.asarray(stack(arrays)) for arrays in zip(*matrices, strict=True))
    scale = alpha / (math.sqrt(rank) if adapter.rslora else rank)
    set_lora(place, a, b, scale=scale, dropout=adapter.dropout)
    return []


def is_conv1d(rule: Rule) -> bool:
    """Whether HuggingFace stores this weight as [in, out] (GPT-2's Conv1D)."""
    return file_shape(rule.transform, (2, 1, 3))[0] == 2


# ---------------------------------------------------------------- values in PEFT's layout


def _by_layer(matrix: jax.Array, dimensions: int) -> np.ndarray:
    """fp32 [layers, ...]: a matrix with this number of dimensions in one layer, stacked or not."""
    return np.asarray(matrix, np.float32).reshape(-1, *matrix.shape[matrix.ndim - dimensions :])


def _whole(place: Place) -> dict[str, np.ndarray]:
    linear, name, lora = place.linear, place.names[0], lora_of(place.linear)
    _refuse_stacked(place)
    kernel = np.asarray(dense_kernel(linear)[...], np.float32)
    if lora is not None:
        kernel = kernel + np.asarray(lora.product())
    out = {f"{name}.weight": to_file(place.rule.transform, kernel)}
    return out if linear.bias is None else out | {f"{name}.bias": np.asarray(linear.bias[...]).reshape(-1)}


def _set_whole(place: Place, tensors: dict[str, np.ndarray], name: str, folder: Path) -> None:
    _refuse_stacked(place)
    kernel, bias = nnx.Param(dense_kernel(place.linear)[...], axes=place.axes), place.linear.bias
    place.linear.kernel = kernel
    _set(kernel, tensors, f"{name}.weight", place.rule.transform, folder)
    if bias is not None:
        _set(bias, tensors, f"{name}.bias", "none", folder)


def _refuse_stacked(place: Place) -> None:
    if place.kernel_shape[0]:
        raise ValueError(f"{place.names[0]} belongs to a stack of layers and cannot be saved whole with LoRA.")


def _head_tensors(head: nnx.Module, kind: Head) -> dict[str, np.ndarray]:
    values = {".".join(map(str, keys)): v[...] for keys, v in nnx.to_flat_state(nnx.state(head))}
    rules = [rule for rule in kind.mapping if rule.path in values]
    return {rule.name: to_file(rule.transform, np.asarray(values[rule.path], np.float32)) for rule in rules}


def _fill_head(head: nnx.Module, kind: Head, tensors: dict[str, np.ndarray], folder: Path) -> None:
    """Loads the head's modules that the adapter has; PEFT may omit modules, which keep the base's values."""
    rules = {rule.path: rule for rule in kind.mapping}
    modules = {name.rpartition(".")[0] for name in tensors}
    saved = [(k, rules[".".join(map(str, k))]) for k, _ in nnx.to_flat_state(nnx.state(head))]
    saved = [(keys, rule) for keys, rule in saved if rule.name.rpartition(".")[0] in modules]
    if not saved:
        raise ValueError(f"{folder / TENSORS} contains no head: read it from the base model instead.")
    for keys, rule in saved:
        variable: object = functools.reduce(getattr, map(str, keys), head)
        assert isinstance(variable, nnx.Param)
        _set(variable, tensors, rule.name, rule.transform, folder)


def _set(
    variable: "nnx.Param[jax.Array]", tensors: dict[str, np.ndarray], name: str, transform: str, folder: Path
) -> None:
    """Moves a tensor out of `tensors` into a parameter."""
    shape = tuple(variable.shape)
    if name not in tensors:
        raise ValueError(f"{folder / TENSORS} lacks {name}.")
    value = tensors.pop(name)
    if value.shape != file_shape(transform, shape):
        expected = list(file_shape(transform, shape))
        raise ValueError(f"{folder / TENSORS}: {name} has shape {list(value.shape)}, but the network's is {expected}.")
    variable[...] = jnp.asarray(value.T if transform == "transpose" else value).reshape(shape)


def _pop_matrices(
    tensors: dict[str, np.ndarray], name: str, place: Place, rank: int, folder: Path
) -> tuple[np.ndarray, np.ndarray]:
    """a [in, rank] and b [rank, ..., out] of one module."""
    size, *out = place.kernel_shape[1]
    found = []
    for matrix, shape in (("A", (rank, size)), ("B", (math.prod(out), rank))):
        key = f"{name}.lora_{matrix}.weight"
        if key not in tensors:
            raise ValueError(f"{folder / TENSORS} lacks {key}.")
        value = tensors.pop(key)
        if value.shape != shape:
            raise ValueError(
                f"{folder / TENSORS}: {key} has shape {list(value.shape)}, but this base with rank {rank} needs "
                f"{list(shape)}: the adapter belongs to another base model."
            )
        found.append(value)
    return found[0].T, found[1].T.reshape(rank, *out)


# ---------------------------------------------------------------- reading the files


def _read_tensors(folder: Path) -> dict[str, np.ndarray]:
    """The adapter's tensors in fp32, by name without PEFT's prefix."""
    if not (folder / TENSORS).is_file():
        pickle = (folder / "adapter_model.bin").is_file()
        remedy = " Its adapter_model.bin is a pickle, which is never opened: save it again with PEFT." if pickle else ""
        raise ValueError(f"{folder} has no {TENSORS}.{remedy}")
    try:
        with safe_open(folder / TENSORS, framework="np") as file:
            found = {name: file.get_tensor(name).astype(np.float32) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ValueError(f"cannot open {folder / TENSORS}: {error}. Is the download complete?") from error
    broken = [name for name, value in found.items() if not np.isfinite(value).all()]
    if broken:
        raise ValueError(f"{folder / TENSORS}: tensor {broken[0]} contains NaN or infinity. Get another copy of it.")
    strange = [name for name in found if not name.startswith(ROOT)]
    if strange:
        raise ValueError(f"{folder / TENSORS}: {strange[0]} does not start with {ROOT!r} like PEFT's names.")
    return {name.removeprefix(ROOT): value for name, value in found.items()}


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
