"""The verbs keep freed memory on machines without accelerators, and nobody else's process is touched."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from instructrec_jax.distributed.host_memory import keep_freed_memory, release_freed_memory

FAULTS = """
import ctypes, resource, sys, threading

from instructrec_jax.runs.config import main_guard

if {is_verb}:
    sys.argv = ["verb"]
    main_guard(lambda args: None)
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes, libc.memset.argtypes = (
    ctypes.c_void_p, [ctypes.c_void_p], [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t],
)

def step():
    buffer = libc.malloc(64 << 20)
    libc.memset(buffer, 1, 64 << 20)
    libc.free(buffer)

def steps():
    step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

thread = threading.Thread(target=steps)  # as jax's: they have arenas of their own
thread.start()
thread.join()
"""


def environment(**names: str) -> dict[str, str]:
    kept = {n: v for n, v in os.environ.items() if not n.startswith("MALLOC_") and n != "GLIBC_TUNABLES"}
    return kept | {"JAX_PLATFORMS": "cpu"} | names


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc is not glibc's")
def test_a_verb_uses_its_pages_again() -> None:
    def faults(is_verb: bool, **names: str) -> int:
        command = [sys.executable, "-c", FAULTS.format(is_verb=is_verb)]
        return int(subprocess.run(command, env=environment(**names), capture_output=True, check=True).stdout)

    assert faults(True) < 10
    # a program of somebody else, and a verb whose user tunes malloc; huge pages, where they come unasked, are 32
    assert min(faults(False), faults(True, MALLOC_TOP_PAD_="0")) > 25


@pytest.mark.parametrize(
    ("names", "device"),
    [
        ({"JAX_PLATFORMS": "cuda,cpu"}, ""),
        ({}, "nvidia0"),
        ({}, "accel0"),
        ({}, "vfio/0"),
        ({"MALLOC_ARENA_MAX": "2"}, ""),
    ],
)
def test_nothing_changes(tmp_path: Path, names: dict[str, str], device: str) -> None:
    if device:
        (tmp_path / device).parent.mkdir(exist_ok=True)
        (tmp_path / device).touch()
    assert not keep_freed_memory(names, tmp_path)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc is not glibc's")
def test_freed_memory_is_given_back() -> None:
    """Also from below what is still in use."""

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    pieces = [bytearray(100_000) for _ in range(2_000)]  # too small to be maps of their own
    kept = pieces[-1]
    before = resident()
    del pieces
    release_freed_memory()
    assert resident() < before - 150_000_000 and len(kept) == 100_000
