"""The parameters that a run with `init_from` starts from.

RUN_DIR.initial holds them, so that the run depends on the first run no longer:

    init_from.json            the first run: see `Origin`
    config.json ...           init_lora: merge: a HuggingFace folder, which becomes backbone.path; of a compressed run,
                              with LoRA on top of it, parameters.safetensors takes the place of weights
    parameters.safetensors    init_lora: keep: LoRA matrices, head and whatever else was trained, by their paths
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from instructrec_jax.adapters.lora import is_lora
from instructrec_jax.distributed.mesh import DeviceMesh
from instructrec_jax.files import read_json
from instructrec_jax.remote import run_folder
from instructrec_jax.runs.config import Config
from instructrec_jax.runs.model import SplitModel, load_model
from instructrec_jax.runs.stored import PARAMETERS, RECORD, Origin, filled, flat, read_parameters
from instructrec_jax.tasks.base import Task


def initial_folder(config: Config) -> Path:
    run_dir = run_folder(config.run_dir)
    return run_dir.with_name(f"{run_dir.name}.initial")


def initial_model(config: Config, task: Task, folder: Path, mesh: DeviceMesh) -> SplitModel:
    """The model at step 0: that of `load_model`, with the kept parameters of `init_from`.

    Its notes list what was taken and what was not. Raises ValueError if LoRA matrices do not fit the network, or would
    be frozen.
    """
    model = load_model(config, task, folder, mesh)
    if config.init_from is None or config.init_lora == "merge":
        return model
    own = initial_folder(config)
    origin, kept = read_json(own / RECORD, Origin), read_parameters(own / PARAMETERS)
    shapes = {path: tuple(value.shape) for path, value in flat(model.params).items()}
    same_head = (origin.get("task"), origin.get("labels")) == (config.task.name, config.task.label_names)
    left = {
        path: "the network has no such parameter" if path not in shapes else "another shape"
        for path, value in kept.items()
        if shapes.get(path) != value.shape
    }
    if not same_head:
        left |= dict.fromkeys((path for path in kept if path.startswith("head/")), "another task or other labels")
    for path in kept:
        if path.startswith("backbone/") and (path in left or model.is_frozen(path)):
            reason = left.get(path, "backbone.freeze or another setting freezes it, but frozen parameters are not kept")
            raise ValueError(f"init_lora: keep: {path} of {config.init_from} cannot be taken: {reason}.")
    taken = {path: value for path, value in kept.items() if path not in left and not model.is_frozen(path)}
    left |= dict.fromkeys((path for path in kept if path not in left and path not in taken), "frozen by the settings")
    report = model.source.report
    new = tuple(name for name in report.initialized if not any(path.endswith(_path(name)) for path in taken))
    model.source.report = replace(report, initialized=new)
    model.source.notes += _notes(taken, left, f"{origin['run']} at step {origin['step']}")
    return replace(model, params=filled(model.params, model.shardings, taken))


def _notes(taken: dict[str, np.ndarray], left: dict[str, str], origin: str) -> list[str]:
    matrices = sum(is_lora(path) for path in taken)
    others = sorted(path for path in taken if not is_lora(path))
    listed = f"{matrices} LoRA matrices" + (f" and {', '.join(others)}" if others else "")
    notes = [f"taken from {origin}: {listed}"]
    if left:
        reasons = [f"{path} ({reason})" for path, reason in sorted(left.items())]
        notes.append(f"not taken, but newly initialized: {', '.join(reasons)}")
    return notes


def _path(initialized: str) -> str:
    return "/" + initialized.replace(".", "/")
