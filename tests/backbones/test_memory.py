"""The host's memory while a checkpoint is read and written, in a process of its own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is read from Linux's /proc")
@pytest.mark.slow
def test_reading_and_writing_hold_little_beside_the_parameters():
    """bf16 files that become fp32 on two devices: the largest slice has 20 MB, the largest tensor 41 MB.

    Written, a tensor is held twice: the devices' copy is in the same memory on CPU. Some MB are noise.
    """
    sizes = dict(layers=4, width=256, vocab=40_000, devices=2, dtype="bfloat16", shard_mb=12)
    options = [word for name, value in sizes.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    command = [sys.executable, "scripts/benchmark.py", "loading", *options]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = re.fullmatch(
        r"(\d+) files, .*= ([\d.]+) largest slices.*= ([\d.]+) largest tensors\n", done.stdout, re.DOTALL
    )
    assert found, done.stdout
    files, slices, tensors = map(float, found.groups())
    assert files > 1 and slices <= 2 and tensors <= 2.5, done.stdout
