"""Several real processes as one program."""

import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import jax
import pytest

import instructrec_jax
from instructrec_jax.data import shares, store

T = TypeVar("T")

PATIENCE = 180  # seconds until a process that still runs is killed


def with_devices(count: int) -> str:
    """XLA_FLAGS of a process with virtual devices, which compiles as quickly as the tests do; the last flag counts."""
    return f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={count}"


class Processes:
    """Runs a command in several processes on this machine, with virtual devices each."""

    def __init__(self, command: list[str], count: int, devices: int, folder: Path, **environment: str):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        flags = with_devices(devices)
        folder.mkdir(parents=True, exist_ok=True)
        self.logs = [folder / f"{len(list(folder.iterdir()))}-{number}.log" for number in range(count)]
        self.all: list[subprocess.Popen[bytes]] = []
        for number, log in enumerate(self.logs):
            names = {"COORDINATOR_ADDRESS": address, "PROCESS_ID": str(number), "NUM_PROCESSES": str(count)}
            cache = {"JAX_COMPILATION_CACHE_DIR": str(folder.parent / "compiled")}
            own = {name: value.format(number=number, count=count) for name, value in environment.items()} or names
            with log.open("w") as file:
                self.all.append(
                    subprocess.Popen(
                        command,
                        stdout=file,
                        stderr=subprocess.STDOUT,
                        cwd=Path(instructrec_jax.__file__).parents[1],
                        env=os.environ | cache | {"XLA_FLAGS": flags} | own,
                    )
                )

    def said(self, number: int) -> str:
        """What a process printed, without gloo's greetings."""
        return "\n".join(x for x in self.logs[number].read_text().splitlines() if "peer ranks" not in x)

    def everything(self) -> str:
        return "\n".join(map(self.said, range(len(self.all))))

    def wait_for(self, condition: Callable[[], Any]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition() and time.monotonic() < deadline:
            assert all(process.poll() is None for process in self.all), self.everything()
            time.sleep(0.01)
        assert condition(), self.everything()

    def wait(self, seconds: float = PATIENCE) -> list[int]:
        """Exit statuses; those of processes that hang are −SIGKILL."""
        deadline = time.monotonic() + seconds
        for process in self.all:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        return [process.returncode for process in self.all]

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *error: Any) -> None:
        for process in self.all:
            process.kill()
            process.wait()


def as_processes(patch: pytest.MonkeyPatch, count: int, work: Callable[[int], T]) -> list[T]:
    """work(process number) in threads that take themselves for the processes of one program, as stores see it."""
    mine, told, meeting = threading.local(), [b""] * count, threading.Barrier(count, timeout=PATIENCE)

    def exchange(own: bytes) -> list[bytes]:
        told[mine.number] = own
        meeting.wait()
        found = list(told)
        meeting.wait()
        return found

    def run(number: int) -> T:
        mine.number = number
        try:
            return work(number)
        except BaseException:
            meeting.abort()
            raise

    with patch.context() as patched, ThreadPoolExecutor(count) as threads:
        patched.setattr(jax, "process_index", lambda: mine.number)
        patched.setattr(jax, "process_count", lambda: count)
        for module in (shares, store):
            patched.setattr(module, "exchange", exchange)
            patched.setattr(module, "barrier", lambda name: meeting.wait())
        return list(threads.map(run, range(count)))
