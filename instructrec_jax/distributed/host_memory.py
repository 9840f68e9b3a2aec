"""Settings of malloc for training on the CPU."""

import ctypes
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # from malloc.h
ACCELERATORS = ("nvidia[0-9]*", "kfd", "accel[0-9]*", "vfio/[0-9]*")  # in /dev: NVIDIA, AMD, TPU


def keep_freed_memory(environment: Mapping[str, str] = os.environ, devices: Path = Path("/dev")) -> bool:
    """Configures glibc's malloc to keep freed memory, if training runs on the CPU. Returns whether it did.

    XLA allocates the buffers of each step again. glibc maps and unmaps large buffers, so the kernel clears all their
    pages in every step, which takes up to half of the step's time. With one arena, no mapping and no trimming
    (mallopt(3)) the pages are reused. In exchange, the process keeps freed memory until `release_freed_memory`.

    Call it before jax initializes its devices, because each of jax's threads chooses an arena when it starts. Nothing
    changes if jax will find an accelerator, if malloc is not glibc's, or if the environment already tunes malloc.
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in environment):
        return False
    if not runs_on_cpu(environment, devices):
        return False
    mallopt = _of_glibc("mallopt")
    return mallopt is not None and all([mallopt(M_MMAP_MAX, 0), mallopt(M_TRIM_THRESHOLD, -1), mallopt(M_ARENA_MAX, 1)])


def runs_on_cpu(environment: Mapping[str, str] = os.environ, devices: Path = Path("/dev")) -> bool:
    """Whether jax will find no accelerator, or is told to use none. It need not have been started."""
    if platforms := environment.get("JAX_PLATFORMS"):
        return platforms.split(",")[0] == "cpu"
    return not any(any(devices.glob(name)) for name in ACCELERATORS)


def release_freed_memory() -> None:
    """Returns free memory to the system, after a compilation or an evaluation, which need buffers of other sizes.

    Otherwise the next step may find no free block that is large enough and allocate its buffers on top.
    """
    if trim := _of_glibc("malloc_trim"):
        trim(0)


def _of_glibc(name: str) -> Callable[..., int] | None:
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
