"""How full the memory is: of the devices, and of the machine or container.

Why our own: psutil tells the machine's memory also within a container, which is ended at the limit of its cgroup.
"""

from pathlib import Path

import jax


def device_memory(device: jax.Device) -> dict[str, float]:
    """Bytes of a device: used and limit; empty for one that does not tell, such as a CPU."""
    stats = device.memory_stats() or {}
    if "bytes_in_use" not in stats or "bytes_limit" not in stats:
        return {}
    return {"used": float(stats["bytes_in_use"]), "limit": float(stats["bytes_limit"])}


def machine_memory(root: Path = Path("/")) -> float:
    """Share of the memory that is in use, 0 to 1: of the cgroup (v2) if it has a limit, else of the machine (Linux).

    Memory that the kernel can take back, such as cached files, is not in use. NaN on other systems.

    Args:
      root: the folder with proc and sys.
    """
    group = root / "sys/fs/cgroup"
    try:
        limit = (group / "memory.max").read_text().strip()
        if limit != "max":
            used = int((group / "memory.current").read_text()) - _values(group / "memory.stat")["inactive_file"]
            return used / int(limit)
    except OSError:
        pass  # no cgroup v2, or the root group, which has no limit
    try:
        found = _values(root / "proc/meminfo")
    except OSError:
        return float("nan")
    return 1 - found["MemAvailable"] / found["MemTotal"]


def _values(path: Path) -> dict[str, int]:
    rows = (line.replace(":", " ").split() for line in path.read_text().splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) > 1}
