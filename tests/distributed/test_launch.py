"""Several real processes are one program: as one process computes it, however they die, and restarted as others."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import assert_close
from processes import Processes
from tiny_runs import (
    TOLERANCE,
    assert_same_lines,
    changed,
    final_parameters,
    rows,
    tiny_run,
    verb,
    write_settings,
)

from instructrec_jax import evaluate, train
from instructrec_jax.distributed import launch
from instructrec_jax.files import read_json
from instructrec_jax.runs.config import Config
from instructrec_jax.runs.run import Run
from instructrec_jax.training.checkpoint import Checkpoints
from instructrec_jax.training.interrupt import Interrupt, Interrupted

STEPS = 24
# `python -m instructrec_jax.train`, in which a process is taken for dead sooner
IMPATIENT = [
    *(sys.executable, "-c"),
    "from instructrec_jax import train; from instructrec_jax.runs import config; "
    "from instructrec_jax.distributed import launch; "
    "launch.HEARTBEAT_SECONDS = 15; config.main_guard(train.main, processes=True)",
]
MESSAGE = "Start all processes again with the same command"


def lines(run_dir: Path, count: int) -> Callable[[], bool]:
    metrics = run_dir / "metrics.jsonl"
    return lambda: metrics.exists() and len(metrics.read_bytes().splitlines()) >= count


def numbers(tree: Any) -> list[float]:
    if isinstance(tree, dict):
        return [n for name in sorted(tree) for n in numbers(tree[name])]
    if isinstance(tree, list):
        return [n for entry in tree for n in numbers(entry)]
    return [float(tree)] if isinstance(tree, int | float) else []


@pytest.fixture(scope="module")
def alone(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A run in one process, on data that divides by nothing: 7 examples a batch, 8 and 12 cases to evaluate.

    With dropout, evaluations, best checkpoints and remembered item vectors, none of them in step with the others.
    """
    config = tiny_run(
        "retrieval",
        checkpoint,
        tmp_path_factory.mktemp("alone"),
        steps=STEPS,
        data__batch_size=7,
        task__softmax="full",
        task__refresh_every=3,
        evaluation__every=7,
        checkpoint__every=4,
        tracking__log_every=3,
    )
    train.train(config)
    return config


@pytest.fixture(scope="module")
def killed(alone: Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Config, list[str], Path]]:
    """The same run in four processes, one of which was killed in the middle.

    Where they exchange numbers the others notice it at once; where they wait, when its heartbeat is missed.
    """
    folder = tmp_path_factory.mktemp("killed")
    config = changed(alone, run_dir=str(folder / "run"))
    command = verb("train", "--config_path", write_settings(config, folder / "settings.yaml"))
    with Processes([*IMPATIENT, *command[3:]], 4, 1, folder / "logs") as four:
        four.wait_for(lines(Path(config.run_dir), 5))
        four.all[2].send_signal(signal.SIGKILL)
        statuses = four.wait(60)
        assert statuses.pop(2) == -signal.SIGKILL
        assert not {0, -signal.SIGKILL} & set(statuses), [four.said(number) for number in range(4)]
        for number in range(4):
            deadline = time.monotonic() + 5  # the watchdog prints after its process ended
            while MESSAGE not in four.said(number):
                assert time.monotonic() < deadline, four.said(number)
    yield config, command, folder


@pytest.mark.slow
def test_killed_and_started_again_with_other_numbers_of_processes(
    alone: Config, killed: tuple[Config, list[str], Path]
) -> None:
    """Four processes, one killed; two, one told to stop; two to the end: lines and weights of an undisturbed run."""
    config, command, folder = killed
    run_dir = Path(config.run_dir)
    before = len(rows(run_dir))
    with Processes(command, 2, 2, folder / "logs") as two:
        two.wait_for(lambda: "resuming from step" in two.said(0) and lines(run_dir, before + 1)())
        two.all[1].send_signal(signal.SIGTERM)
        assert two.wait() == [0, 0], two.said(0) + two.said(1)
        step = Checkpoints(run_dir).steps()[-1]
        assert f"SIGTERM: saved step {step} of {STEPS}." in two.said(0)
        assert "saved step" not in two.said(1)
    assert 0 < step < STEPS and not (run_dir / "report.html").exists()

    with Processes(command, 2, 2, folder / "logs") as two:
        assert two.wait() == [0, 0], two.said(0) + two.said(1)
        assert f"resuming from step {step}" in two.said(0)
        assert "4 × cpu in 2 processes" in two.said(0)
        assert two.said(1) == ""  # the first process speaks for all
    assert_same_lines(run_dir, Path(alone.run_dir))
    assert_close(final_parameters(run_dir, STEPS), final_parameters(alone.run_dir, STEPS), atol=TOLERANCE)
    for name in ("evaluation.json", "examples.json"):
        mine, theirs = read_json(run_dir / name), read_json(Path(alone.run_dir) / name)
        np.testing.assert_allclose(numbers(mine), numbers(theirs), atol=TOLERANCE)
    cached = {"item_vectors"}  # by a single process alone
    own, others = ({path.name for path in Path(each).iterdir()} for each in (run_dir, alone.run_dir))
    assert own == others - cached
    assert all(path.name.isdigit() for path in (run_dir / "checkpoints").iterdir())


