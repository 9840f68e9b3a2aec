"""Several processes as one program: who they are, what they do together, and how they end when one of them dies.

Every process runs the same code on the same settings. What is computed is computed by all of them; what is written and
said is written and said by the first. They share one file system.
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
from typing import Any, NoReturn, TextIO

import jax
import numpy as np
from jax.experimental import multihost_utils

from instructrec_jax.extras import installed

HEARTBEAT_SECONDS = 60  # a process that has not been heard of for so long is taken for dead
SHUTDOWN_SECONDS = 300  # how long a process that is done waits for the others
SHARED_SECONDS = 60  # how long a network file system may take to show one machine what another wrote

ADDRESS, NUMBER, COUNT = "COORDINATOR_ADDRESS", "PROCESS_ID", "NUM_PROCESSES"
# What jax asks for itself, so with all of these (and more than one process) it finds out the rest.
SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
OPEN_MPI = ("OMPI_MCA_orte_hnp_uri", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK")
RANKS = {  # who starts processes -> names for their number, their count, and the number within a machine
    "Open MPI": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    "SLURM": ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
}


# ---------------------------------------------------------------- who we are


def settings_from(environment: Mapping[str, str]) -> dict[str, Any] | None:
    """Arguments for `jax.distributed.initialize`, or None where this process is alone.

    In this order: COORDINATOR_ADDRESS (host:port of the first process) with PROCESS_ID and NUM_PROCESSES, which Open
    MPI and SLURM may give in their own names; Open MPI and SLURM by themselves; a TPU machine, which knows its pod.

    Raises ValueError, naming what is missing, where only a part of this is set.
    """
    if any(environment.get(name) for name in (ADDRESS, NUMBER, COUNT)):
        return _by_hand(environment)
    for launcher, names in (("Open MPI", OPEN_MPI), ("SLURM", SLURM)):
        count = environment.get(RANKS[launcher][1])
        if count is None or int(count) == 1:
            continue
        if all(name in environment for name in names):
            return {}
        if launcher == "Open MPI":  # from its version 5 on it no longer says where the first process is
            raise ValueError(
                f"Open MPI started {count} processes, but does not say where the first one runs: set {ADDRESS} to its "
                f"host and a free port, as in `mpirun -x {ADDRESS}=node1:8476 ...`."
            )
    return {} if _on_a_tpu_machine(environment) else None


def _by_hand(environment: Mapping[str, str]) -> dict[str, Any] | None:
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
            f"{', '.join(found)} is set, but {' and '.join(missing)} is not: several processes need {ADDRESS} "
            f"(host:port of the first one), {NUMBER} (0, 1, ...) and {COUNT}. To run a single one, unset all three."
        )
    address, numbers = found[ADDRESS], {}
    for name in (NUMBER, COUNT):
        if not found[name].isdecimal():
            raise ValueError(f"{name} should be a number, but is {found[name]!r}.")
        numbers[name] = int(found[name])
    if not address.rpartition(":")[0] or not address.rpartition(":")[2].isdecimal():
        raise ValueError(f"{ADDRESS} should be host:port of the first process, but is {address!r}.")
    if numbers[NUMBER] >= numbers[COUNT]:
        raise ValueError(f"{NUMBER} is {numbers[NUMBER]}, but should be below {COUNT}, which is {numbers[COUNT]}.")
    if numbers[COUNT] == 1:
        return None
    return {
        "coordinator_address": address,
        "process_id": numbers[NUMBER],
        "num_processes": numbers[COUNT],
        "local_device_ids": local,
        "cluster_detection_method": "deactivate",
    }


def _on_a_tpu_machine(environment: Mapping[str, str]) -> bool:
    if environment.get("JAX_PLATFORMS", "tpu").split(",")[0] != "tpu" or not installed("libtpu"):
        return False
    if not [*Path("/dev").glob("accel[0-9]*"), *Path("/dev").glob("vfio/[0-9]*")]:
        return False
    named = "TPU_WORKER_HOSTNAMES" in environment or "TPU_PROCESS_ADDRESSES" in environment
    return named or "TPU_SKIP_MDS_QUERY" not in environment


def initialize() -> None:
    """Joins the other processes, where the environment says that there are some. Call it before any device is used.

    Raises:
      ValueError: the environment says only a part of what is needed.
      ConnectionError: the others could not be reached.
    """
    settings = settings_from(os.environ)
    if settings is None:
        return
    _leave_last_words()
    try:
        jax.distributed.initialize(
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS, shutdown_timeout_seconds=SHUTDOWN_SECONDS, **settings
        )
    except RuntimeError as error:
        raise ConnectionError(
            f"the processes of this run did not find each other ({error}). Start all of them within five minutes, "
            f"each with its own number; the first must be reached at {settings.get('coordinator_address', 'its host')}."
        ) from error
    if not is_first():
        logging.getLogger("instructrec_jax").setLevel(logging.ERROR)  # the first one warns for all


def refuse_others(verb: str) -> None:
    """Raises ValueError where the environment starts several processes of a verb that works in one."""
    if settings_from(os.environ) is not None and not _on_a_tpu_machine(os.environ):
        raise ValueError(
            f"{verb} runs in one process, on the devices of one machine, but the environment starts several of them: "
            f"start it once, without {COUNT}, srun or mpirun."
        )


def is_first() -> bool:
    """Whether this is the process that writes and speaks for all."""
    return jax.process_index() == 0


# ---------------------------------------------------------------- what they do together


def barrier(name: str) -> None:
    """Returns when every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def once(do: Callable[[], Any]) -> None:
    """The first process does it; the others go on when it is done."""
    barrier("before")  # nobody still looks at what it is about to change
    if is_first():
        do()
    barrier("after")


