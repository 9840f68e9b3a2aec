"""The teachers of a run with `distil.teachers`: frozen networks of other runs."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp

from instructrec_jax.backbones.family import PAIR, WORDLESS
from instructrec_jax.backbones.folder import read_config
from instructrec_jax.backbones.reading import input_limit
from instructrec_jax.data.media.media_reader import form_of
from instructrec_jax.distributed.launch import once, place
from instructrec_jax.distributed.mesh import DeviceMesh, replicated
from instructrec_jax.evaluation.predictor import predictor
from instructrec_jax.files import read_json, write_json
from instructrec_jax.runs.config import Config
from instructrec_jax.runs.data import buckets
from instructrec_jax.runs.model import SplitModel, abstract_model
from instructrec_jax.runs.run import Run, require_finished
from instructrec_jax.tasks.base import Task
from instructrec_jax.tasks.kinds import as_ranking
from instructrec_jax.training.checkpoint import CHECKSUMS
from instructrec_jax.training.distillation import Arrays, Teachers, check_distil

RECORD = "teachers.json"


def open_teachers(config: Config, task: Task, mesh: DeviceMesh, *, are_abstract: bool = False) -> list[SplitModel]:
    """The networks of `distil.teachers` on the mesh (shapes instead of arrays: `are_abstract`).

    Raises ValueError for settings without effect or out of range, for a path that is no run directory, and for a
    teacher whose batches would mean something else: another task, labels, items, tokenizer or kind of network.
    """
    check_distil(config.distil, task, config.accumulation)
    if not config.distil.teachers:
        return []
    if task.context.kind == PAIR:
        raise ValueError(
            f"distil.teachers: task.type {config.task.name} has no teachers, because it compares vectors of a batch: "
            "leave them out."
        )
    models = []
    for path in config.distil.teachers:
        run = _teacher(path, config, task, mesh)
        model = abstract_model(run.config, run.task, run.folder, mesh) if are_abstract else run.model
        if config.distil.hidden and not hasattr(model.network, "backbone"):
            raise ValueError(f"distil.hidden is set, but a {run.kind} network has no backbone: leave it out.")
        if are_abstract:
            model = replace(model, params=jax.tree.map(_abstract, model.params, model.shardings))
        models.append(model)
    return models


def beside_step(
    config: Config, task: Task, models: Sequence[SplitModel], mesh: DeviceMesh, *, are_abstract: bool = False
) -> Teachers | None:
    """The opened teachers as the step reads them; None without any.

    Buffers of the loss, such as item vectors, are computed with each teacher once.
    """
    if not models:
        return None
    arrays = [
        Arrays(params=model.params, buffers=_buffers(config, task, model, mesh, are_abstract)) for model in models
    ]
    return Teachers(config.distil, [model.graphdef for model in models], arrays)


def _abstract(x: jax.Array, sharding: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def _buffers(
    config: Config, task: Task, model: SplitModel, mesh: DeviceMesh, are_abstract: bool
) -> dict[str, jax.Array]:
    if not task.refresh_every:
        return {}
    if are_abstract:
        shapes = task.buffer_shapes(model.source.config.get_text_config().hidden_size)
        return jax.eval_shape(lambda: {name: jnp.zeros(shape) for name, shape in shapes.items()})
    found = task.refresh(predictor(task, model.graphdef, mesh, buckets(config))(model.params))
    return {name: place(value, replicated(mesh)) for name, value in found.items()}


def _teacher(path: str, config: Config, task: Task, mesh: DeviceMesh) -> Run:
    """The opened run, once it is known to fit."""
    require_finished(path, None)
    opened = Run.open(path)
    run = Run(opened.path, opened.data, opened.folder, opened.task, mesh, trained=True)
    if run.kind != config.task.name:
        raise ValueError(f"distil.teachers: {path} is of task.type {run.kind}, but this run of {config.task.name}.")
    if difference := _difference(run.task, task):
        raise ValueError(f"distil.teachers: {path} has other {difference} than this run: use a teacher with the same.")
    if task.context.kind in WORDLESS:
        return run
    limit = input_limit(read_config(run.folder))
    if config.data.max_length > limit:
        raise ValueError(
            f"distil.teachers: {path} reads at most {limit} tokens, but data.max_length is {config.data.max_length}: "
            "lower it."
        )
    return run


def _difference(teacher: Task, student: Task) -> str | None:
    """What of the batch would mean something else to the teacher; None: nothing."""
    theirs, mine = teacher.context, student.context
    if (theirs.kind, teacher.max_target_length is None) != (mine.kind, student.max_target_length is None):
        return "inputs"
    if form_of(theirs.pixels) != form_of(mine.pixels):
        return "pixels of a picture (size, or preprocessor_config.json)"
    if mine.kind in WORDLESS:
        return None if _labels(teacher) == _labels(student) else "labels or tasks"
    if theirs.tokenizer.get_vocab() != mine.tokenizer.get_vocab() or theirs.lower_case != mine.lower_case:
        return "tokens"
    if _labels(teacher) != _labels(student):
        return "labels or tasks"
    ranking = as_ranking(teacher), as_ranking(student)
    if ranking[0] and ranking[1] and ranking[0].catalogue.fingerprint() != ranking[1].catalogue.fingerprint():
        return "items"
    if getattr(teacher, "masks_items", False) != getattr(student, "masks_items", False):
        return "texts (task.objective: with or without masked items)"
    return None


def _labels(task: Task) -> object:
    return getattr(task, "labels", None), {name: _labels(own) for name, own in task.subtasks.items()}


def keep_teachers(config: Config, run_dir: Path) -> None:
    """Writes teachers.json into a run directory: the checkpoints of the teachers, by their checksums.

    Raises ValueError for a resumed run whose teachers changed, which would no longer be the same run.
    """
    if not config.distil.teachers:
        return
    found = {path: _identity(path) for path in config.distil.teachers}
    file = run_dir / RECORD
    if not file.is_file():
        once(lambda: write_json(file, found))
        return
    known = read_json(file, dict[str, object])
    changed = [path for path, identity in found.items() if known.get(path) != identity]
    if changed:
        raise ValueError(
            f"distil.teachers: {changed[0]} changed since this run began, or is another one: restore it, or choose "
            "another run_dir."
        )


def _identity(path: str) -> Mapping[str, object]:
    run = Run.open(path)
    state = run.path / "checkpoints" / str(run.checkpoint) / "state"
    return {"step": run.checkpoint, "checksums": read_json(state / CHECKSUMS, dict[str, str])}
