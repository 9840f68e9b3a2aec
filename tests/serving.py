"""A running service, as a process of its own."""

import json
import re
import signal
import sys
import urllib.request
from pathlib import Path
from typing import Any

from processes import Processes

from instructrec_jax.service.keys import add_key


def key_file(folder: Path, **limits: Any) -> tuple[Path, str]:
    """A file with one key, and the key."""
    path = folder / "keys.json"
    return path, add_key(path, "tester", **limits)


class Serving(Processes):
    """`serve` with these arguments (`log`: the file of its log), once it is ready; killed when the block ends.

    Attributes:
      port: where it listens.
    """

    def __init__(self, folder: Path, *args: str, log: Path | None = None):
        port = [] if "--port" in args else ["--port", "0"]
        flags = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"  # as in conftest.py
        command = [sys.executable, "-m", "instructrec_jax.serve", *args, *port]
        super().__init__(command, 1, 1, folder, XLA_FLAGS=flags)
        self.log = log or self.logs[0]
        try:
            self.wait_for(lambda: self.log.exists() and '"message": "ready"' in self.log.read_text())
        except BaseException:
            self.__exit__()  # nobody has entered the block
            raise
        found = re.search(r"https?://[\w.:]+:(\d+)", self.log.read_text())
        assert found is not None, self.said(0)
        self.port = int(found[1])

    def get(self, path: str, key: str = "") -> Any:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", headers=headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def memory(self) -> int:
        """Resident memory in bytes."""
        status = Path(f"/proc/{self.all[0].pid}/status").read_text()
        return 1024 * int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0])

    def stop(self) -> int:
        """The exit status after SIGTERM."""
        self.all[0].send_signal(signal.SIGTERM)
        return self.wait()[0]
