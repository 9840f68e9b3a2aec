"""The GPU checks run at a small size without a GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from processes import with_devices

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_checks_run_in_small(checkpoint: Path) -> None:
    command = [sys.executable, "scripts/gpu_checks.py", "--model", str(checkpoint)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": with_devices(1)}
    options: dict = {"cwd": ROOT, "env": environment, "capture_output": True, "text": True, "timeout": 300}
    refused = subprocess.run(command, **options)
    assert refused.returncode != 0 and "--tiny" in refused.stderr
    done = subprocess.run([*command, "--tiny"], **options)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("tokens/s") >= 3 and "WRONG" not in done.stdout, done.stdout
