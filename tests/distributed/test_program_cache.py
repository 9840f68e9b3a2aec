"""Compiled programs are kept on disk: where, how many, and what must not be kept."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from program_caches import CACHE, SMALLEST, jax_settings_kept
from tiny_runs import tiny_run

from instructrec_jax.distributed import program_cache
from instructrec_jax.distributed.program_cache import keep_programs, processor
from instructrec_jax.runs.config import to_yaml


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    """As in a process that was just started on a CPU with one device, with an empty cache folder."""
    with jax_settings_kept():
        jax.config.update(CACHE[0], None)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.setenv("JAX_PLATFORMS", "cpu")
        monkeypatch.delenv("XLA_FLAGS", raising=False)
        yield


def folder_of(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "instructrec_jax" / "compiled" / processor()


def test_programs_are_kept_by_default(fresh: object, tmp_path: Path) -> None:
    keep_programs()
    assert getattr(jax.config, CACHE[0]) == str(folder_of(tmp_path)) and folder_of(tmp_path).is_dir()
    assert getattr(jax.config, CACHE[1]) == 2 * 2**30
    assert [getattr(jax.config, name) for name in SMALLEST] == [0.0, -1]


def test_a_folder_of_the_users_is_used_as_it_is(fresh: object, tmp_path: Path) -> None:
    jax.config.update(CACHE[0], "/mine")
    keep_programs()
    assert getattr(jax.config, CACHE[0]) == "/mine" and not folder_of(tmp_path).exists()


def test_a_named_folder_has_no_bound(fresh: object, tmp_path: Path) -> None:
    keep_programs(tmp_path / "shared")
    assert getattr(jax.config, CACHE[0]) == str(tmp_path / "shared") and getattr(jax.config, CACHE[1]) == -1


@pytest.mark.parametrize(
    "environment",
    [
        {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"},
        {"COORDINATOR_ADDRESS": "localhost:1", "PROCESS_ID": "0", "NUM_PROCESSES": "2"},
    ],
)
def test_no_programs_of_several_processors(
    environment: dict[str, str], fresh: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With collectives on CPUs, a program that was read may wait for ever."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    keep_programs()
    assert getattr(jax.config, CACHE[0]) is None
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    keep_programs()
    assert getattr(jax.config, CACHE[0]) == str(folder_of(tmp_path))


def test_one_forced_device_is_one(fresh: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=1")
    keep_programs()
    assert getattr(jax.config, CACHE[0]) == str(folder_of(tmp_path))


def test_jaxs_own_switch_turns_it_off(fresh: object) -> None:
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        keep_programs()
    finally:
        jax.config.update("jax_enable_compilation_cache", True)
    assert getattr(jax.config, CACHE[0]) is None


def test_a_folder_that_cannot_be_made_is_a_warning(
    fresh: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="are not kept.*XDG_CACHE_HOME"):
        keep_programs()
    assert getattr(jax.config, CACHE[0]) is None


def test_old_and_half_written_programs_are_deleted(
    fresh: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its time of use, jax 0.10 could not add a program to any folder that has such a one."""
    monkeypatch.setattr(program_cache, "MOST_PROGRAMS", 2)
    folder = folder_of(tmp_path)
    folder.mkdir(parents=True)
    for name, used in {"a": 3, "b": 1, "c": 2}.items():
        (folder / f"{name}-cache").write_bytes(b"x")
        (folder / f"{name}-atime").write_bytes(used.to_bytes(8, "little"))
    for name in ("killed", "writing"):
        (folder / f"{name}-cache").write_bytes(b"x")
    os.utime(folder / "killed-cache", (0, 0))
    keep_programs()
    assert sorted(path.name for path in folder.iterdir()) == [
        "a-atime",
        "a-cache",
        "c-atime",
        "c-cache",
        "writing-cache",
    ]


def test_processors_with_other_instructions_share_nothing(tmp_path: Path) -> None:
    names = []
    for flags in ("avx avx2", "avx avx2 avx512f"):
        said = f"processor\t: 0\nmodel name\t: A\ncpu MHz\t: 1\nflags\t: {flags}\n"
        (tmp_path / "one").write_text(said)
        (tmp_path / "two").write_text(said.replace("MHz\t: 1", "MHz\t: 2") * 2)
        assert processor(tmp_path / "one") == processor(tmp_path / "two")
        names.append(processor(tmp_path / "one"))
    assert len({*names, processor(tmp_path / "none")}) == 3


def test_the_second_start_of_a_run_compiles_nothing(checkpoint: Path, tmp_path: Path) -> None:
    """As a user starts it; also two at once, in one folder."""
    config = tiny_run("classification", checkpoint, tmp_path, steps=2, evaluation__every=0, data__test=[])
    (tmp_path / "run.yaml").write_text(to_yaml(config))
    flags = "--xla_backend_optimization_level=0"  # of one device
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), "XLA_FLAGS": flags}

    def start(name: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "instructrec_jax.train", str(tmp_path / "run.yaml"), "--run_dir"]
        return subprocess.Popen(
            [*command, str(tmp_path / name)],
            env=environment,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )

    def compiled(name: str) -> int:
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        return max(line["compilations"] for line in lines if line["kind"] == "train")

    both = [start("one"), start("two")]
    for process in both:
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said
    assert compiled("one") + compiled("two") > 0 and list(folder_of(tmp_path).glob("*-cache"))
    again = start("three")
    _, said = again.communicate(timeout=300)
    assert again.returncode == 0, said
    assert compiled("three") == 0
    assert "step_shapes" in (tmp_path / "three" / "metrics.jsonl").read_text()