def say(text: str, file: TextIO | None = None) -> None:
    """Prints, in the first process only, on stderr unless another file is given."""
    if is_first():
        print(text, file=sys.stderr if file is None else file, flush=True)


def place(tree: Any, shardings: Any) -> Any:
    """Like `jax.device_put`, for values that are the same in every process: none is asked whether they are.

    Args:
      shardings: a tree like `tree`, or one sharding for all.
    """
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)
    if isinstance(shardings, jax.sharding.Sharding):
        one = shardings
        shardings = jax.tree.map(lambda _: one, tree)

    def put(value: Any, sharding: jax.sharding.Sharding) -> jax.Array:
        if isinstance(value, jax.Array) and not value.is_fully_addressable:
            return jax.device_put(value, sharding)
        host = np.asarray(value)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(put, tree, shardings)


def fetch(array: Any) -> np.ndarray:
    """The whole of an array, in every process."""
    if not isinstance(array, jax.Array) or array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def check_shared(path: Path, text: str) -> None:
    """Raises ValueError where this process does not see what the first one wrote to `path`."""
    deadline = time.monotonic() + SHARED_SECONDS
    while not (path.is_file() and path.read_text(encoding="utf-8") == text):
        if time.monotonic() > deadline:
            raise ValueError(
                f"process {jax.process_index()} does not see {path} as process 0 wrote it: put {path.parent} on a file "
                "system that all machines share (NFS, or a mounted bucket)."
            )
        time.sleep(0.5)


# ---------------------------------------------------------------- how they end


# Speaks when its standard input ends without a word. Signals for the whole group are not meant for it.
_WATCHER = """
import signal, sys
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, signal.SIG_IGN)
if not sys.stdin.read():
    print(sys.argv[1], file=sys.stderr)
"""
AGAIN = "Start all processes again with the same command: training goes on from the last checkpoint."
_watchers: list[subprocess.Popen] = []


def _leave_last_words() -> None:
    """Lets another process say what to do should this one end without a word, by SIGKILL or by jax's own hand.

    When a process dies, falls silent or never comes, jax ends the others in the middle of whatever they do (`abort`).
    """
    text = (
        f"error: process {os.environ.get(NUMBER, '')} (pid {os.getpid()} on {socket.gethostname()}) did not end by "
        "itself. Where jax says above that it lost its distributed service or another task, another process died, lost "
        "its machine or was never started, and the output of that one says more. Where nothing is said, this one was "
        f"killed (short of memory, perhaps). {AGAIN}"
    )
    command = [sys.executable, "-S", "-c", _WATCHER, text]
    _watchers.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True))
    atexit.register(_dismiss)


def _dismiss() -> None:
    while _watchers:
        _watchers.pop().communicate("this end is in order")


@contextmanager
def guard(passing: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Ends this process at once where the work inside cannot go on in all processes; alone it does nothing.

    On the way out of an ordinary error much would wait for the other processes (a checkpoint that is being written, and
    the interpreter's end itself), and so for a dead one.

    Args:
      passing: errors that all processes meet alike, which are left to whoever handles them.
    """
    try:
        yield
    except BaseException as error:
        alike = isinstance(error, (SystemExit, *passing)) and not is_loss_of_another(error)
        if alike or not jax.distributed.is_initialized():
            raise
        end(error)


def is_loss_of_another(error: BaseException) -> bool:
    """Whether an error says that another process is gone; jax has several classes for it, ValueError among them."""
    text = str(error)
    return jax.distributed.is_initialized() and (
        re.search("gloo|nccl|coordination.?service|barrier|heartbeat", text, re.IGNORECASE) is not None
        or (isinstance(error, jax.errors.JaxRuntimeError) and text.startswith(("UNAVAILABLE", "ABORTED", "CANCELLED")))
    )


def end(error: BaseException) -> NoReturn:
    """Says what happened, and leaves without waiting for the other processes, who notice it."""
    where = f"process {jax.process_index()} of {jax.process_count()}"
    code = 1
    if is_loss_of_another(error):
        first_line = str(error).partition("\n")[0]
        print(
            f"error: {where} stops, because it lost another one ({first_line}). Most likely that process was killed, "
            f"ran out of memory or lost its machine: its own output says more. {AGAIN}",
            file=sys.stderr,
        )
    elif isinstance(error, ValueError | OSError | FloatingPointError):
        print(f"error: {where}: {error}", file=sys.stderr)
        code = 2
    elif isinstance(error, KeyboardInterrupt):
        print(f"{where}: interrupted", file=sys.stderr)
        code = 130
    else:
        print(f"error: {where} failed:", file=sys.stderr)
        traceback.print_exception(error)
    _dismiss()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
