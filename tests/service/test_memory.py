"""Memory: of the container where it has a limit, else of the machine."""

import math
from pathlib import Path
from typing import cast

import jax
import pytest

from instructrec_jax.service.memory import device_memory, machine_memory


def write(root: Path, name: str, text: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)


def test_the_memory_of_a_container_of_a_machine_and_of_neither(tmp_path: Path) -> None:
    assert math.isnan(machine_memory(tmp_path))
    write(tmp_path, "proc/meminfo", "MemTotal:       1000 kB\nMemFree:  10 kB\nMemAvailable:    400 kB\n")
    assert machine_memory(tmp_path) == pytest.approx(0.6)
    for name, text in {"max": "max\n", "current": "300\n", "stat": "anon 150\ninactive_file 50\n"}.items():
        write(tmp_path, f"sys/fs/cgroup/memory.{name}", text)
    assert machine_memory(tmp_path) == pytest.approx(0.6)
    write(tmp_path, "sys/fs/cgroup/memory.max", "500\n")
    assert machine_memory(tmp_path) == pytest.approx(0.5)


def test_devices_that_tell_and_devices_that_do_not() -> None:
    class Device:
        def __init__(self, stats: dict[str, int] | None):
            self.memory_stats = lambda: stats

    assert device_memory(cast(jax.Device, Device(None))) == {}
    assert device_memory(cast(jax.Device, Device({"bytes_in_use": 1}))) == {}
    assert device_memory(cast(jax.Device, Device({"bytes_in_use": 1, "bytes_limit": 4}))) == {"used": 1, "limit": 4}
