"""Compiled programs on disk: the next start of the same run reads them.

jax's persistent compilation cache, with a folder of its own for each kind of processor, as XLA's programs for CPUs have
the instructions of the one that compiled them. JAX_COMPILATION_CACHE_DIR is used in its place, as it is, and
JAX_ENABLE_COMPILATION_CACHE=false turns it off.
"""

import hashlib
import os
import platform
import re
import time
import warnings
from collections.abc import Mapping
from pathlib import Path

import jax

from instructrec_jax.distributed.host_memory import runs_on_cpu
from instructrec_jax.distributed.launch import settings_from
from instructrec_jax.files import cache_folder

MOST_BYTES = 2 * 2**30
MOST_PROGRAMS = 512  # each program that is added costs a look at all of them
HALF_WRITTEN_SECONDS = 600  # a program without a time of use is that of a process that was killed while it wrote


def keep_programs(folder: Path | None = None) -> None:
    """Keeps compiled programs in `folder`, whatever their number; None: in the package's cache folder, at most
    `MOST_BYTES` of those used last.

    Call it before the first program is compiled. Nothing changes where jax's settings name a folder or turn its cache
    off, nor on several devices of CPUs, whose programs may wait for each other for ever after they were read. A folder
    that cannot be written is a warning.
    """
    is_default = folder is None
    if is_default and (jax.config.values["jax_compilation_cache_dir"] is not None or not _is_safe(os.environ)):
        return
    if not jax.config.values["jax_enable_compilation_cache"]:
        return
    folder = folder or cache_folder() / "compiled" / processor()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(f"{folder} cannot be written")
        if is_default:
            _sweep(folder)
    except OSError as error:
        name = "XDG_CACHE_HOME" if is_default else "cache"
        warnings.warn(f"compiled programs are not kept: {error}. Set {name} to a folder of your own.", stacklevel=2)
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", MOST_BYTES if is_default else -1)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """A name for the processors that can run the same programs."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    kept = ("model name", "flags", "Features", "CPU part")
    said = sorted({line for line in lines if line.partition(":")[0].strip() in kept}) or [platform.processor()]
    digest = hashlib.sha256("\n".join(said).encode()).hexdigest()
    return f"{platform.machine()}-{digest[:12]}"


def _is_safe(environment: Mapping[str, str]) -> bool:
    """Whether a program that was read does what one that was compiled does: not for collectives on CPUs."""
    if not runs_on_cpu(environment):
        return True
    forced = re.search(r"xla_force_host_platform_device_count=(\d+)", environment.get("XLA_FLAGS", ""))
    devices = int(forced[1]) if forced else jax.config.values["jax_num_cpu_devices"]
    return devices <= 1 and settings_from(environment) is None


def _sweep(folder: Path) -> None:
    """Deletes what a killed process left half-written, and all but the programs used last."""
    found = []
    for program in folder.glob("*-cache"):
        used = program.with_name(program.name.removesuffix("-cache") + "-atime")
        try:
            found.append((int.from_bytes(used.read_bytes(), "little"), program, used))
        except FileNotFoundError:
            if time.time() - program.stat().st_mtime > HALF_WRITTEN_SECONDS:
                program.unlink(missing_ok=True)
    for _, program, used in sorted(found, reverse=True)[MOST_PROGRAMS:]:
        program.unlink(missing_ok=True)
        used.unlink(missing_ok=True)
