"""The memory of a machine whose CPU is the accelerator."""

import ctypes
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # of malloc.h
ACCELERATORS = ("nvidia[0-9]*", "kfd", "accel[0-9]*", "vfio/[0-9]*")  # below /dev: NVIDIA, AMD, TPU


def keep_freed_memory(environment: Mapping[str, str] = os.environ, devices: Path = Path("/dev")) -> bool:
    """Lets a step have the pages of the step before, where steps run on the CPU. Returns whether it did.

    XLA asks malloc for the buffers of each step anew. glibc maps large ones, and unmaps them after use, so that the
    kernel clears every page again in each step, which takes up to half of its time. One arena that maps nothing and
    gives nothing back (mallopt(3)) has them ready. In exchange, what has just been freed stays with the process until
    `release_freed_memory`.

    To be called before jax looks for devices, since each of its threads chooses an arena as it starts. Nothing changes
    where jax will find an accelerator, where malloc is not glibc's, or where the environment already tunes it.
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in environment):
        return False
    if platforms := environment.get("JAX_PLATFORMS"):
        on_cpu = platforms.split(",")[0] == "cpu"
    else:
        on_cpu = not any(any(devices.glob(name)) for name in ACCELERATORS)
    if not on_cpu:
        return False
    mallopt = _of_glibc("mallopt")
    return mallopt is not None and all([mallopt(M_MMAP_MAX, 0), mallopt(M_TRIM_THRESHOLD, -1), mallopt(M_ARENA_MAX, 1)])


def release_freed_memory() -> None:
    """Gives back what is free now, after something that needed memory of other sizes: a compilation, an evaluation.

    Else the next step could find no hole that is large enough, and take as much again.
    """
    if trim := _of_glibc("malloc_trim"):
        trim(0)


def _of_glibc(name: str) -> Callable[..., int] | None:
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
