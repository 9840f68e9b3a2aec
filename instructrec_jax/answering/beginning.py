"""Runs that start from another run's parameters (`init_from`)."""

from dataclasses import replace
from pathlib import Path
from typing import TypedDict

from instructrec_jax.answering.exporting import export
from instructrec_jax.distributed.launch import once, say
from instructrec_jax.files import read_json, write_json
from instructrec_jax.runs.config import Config
from instructrec_jax.runs.run import Run, require_run

RECORD = "init_from.json"


class Origin(TypedDict):
    """RUN_DIR.initial/init_from.json: the run and the checkpoint that the folder was written from."""

    run: str
    step: int


def begun_from(config: Config) -> Config:
    """The config with `init_from` carried out: its parameters lie in RUN_DIR.initial, which becomes backbone.path.

    The folder stays beside the run, because a resumed run reads its frozen parameters again.

    Raises ValueError for a path that is not a run directory with a checkpoint, a multitask run, the run itself, or a
    folder RUN_DIR.initial that was written from another run.
    """
    if config.init_from is None:
        return config
    source, run_dir = Path(config.init_from), Path(config.run_dir)
    folder = run_dir.with_name(f"{run_dir.name}.initial")
    if source.resolve() == run_dir.resolve():
        raise ValueError(f"init_from and run_dir are both {run_dir}: choose another run_dir.")
    if folder.exists():
        if not (folder / RECORD).is_file():
            raise ValueError(f"{folder} exists, but init_from did not write it or was interrupted: remove it.")
        begun = read_json(folder / RECORD, Origin)
        if Path(begun["run"]) != source.resolve():
            raise ValueError(f"{folder} was written from {begun['run']}, not from {source}: remove it.")
    else:
        require_run(source)
        once(lambda: _write(source, folder))
    step = read_json(folder / RECORD, Origin)["step"]
    say(f"the run starts from the parameters of {source} at step {step}, kept in {folder}, with a new optimizer")
    return replace(config, backbone=replace(config.backbone, path=str(folder)))


def _write(source: Path, folder: Path) -> None:
    run = Run.open(source)
    if run.task.subtasks:
        raise ValueError(f"init_from: {source} is a multitask run: export one of its heads, and set backbone.path.")
    if run.checkpoint is None:
        raise ValueError(f"init_from: {source} has no checkpoint.")
    export(source, folder, format="hf", step=run.checkpoint, dtype="float32")
    write_json(folder / RECORD, Origin(run=str(source.resolve()), step=run.checkpoint))