@pytest.mark.slow
def test_evaluate_and_models_split_across_processes(alone: Config, tmp_path: Path) -> None:
    """Four processes, two of which share each matrix product and the same rows, read what one process wrote."""
    run = Path(alone.run_dir)
    evaluate.evaluate(Run.open(run, alone), tmp_path / "one")
    command = verb("evaluate", run, "--out", tmp_path / "four", "--mesh.data", 2, "--mesh.tensor", 2)
    with Processes(command, 4, 1, tmp_path / "logs") as four:
        assert four.wait() == [0] * 4, four.said(0)
        assert "written" in four.said(0) and four.said(3) == ""
    mine, theirs = (read_json(tmp_path / name / "evaluation.json") for name in ("four", "one"))
    assert len(numbers(mine)) > 40
    np.testing.assert_allclose(numbers(mine), numbers(theirs), atol=TOLERANCE)


WHO = "from instructrec_jax.distributed import launch; import jax; launch.initialize(); print(jax.process_index())"


@pytest.mark.parametrize("launcher", ["SLURM", "Open MPI", "Open MPI 5"])
def test_launchers_tell_processes_apart(launcher: str, tmp_path: Path) -> None:
    """As jax itself reads these environments: two processes find each other, and know their numbers."""
    job = str(os.getpid())  # it picks the port
    names = {
        "SLURM": {
            **{"SLURM_JOB_ID": job, "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "{count}"},
            **{"SLURM_PROCID": "{number}", "SLURM_LOCALID": "{number}"},
        },
        "Open MPI": {
            **{"OMPI_MCA_orte_hnp_uri": f"{int(job) * 4096}.0;tcp://127.0.0.1:1", "OMPI_COMM_WORLD_SIZE": "{count}"},
            **{"OMPI_COMM_WORLD_RANK": "{number}", "OMPI_COMM_WORLD_LOCAL_RANK": "{number}"},
        },
        "Open MPI 5": {
            **{"COORDINATOR_ADDRESS": f"127.0.0.1:{20000 + int(job) % 20000}", "OMPI_COMM_WORLD_SIZE": "{count}"},
            **{"OMPI_COMM_WORLD_RANK": "{number}", "OMPI_COMM_WORLD_LOCAL_RANK": "{number}"},
        },
    }[launcher]
    with Processes([sys.executable, "-c", WHO], 2, 1, tmp_path / "logs", **names) as two:
        assert two.wait(60) == [0, 0], two.said(0) + two.said(1)
        assert [two.said(number) for number in range(2)] == ["0", "1"]


SLURM = dict(zip(launch.SLURM, ("7", "node[1-2]", "4", "3", "1"), strict=True))
BY_HAND = {"COORDINATOR_ADDRESS": "node1:8476", "PROCESS_ID": "1", "NUM_PROCESSES": "2"}


def test_a_process_without_launcher_is_alone() -> None:
    assert launch.settings_from({}) is None
    assert launch.settings_from(BY_HAND | {"PROCESS_ID": "0", "NUM_PROCESSES": "1"}) is None
    assert launch.settings_from(SLURM | {"SLURM_NTASKS": "1"}) is None
    assert launch.settings_from({"SLURM_NTASKS": "4", "SLURM_JOB_ID": "7"}) is None  # sbatch's own shell, without srun
    assert launch.settings_from(SLURM) == {}
    given = launch.settings_from(BY_HAND | SLURM)  # COORDINATOR_ADDRESS takes precedence
    assert given is not None and (given["process_id"], given["num_processes"]) == (1, 2)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"COORDINATOR_ADDRESS": "node1:8476"}, "PROCESS_ID and NUM_PROCESSES"),
        ({"COORDINATOR_ADDRESS": "node1:8476", "NUM_PROCESSES": "2"}, "PROCESS_ID"),
        ({"PROCESS_ID": "0", "NUM_PROCESSES": "2"}, "COORDINATOR_ADDRESS"),
        (BY_HAND | {"PROCESS_ID": "2"}, "PROCESS_ID.* 2"),
        (BY_HAND | {"PROCESS_ID": "one"}, "PROCESS_ID.*'one'"),
        (BY_HAND | {"COORDINATOR_ADDRESS": "node1"}, "COORDINATOR_ADDRESS.*host:port"),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}, "mpirun -x COORDINATOR_ADDRESS"),
    ],
)
def test_half_an_environment_is_an_error(environment: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        launch.settings_from(environment)


def test_a_verb_of_one_process_refuses_several(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in BY_HAND.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="export"):
        launch.refuse_others("export")


def test_shares_of_processes_that_are_not_connected(monkeypatch: pytest.MonkeyPatch) -> None:
    devices: dict[str, str] = {}
    monkeypatch.setattr(launch.jax.config, "update", devices.__setitem__)
    share = launch.independent_share
    assert share({}) == (0, 1)
    assert share({"PROCESS_ID": "1", "NUM_PROCESSES": "2"}) == share(BY_HAND) == (1, 2)
    assert share({"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}) == (0, 1)  # sbatch's own shell
    assert not devices
    assert share(SLURM) == (3, 4) and set(devices.values()) == {"1"}
    assert share({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}) == (1, 2)
    assert share(SLURM | {"PROCESS_ID": "0", "NUM_PROCESSES": "3"}) == (0, 3)
    monkeypatch.setattr(launch, "_on_a_tpu_machine", lambda _: True)
    pod = {"TPU_WORKER_HOSTNAMES": "a,b"}
    with pytest.raises(ValueError, match="TPU_PROCESS_BOUNDS"):
        share(pod)
    assert share(pod | {"TPU_PROCESS_BOUNDS": "1,1,1", "PROCESS_ID": "1", "NUM_PROCESSES": "2"}) == (1, 2)
    assert share({"TPU_WORKER_HOSTNAMES": "localhost"}) == (0, 1)
    for wrong in ({"PROCESS_ID": "1"}, {"PROCESS_ID": "2", "NUM_PROCESSES": "2"}):
        with pytest.raises(ValueError, match="PROCESS_ID"):
            share(wrong)


def test_a_packed_mixture_of_streams_resumes_on_another_number_of_processes(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Begun by one process, resumed by two: lines and weights of an undisturbed run."""
    config = tiny_run("classification", checkpoint, tmp_path, steps=12, tracking__log_every=3)
    source = config.data.train[0]
    streams = [replace(source, streaming=True, shuffle_block=5, weight=weight) for weight in (1.0, 2.0)]
    rows_of_batch = {"data__batch_size": None, "data__batch_rows": 8, "data__stream_window": 13}
    config = changed(config, data__train=streams, data__test=[], **rows_of_batch)
    whole = changed(config, run_dir=str(tmp_path / "whole"))
    train.train(whole)
    begun = iter(range(5))
    with monkeypatch.context() as patched:
        requested = property(lambda self: None if next(begun, None) is not None else "SIGTERM")
        patched.setattr(Interrupt, "requested", requested, raising=False)
        patched.setattr(Interrupt, "__init__", lambda self: setattr(self, "_before", {}))
        with pytest.raises(Interrupted, match="SIGTERM: saved step"):
            train.train(config)
    step = Checkpoints(Path(config.run_dir)).steps()[-1]
    assert 0 < step < 12
    command = verb("train", "--config_path", write_settings(config, tmp_path / "settings.yaml"))
    with Processes(command, 2, 4, tmp_path / "logs") as two:
        assert two.wait() == [0, 0], two.said(0) + two.said(1)
        assert f"resuming from step {step}" in two.said(0)
    assert_same_lines(Path(config.run_dir), Path(whole.run_dir))
    assert_close(final_parameters(config.run_dir, 12), final_parameters(whole.run_dir, 12), atol=TOLERANCE)
