"""Teachers of a run: which fit, and a run that resumes with them."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from helpers import assert_close, task_config
from tiny_runs import changed, final_parameters, rows, tiny_run, untrained_run

from instructrec_jax.distributed.mesh import make_mesh
from instructrec_jax.files import read_json, write_json
from instructrec_jax.planning.compiled_step import compile_step
from instructrec_jax.planning.plan_report import Plan, measure, show
from instructrec_jax.runs.config import Config
from instructrec_jax.runs.data import RunData
from instructrec_jax.runs.model import open_task
from instructrec_jax.runs.run import Run
from instructrec_jax.runs.setup import TrainingSetup
from instructrec_jax.runs.summary import flops_and_peak
from instructrec_jax.runs.teachers import keep_teachers, open_teachers
from instructrec_jax.tasks import ClassificationConfig, RegressionConfig
from instructrec_jax.training.training_config import DistilConfig


@pytest.fixture(scope="module")
def student(finished: Config, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Settings of a run that is taught by the finished one, twice."""
    config = tiny_run("classification", Path(finished.backbone.path), tmp_path_factory.mktemp("student"))
    return replace(config, distil=DistilConfig([finished.run_dir] * 2, weight=1.0))


def opened(config: Config, **how: Any) -> Any:
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    return open_teachers(config, open_task(config, Path(config.backbone.path)), mesh, **how)


def test_teachers_are_the_runs_best_checkpoints(student: Config, finished: Config) -> None:
    teachers = opened(student)
    expected = Run.open(finished.run_dir).model.params
    assert len(teachers) == 2
    for own in teachers:
        jax.tree.map(np.testing.assert_array_equal, own.params, expected)
    shapes = opened(student, are_abstract=True)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), [each.params for each in shapes]) == jax.tree.map(
        lambda x: (x.shape, x.dtype), [each.params for each in teachers]
    )
    assert opened(replace(student, distil=DistilConfig())) == []


def test_teachers_cost_a_forward_pass_each(student: Config) -> None:
    """Of the run's own network, a third: its backward pass costs twice the forward one."""
    task, mesh = open_task(student, Path(student.backbone.path)), make_mesh(student.mesh)
    data = RunData(student).training(task, 8)

    def flops(config: Config) -> float:
        setup = TrainingSetup.load(config, task, Path(config.backbone.path), mesh)
        return flops_and_peak(setup, data)[0](1000)

    alone = flops(replace(student, distil=DistilConfig()))
    assert flops(student) == pytest.approx(alone * (1 + 2 / 3), rel=1e-6)


def test_a_plan_counts_teachers(student: Config) -> None:
    mesh = make_mesh(student.mesh, jax.devices()[:1])

    def plan(config: Config) -> Plan:
        return measure(compile_step(config, Path(config.backbone.path), mesh), config, "cpu", mesh, 1)

    alone, taught = plan(replace(student, distil=DistilConfig())), plan(student)
    assert alone.teachers == 0 and taught.teachers == 2 * alone.parameters
    assert taught.model_flops == pytest.approx(alone.model_flops * (1 + 2 / 3), rel=1e-6)
    assert taught.hardware_flops > alone.hardware_flops and taught.peak > alone.peak
    assert "teachers" in show(taught) and "teachers" not in show(alone)


def test_teachers_that_do_not_fit_are_named(student: Config, checkpoint: Path, tmp_path: Path) -> None:
    number = untrained_run(tmp_path / "number", RegressionConfig(), checkpoint, max_length=32)
    labels = untrained_run(tmp_path / "labels", ClassificationConfig(labels=["a", "b"]), checkpoint, max_length=32)
    folder = tmp_path / "folder"
    shutil.copytree(checkpoint, folder)
    file = folder / "tokenizer.json"
    file.write_text(file.read_text().replace('"##b"', '"##bb"'))
    tokens = untrained_run(tmp_path / "tokens", student.task, folder, max_length=32)
    for path, message in (
        (number, "is of task.type regression, but this run of classification"),
        (labels, "has other labels or tasks than this run"),
        (tokens, "has other tokens than this run"),
        (checkpoint, "is not a run directory"),
    ):
        with pytest.raises(ValueError, match=message):
            opened(replace(student, distil=DistilConfig([str(path)])))


def test_a_teacher_that_knows_no_masked_items_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    """In both directions: it would read an item in place of the mask, or a mask that nobody learned."""
    tasks = [task_config("sequence", tmp_path / "catalogue", objective=objective) for objective in ("next", "masked")]
    runs = [untrained_run(tmp_path / task.objective, task, checkpoint, max_length=64) for task in tasks]
    for task, (right, wrong) in zip(tasks, (runs, runs[::-1]), strict=True):
        config = tiny_run("sequence", checkpoint, tmp_path, task=task, data__max_length=64)
        assert len(opened(replace(config, distil=DistilConfig([str(right)])))) == 1
        with pytest.raises(ValueError, match="has other texts .task.objective"):
            opened(replace(config, distil=DistilConfig([str(wrong)])))


def test_a_changed_teacher_is_named(student: Config, tmp_path: Path) -> None:
    keep_teachers(student, tmp_path)
    keep_teachers(student, tmp_path)
    (path,) = set(student.distil.teachers)
    known = read_json(tmp_path / "teachers.json", dict)
    write_json(tmp_path / "teachers.json", {path: known[path] | {"step": 1}})
    with pytest.raises(ValueError, match=r"distil.teachers: .* changed since this run began"):
        keep_teachers(student, tmp_path)


@pytest.mark.slow  # two training runs
def test_a_taught_run_resumes_exactly(student: Config, tmp_path: Path) -> None:
    from instructrec_jax.train import train

    train(student)
    run_dir = tmp_path / "run"
    shutil.copytree(student.run_dir, run_dir)
    shutil.rmtree(run_dir / "checkpoints" / "6")
    config = changed(student, run_dir=str(run_dir))
    write_json(run_dir / "run.json", read_json(run_dir / "run.json", dict) | {"status": "begun"})
    train(config)
    assert rows(run_dir) == rows(student.run_dir)
    assert_close(final_parameters(run_dir, 6), final_parameters(student.run_dir, 6), atol=0)
    assert not [path for path in (run_dir / "checkpoints").rglob("*") if "teacher" in path.name]
