"""Runs that start from another run's parameters (`init_from`)."""

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path

from instructrec_jax.answering.exporting import export
from instructrec_jax.distributed.launch import once, say
from instructrec_jax.files import read_json, write_json
from instructrec_jax.remote import is_url, run_folder, url_of_run
from instructrec_jax.runs.bucket import local_run, send
from instructrec_jax.runs.config import Config
from instructrec_jax.runs.initial import initial_folder
from instructrec_jax.runs.model import keep_declarations, weights_folder
from instructrec_jax.runs.run import Run, require_run
from instructrec_jax.runs.stored import RECORD, Origin, write_parameters
from instructrec_jax.training.state import split_params

FREE = ("dropout",)  # of lora's settings, those that do not change what the matrices mean


def begun_from(config: Config) -> Config:
    """The config with `init_from` carried out: its parameters lie in RUN_DIR.initial.

    With init_lora: merge, that folder becomes backbone.path; with keep, the frozen weights of the first run do. The
    folder stays beside the run, because a resumed run reads its initial parameters again.

    Raises ValueError for a path that is not a run directory with a checkpoint, a multitask run, the run itself, a
    folder RUN_DIR.initial that was written from another run, and for kept LoRA with other settings.
    """
    if config.init_from is None:
        if config.init_lora != "merge":
            raise ValueError(f"init_lora is {config.init_lora}, but init_from is not set: leave it out.")
        return config
    source, run_dir = local_run(config.init_from), run_folder(config.run_dir)
    folder = initial_folder(config)
    if is_url(config.run_dir):
        local_run(f"{config.run_dir.rstrip('/')}.initial")
    if source.resolve() == run_dir.resolve():
        raise ValueError(f"init_from and run_dir are both {run_dir}: choose another run_dir.")
    if folder.exists():
        if not (folder / RECORD).is_file():
            raise ValueError(f"{folder} exists, but init_from did not write it or was interrupted: remove it.")
        begun = read_json(folder / RECORD, Origin)
        if begun["run"] != _name(source):
            raise ValueError(f"{folder} was written from {begun['run']}, not from {source}: remove it.")
        if begun.get("lora", "merge") != config.init_lora:
            raise ValueError(f"{folder} was written with another init_lora than {config.init_lora}: remove it.")
    else:
        require_run(source)
        once(lambda: _write(config, source, folder))
        send(folder)
    origin = read_json(folder / RECORD, Origin)
    how = "with its LoRA matrices as they are" if config.init_lora == "keep" else "with LoRA merged"
    how = "in its codes" if "codes" in origin else how
    begins = f"the run starts from the parameters of {source} at step {origin['step']}, {how}, kept in {folder}"
    say(f"{begins}, with a new optimizer")
    config = replace(config, backbone=replace(config.backbone, path=origin.get("weights", str(folder))))
    if origin.get("zeros"):
        config = replace(config, optimizer=replace(config.optimizer, keep_zeros=True))
    return with_codes(config, origin["codes"], source) if "codes" in origin else config


def _name(source: Path) -> str:
    """The run in init_from.json."""
    return url_of_run(source) or str(source.resolve())


def _write(config: Config, source: Path, folder: Path) -> None:
    run = Run.open(source)
    if run.task.subtasks:
        raise ValueError(f"init_from: {source} is a multitask run: export one of its heads, and set backbone.path.")
    if run.members:
        raise ValueError(
            f"init_from: {source} is an ensemble of {len(run.members)} networks: name one of its members, such as "
            f"{run.members[0].path}."
        )
    step = run.checkpoint
    if step is None:
        raise ValueError(f"init_from: {source} has no checkpoint.")
    origin = Origin(run=_name(source), step=step, lora=config.init_lora)
    if config.init_lora == "merge" and is_compressed(run.config) and config.lora.on:
        keep_declarations(run.folder, folder, run.task, needs_weights=False)
        write_parameters(folder, run.model.params)
        codes = codes_of(run.config)
        origin |= {"task": run.kind, "labels": run.config.task.label_names, "codes": codes}
    elif config.init_lora == "merge":
        export(source, folder, format="hf", step=step, dtype="float32")
        if run.config.optimizer.keep_zeros:
            origin["zeros"] = True
    else:
        check_adapter(config, run.config, source)
        weights = str(weights_folder(run.config, source))
        origin |= {"weights": weights, "task": run.kind, "labels": run.config.task.label_names}
        write_parameters(folder, split_params(run.model.params, run.model.is_frozen)[0])
    write_json(folder / RECORD, origin)


def is_compressed(config: Config) -> bool:
    """Whether a run's checkpoint holds codes, as `compress` writes them."""
    return config.backbone.quantize != "none" and not config.lora.on


def codes_of(config: Config) -> dict[str, object]:
    """The settings of the backbone's codes."""
    names = [entry.name for entry in fields(config.backbone) if entry.name.startswith("quantize")]
    return {name: getattr(config.backbone, name) for name in names}


def with_codes(config: Config, codes: Mapping[str, object], source: Path) -> Config:
    """The config with the codes of a compressed run. Raises ValueError where it sets other ones."""
    own, default = codes_of(config), codes_of(Config())
    for name, value in codes.items():
        if own[name] not in (value, default[name]):
            raise ValueError(
                f"backbone.{name} is {own[name]}, but {value} in {source}, whose codes stay: leave it out."
            )
    backbone = replace(config.backbone)
    for name, value in codes.items():
        setattr(backbone, name, value)
    return replace(config, backbone=backbone)


def check_adapter(config: Config, first: Config, source: Path) -> None:
    """Raises ValueError unless a run may keep the LoRA matrices of the `first` run in `source`; names what differs."""
    if not first.lora.on:
        raise ValueError(f"init_lora is keep, but {source} was trained without LoRA: leave it out.")
    if first.backbone.random_init:
        raise ValueError(f"init_lora is keep, but the backbone of {source} has random weights: set init_lora: merge.")
    names = [f"lora.{entry.name}" for entry in fields(first.lora) if entry.name not in FREE]
    differing = []
    names += [f"backbone.{name}" for name in codes_of(first)]
    for name in (*names, "backbone.random_init"):
        room, setting = name.split(".")
        then, now = (getattr(getattr(each, room), setting) for each in (first, config))
        if then != now:
            differing.append(f"{name} is {now}, but {then} in {source}")
    if differing:
        raise ValueError(
            f"init_lora is keep, but {'; '.join(differing)}. Use the same settings, or set init_lora: merge."
        )
