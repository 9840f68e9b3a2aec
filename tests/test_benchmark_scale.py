"""`scripts/benchmark_scale.py` runs both of its tables on small data."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_both_tables(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    for command, rows in (("prepare", 1), ("evaluate", 3)):
        arguments = [sys.executable, ROOT / "scripts/benchmark_scale.py", command, "--out", tmp_path, "--sizes", "5000"]
        done = subprocess.run(
            [*map(str, arguments), "--instructions", "interactions"],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        table = [line for line in done.stdout.splitlines() if line.startswith("| ")]
        assert len(table) == rows + 1 and len({line.count("|") for line in table}) == 1
