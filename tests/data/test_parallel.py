"""Blocks in worker processes: the same results, in order, with the errors of the first bad block."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from instructrec_jax.data.parallel import default_workers, in_order


def test_in_this_process() -> None:
    assert list(in_order(divmod, 17, [1, 2, 3], 1)) == [divmod(17, n) for n in (1, 2, 3)]
    assert list(in_order(divmod, 17, [], 4)) == []
    assert default_workers() >= 1


def test_without_room_for_temporary_files_this_process_works(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert list(in_order(divmod, 17, [1, 2, 3], 2)) == [divmod(17, n) for n in (1, 2, 3)]
    assert "temporary files" in caplog.text


# A script without `if __name__ == "__main__"`: workers must not run it again.
SCRIPT = """
import os, sys, time
sys.path.insert(0, {tests!r})
import worker_functions as f
from instructrec_jax.data.parallel import in_order
print("STARTED", flush=True)
"""
ORDER = """
found = list(in_order(f.slow_square, (3, os.getpid()), list(range(12)), 3))
assert [each[0] for each in found] == [3 * n * n for n in range(12)], found
assert len({each[1] for each in found}) > 1 and os.getpid() not in {each[1] for each in found}
seen = []
try:
    for each in in_order(f.fail_at, 5, list(range(20)), 2):
        seen.append(each)
except ValueError as error:
    assert str(error) == "block 5" and seen == [0, 1, 2, 3, 4], (error, seen)
else:
    raise AssertionError
try:
    list(in_order(f.die_at, 2, list(range(8)), 2))
except RuntimeError as error:
    assert "data.workers" in str(error)
else:
    raise AssertionError
print("FINE", flush=True)
"""
ENDLESS = """
for each in in_order(f.slow_square, (1, 0), list(range(10_000)), 2):
    print("PID", each[1], flush=True)
"""


def command(what: str) -> list[str]:
    return [sys.executable, "-c", SCRIPT.format(tests=str(Path(__file__).parents[1])) + what]


def test_in_other_processes() -> None:
    ran = subprocess.run(command(ORDER), capture_output=True, text=True, timeout=180)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == ["STARTED", "FINE"]


def test_workers_end_after_their_parent_was_killed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("w") as out, subprocess.Popen(command(ENDLESS), stdout=out, stderr=subprocess.STDOUT) as parent:
        deadline = time.monotonic() + 120
        while log.read_text().count("PID") < 6:
            assert parent.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        parent.send_signal(signal.SIGKILL)
    workers = {int(line.split()[1]) for line in log.read_text().splitlines() if line.startswith("PID ")}
    while any(os.path.exists(f"/proc/{worker}") for worker in workers):
        assert time.monotonic() < deadline, workers
        time.sleep(0.2)
