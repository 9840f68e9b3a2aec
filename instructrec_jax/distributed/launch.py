"""Multi-process programs: initialization, collective operations, and the end of all processes when one dies.

Every process runs the same code with the same settings. All processes compute; only the first writes the run directory
and prints. They share one file system or a bucket; prepared data need neither (`data.shares`).
"""

import atexit
import logging
import os
import re
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn, TextIO, TypedDict, TypeVar, overload

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.typing import ArrayLike

from instructrec_jax.extras import installed
from instructrec_jax.remote import with_urls

T = TypeVar("T")
HEARTBEAT_SECONDS = 60  # a process without a heartbeat for this long counts as dead
SHUTDOWN_SECONDS = 300  # how long a finished process waits for the others
EXCHANGE_BYTES = 1 << 22  # that a process sends at a time
SHARED_SECONDS = 60  # maximum delay until a network file system shows another machine's files

ADDRESS, NUMBER, COUNT = "COORDINATOR_ADDRESS", "PROCESS_ID", "NUM_PROCESSES"
# Variables that jax's own cluster detection reads: if all are set (with more than one process), jax needs no arguments.
SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
OPEN_MPI = ("OMPI_MCA_orte_hnp_uri", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK")
RANKS = {  # launcher -> variables of the process number, the process count and the number within a machine
    "Open MPI": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    "SLURM": ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
}


# ---------------------------------------------------------------- initialization


class ProcessSettings(TypedDict, total=False):
    """Arguments of `jax.distributed.initialize`; jax detects those that are left out."""

    coordinator_address: str
    process_id: int
    num_processes: int
    local_device_ids: int | None
    cluster_detection_method: str


def settings_from(environment: Mapping[str, str]) -> ProcessSettings | None:
    """Arguments for `jax.distributed.initialize`, or None for a single process.

    Order of precedence: COORDINATOR_ADDRESS (host:port of the first process) with PROCESS_ID and NUM_PROCESSES, or with
    the equivalents of Open MPI and SLURM; Open MPI and SLURM alone; a TPU machine, which knows its pod.

    Raises:
      ValueError: only some of the variables are set; the error names the missing ones.
    """
    if any(environment.get(name) for name in (ADDRESS, NUMBER, COUNT)):
        return _by_hand(environment)
    for launcher, names in (("Open MPI", OPEN_MPI), ("SLURM", SLURM)):
        count = environment.get(RANKS[launcher][1])
        if count is None or int(count) == 1:
            continue
        if all(name in environment for name in names):
            return {}
        if launcher == "Open MPI":  # version 5 and later do not publish the first process's address
            raise ValueError(
                f"Open MPI started {count} processes without the address of the first one: set {ADDRESS} to its host "
                f"and a free port, as in `mpirun -x {ADDRESS}=node1:8476 ...`."
            )
    return {} if _on_a_tpu_machine(environment) else None


def _by_hand(environment: Mapping[str, str]) -> ProcessSettings | None:
    found = {name: environment[name] for name in (ADDRESS, NUMBER, COUNT) if environment.get(name)}
    local = None
    if ADDRESS in found and len(found) == 1:
        for number, count, of_machine in RANKS.values():
            if count in environment and number in environment:
                found |= {NUMBER: environment[number], COUNT: environment[count]}
                local = int(environment[of_machine]) if of_machine in environment else None
                break
    if missing := [name for name in (ADDRESS, NUMBER, COUNT) if name not in found]:
        raise ValueError(
            f"{', '.join(found)} is set without {' and '.join(missing)}: several processes need {ADDRESS} (host:port "
            f"of the first one), {NUMBER} (0, 1, ...) and {COUNT}. To run a single process, unset all three."
        )
    address, numbers = found[ADDRESS], {}
    for name in (NUMBER, COUNT):
        if not found[name].isdecimal():
            raise ValueError(f"{name} must be a number, but is {found[name]!r}.")
        numbers[name] = int(found[name])
    if not address.rpartition(":")[0] or not address.rpartition(":")[2].isdecimal():
        raise ValueError(f"{ADDRESS} must be host:port of the first process, but is {address!r}.")
    if numbers[NUMBER] >= numbers[COUNT]:
        raise ValueError(f"{NUMBER} is {numbers[NUMBER]}, but must be below {COUNT}, which is {numbers[COUNT]}.")
    if numbers[COUNT] == 1:
        return None
    return {
        "coordinator_address": address,
        "process_id": numbers[NUMBER],
        "num_processes": numbers[COUNT],
        "local_device_ids": local,
        "cluster_detection_method": "deactivate",
    }


def _is_pod(environment: Mapping[str, str]) -> bool:
    return "," in environment.get("TPU_WORKER_HOSTNAMES", "")


def _on_a_tpu_machine(environment: Mapping[str, str]) -> bool:
    if environment.get("JAX_PLATFORMS", "tpu").split(",")[0] != "tpu" or not installed("libtpu"):
        return False
    if not [*Path("/dev").glob("accel[0-9]*"), *Path("/dev").glob("vfio/[0-9]*")]:
        return False
    named = "TPU_WORKER_HOSTNAMES" in environment or "TPU_PROCESS_ADDRESSES" in environment
    return named or "TPU_SKIP_MDS_QUERY" not in environment


def initialize() -> None:
    """Connects the processes that the environment describes, if any. Call it before using any device.

    Raises:
      ValueError: the environment sets only some of the variables.
      ConnectionError: the other processes could not be reached.
    """
    settings = settings_from(os.environ)
    if settings is None:
        return
    _start_watchdog()
    try:
        jax.distributed.initialize(
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS, shutdown_timeout_seconds=SHUTDOWN_SECONDS, **settings
        )
    except RuntimeError as error:
        raise ConnectionError(
            f"the processes of this run could not connect ({error}). Start all of them within five minutes, each with "
            f"its own number; the first must be reachable at {settings.get('coordinator_address', 'its host')}."
        ) from error
    if not is_first():
        logging.getLogger("instructrec_jax").setLevel(logging.ERROR)  # the first one warns for all


def independent_share(environment: Mapping[str, str]) -> tuple[int, int]:
    """(number from 0, count) of this process, of a verb whose processes share rows and need no connection.

    By PROCESS_ID and NUM_PROCESSES (COORDINATOR_ADDRESS is not needed), else as Open MPI or SLURM numbers them; each
    process uses the devices of its machine, on which a launcher with several processes gives each the device of its
    number there. Call it before using any device.

    Raises ValueError where only one of the variables is set, a number is out of range, or the hosts of a TPU pod are
    not set apart.
    """
    if _is_pod(environment) and _on_a_tpu_machine(environment) and "TPU_PROCESS_BOUNDS" not in environment:
        raise ValueError(
            "the hosts of a TPU pod share their devices: to give each its own, set TPU_PROCESS_BOUNDS=1,1,1 and the "
            f"chips of a host, TPU_CHIPS_PER_PROCESS_BOUNDS=2,2,1 for four, beside {NUMBER} (0, 1, ...) and {COUNT}."
        )
    local = None
    names = {name: environment[name] for name in (NUMBER, COUNT) if environment.get(name)}
    if len(names) == 1:
        raise ValueError(f"{next(iter(names))} is set alone: set {NUMBER} (0, 1, ...) and {COUNT}, or neither.")
    for launcher, needed in (("Open MPI", RANKS["Open MPI"][:2]), ("SLURM", SLURM)):
        if not names and all(environment.get(name) for name in needed):
            number, count, of_machine = RANKS[launcher]
            names, local = {NUMBER: environment[number], COUNT: environment[count]}, environment.get(of_machine)
    settings = _by_hand({ADDRESS: "localhost:0", **names}) if names else None
    if settings is None:
        return 0, 1
    if local is not None:
        jax.config.update("jax_cuda_visible_devices", local)
        jax.config.update("jax_rocm_visible_devices", local)
    return settings["process_id"], settings["num_processes"]


def refuse_others(verb: str) -> None:
    """Raises ValueError if the environment starts several processes of a single-process verb."""
    if settings_from(os.environ) is not None and not _on_a_tpu_machine(os.environ):
        raise ValueError(
            f"{verb} runs in one process, on the devices of one machine, but the environment starts several: start it "
            f"once, without {COUNT}, srun or mpirun."
        )


def is_first() -> bool:
    """Whether this is the process that writes files and prints."""
    return jax.process_index() == 0


# ---------------------------------------------------------------- collective operations


def barrier(name: str) -> None:
    """Blocks until all processes arrive."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def exchange(mine: bytes) -> list[bytes]:
    """The bytes of each process, by its number. All processes call it alike, while none of them computes a step."""
    if jax.process_count() == 1:
        return [mine]
    sizes = multihost_utils.process_allgather(np.array([len(mine)], np.int32)).ravel()
    found: list[list[bytes]] = [[] for _ in sizes]
    for start in range(0, int(sizes.max()), EXCHANGE_BYTES):
        length = min(EXCHANGE_BYTES, int(sizes.max()) - start)
        piece = np.zeros(length, np.uint8)
        own = np.frombuffer(mine[start : start + length], np.uint8)
        piece[: len(own)] = own
        for process, row in enumerate(np.asarray(multihost_utils.process_allgather(piece))):
            found[process].append(row[: max(0, int(sizes[process]) - start)].tobytes())
    return [b"".join(pieces) for pieces in found]


def once(do: Callable[[], object]) -> None:
    """Runs `do` in the first process; the others wait until it returns."""
    barrier("before")  # no process still reads what `do` changes
    if is_first():
        do()
    barrier("after")


def say(text: str, file: TextIO | None = None) -> None:
    """Prints `text` in the first process only, to stderr by default."""
    if is_first():
        print(with_urls(text), file=sys.stderr if file is None else file, flush=True)


@overload
def place(tree: np.ndarray | np.generic | jax.Array, shardings: jax.sharding.Sharding) -> jax.Array: ...
@overload
def place(tree: dict[str, np.ndarray], shardings: object) -> dict[str, jax.Array]: ...
@overload
def place(tree: T, shardings: object) -> T: ...
def place(tree: object, shardings: object) -> object:
    """Like `jax.device_put`, for values that are equal in every process; unlike it, does not check that they are.

    Args:
      shardings: a tree like `tree`, or one sharding for all of its leaves.
    """
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)
    if isinstance(shardings, jax.sharding.Sharding):
        one = shardings
        shardings = jax.tree.map(lambda _: one, tree)

    def put(value: np.ndarray | np.generic | jax.Array, sharding: jax.sharding.Sharding) -> jax.Array:
        if isinstance(value, jax.Array) and not value.is_fully_addressable:
            return jax.device_put(value, sharding)
        host = np.asarray(value)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(put, tree, shardings)


def fetch(array: ArrayLike) -> np.ndarray:
    """The whole array as NumPy, in every process."""
    if not isinstance(array, jax.Array) or array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def check_shared(path: Path, text: str) -> None:
    """Raises ValueError if this process does not see the first process's file `path` with the content `text`."""
    deadline = time.monotonic() + SHARED_SECONDS
    while not (path.is_file() and path.read_text(encoding="utf-8") == text):
        if time.monotonic() > deadline:
            raise ValueError(
                f"process {jax.process_index()} does not see process 0's {path}: put {path.parent} on a file system "
                "that all machines share (NFS or a mounted bucket)."
            )
        time.sleep(0.5)


# ---------------------------------------------------------------- failures


# Prints its argument if its standard input closes without any text. It ignores signals sent to the process group.
_WATCHDOG = """
import signal, sys
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, signal.SIG_IGN)
if not sys.stdin.read():
    print(sys.argv[1], file=sys.stderr)
"""
AGAIN = "Start all processes again with the same command: training resumes from the last checkpoint."
_watchdogs: list[subprocess.Popen[str]] = []


def _start_watchdog() -> None:
    """Starts a process that explains what to do if this one ends without a message, by SIGKILL or through jax.

    When a process dies, stops responding or never starts, jax aborts the others (`abort`) wherever they are.
    """
    text = (
        f"error: process {os.environ.get(NUMBER, '')} (pid {os.getpid()} on {socket.gethostname()}) was terminated. If "
        "jax reports above that it lost its distributed service or another task, then another process died, lost its "
        "machine or was never started: see the output of that process. If there is no report, this process was killed "
        f"(possibly out of memory). {AGAIN}"
    )
    command = [sys.executable, "-S", "-c", _WATCHDOG, text]
    _watchdogs.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True))
    atexit.register(_stop_watchdog)


