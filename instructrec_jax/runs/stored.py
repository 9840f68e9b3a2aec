"""Parameters by their paths in a safetensors file: what a run with `init_from` starts with, beside or without weights.

RUN_DIR.initial/parameters.safetensors holds LoRA matrices, head and whatever else was trained (init_lora: keep), or all
parameters of a compressed run, codes and scales included, for LoRA on top of it.
"""

from pathlib import Path
from typing import NotRequired, TypedDict

import jax
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from instructrec_jax.distributed.launch import place
from instructrec_jax.runs.config import InitLora
from instructrec_jax.training.state import Tree

RECORD, PARAMETERS = "init_from.json", "parameters.safetensors"


class Origin(TypedDict):
    """init_from.json.

    Attributes:
      run, step: the first run and its checkpoint.
      lora: the new run's init_lora.
      weights: keep: the folder of the frozen backbone.
      task, labels: with parameters.safetensors: task.type and labels of the first run's head.
      zeros: whether it has zeros that stay (`optimizer.keep_zeros`).
      codes: of a compressed run, with LoRA on top of it: its settings backbone.quantize...
    """

    run: str
    step: int
    lora: NotRequired[InitLora]
    weights: NotRequired[str]
    task: NotRequired[str]
    labels: NotRequired[list[str] | None]
    zeros: NotRequired[bool]
    codes: NotRequired[dict[str, object]]


def write_parameters(folder: Path, params: Tree) -> None:
    """Writes parameters.safetensors into a folder, which it makes."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({path: np.ascontiguousarray(value) for path, value in flat(params).items()}, folder / PARAMETERS)


def read_parameters(file: Path) -> dict[str, np.ndarray]:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{file} cannot be read ({error}): remove its folder, and start the run again.") from None


def flat(params: Tree, prefix: str = "") -> dict[str, jax.Array]:
    """Path -> parameter."""
    found: dict[str, jax.Array] = {}
    for name, value in params.items():
        found |= flat(value, f"{prefix}{name}/") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


def filled(params: Tree, shardings: object, taken: dict[str, np.ndarray], prefix: str = "") -> Tree:
    """The parameters, with those of `taken` in place of their own."""
    assert isinstance(shardings, dict)
    result: Tree = {}
    for name, value in params.items():
        path = f"{prefix}{name}"
        if isinstance(value, dict):
            result[name] = filled(value, shardings[name], taken, f"{path}/")
        else:
            result[name] = place(taken[path].astype(value.dtype), shardings[name]) if path in taken else value
    return result
