"""The benchmark of training steps runs both systems and compares them."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from processes import with_devices

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("workload", [pytest.param("encoder", marks=pytest.mark.slow), "encoder_fixed"])
def test_both_systems_train_on_the_same_texts(workload: str, checkpoint: Path, tmp_path: Path) -> None:
    data = tmp_path / "instructions.jsonl"
    words = ["a film about love", "war", "space and crime", "the long music of a film about war"]
    data.write_text("\n".join(json.dumps({"instruction": words[n % 4], "output": "x"}) for n in range(64)))
    command = [sys.executable, "scripts/benchmark_training.py", workload, "--model", str(checkpoint)]
    options = ["--data", str(data), "--rounds", "1", "--steps", "2", "--threads", "1"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": with_devices(1)}
    done = subprocess.run([*command, *options], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    losses = [float(x) for x in re.findall(r"first loss ([\d.]+)", done.stdout)]
    assert len(losses) == 2 and all(1 < loss < 5 for loss in losses), done.stdout  # near ln 10
    assert re.search(r"ours / PyTorch: median [\d.]+, rounds [\d.]+", done.stdout), done.stdout
    assert ("input pipeline" in done.stdout) == (workload == "encoder")