def _stop_watchdog() -> None:
    while _watchdogs:
        _watchdogs.pop().communicate("clean exit")


@contextmanager
def guard(passing: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Ends this process at once if the code inside fails; does nothing in a single-process program.

    An ordinary exit would wait for the other processes (a checkpoint being written, the interpreter's shutdown), and so
    possibly for a dead one.

    Args:
      passing: errors that occur in all processes alike; they are raised as usual.
    """
    try:
        yield
    except BaseException as error:
        alike = isinstance(error, (SystemExit, *passing)) and not is_loss_of_another(error)
        if alike or not jax.distributed.is_initialized():
            raise
        end(error)


def is_loss_of_another(error: BaseException) -> bool:
    """Whether an error reports the loss of another process; jax uses several classes for it, including ValueError."""
    text = str(error)
    return jax.distributed.is_initialized() and (
        re.search("gloo|nccl|coordination.?service|barrier|heartbeat", text, re.IGNORECASE) is not None
        or (isinstance(error, jax.errors.JaxRuntimeError) and text.startswith(("UNAVAILABLE", "ABORTED", "CANCELLED")))
    )


def end(error: BaseException) -> NoReturn:
    """Prints the error and exits without waiting for the other processes, which notice it."""
    where = f"process {jax.process_index()} of {jax.process_count()}"
    code = 1
    if is_loss_of_another(error):
        first_line = str(error).partition("\n")[0]
        print(
            f"error: {where} stops because another process was lost ({first_line}). Most likely that process was "
            f"killed, ran out of memory or lost its machine: see its output. {AGAIN}",
            file=sys.stderr,
        )
    elif isinstance(error, ValueError | OSError | FloatingPointError):
        print(with_urls(f"error: {where}: {error}"), file=sys.stderr)
        code = 2
    elif isinstance(error, KeyboardInterrupt):
        print(f"{where}: interrupted", file=sys.stderr)
        code = 130
    else:
        print(f"error: {where} failed:", file=sys.stderr)
        traceback.print_exception(error)
    _stop_watchdog()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
