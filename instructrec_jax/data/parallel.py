"""Work on blocks of data in worker processes, in order.

joblib's loky processes start without running the caller's script again, so a notebook or a script without
`if __name__ == "__main__"` may train.
"""

import gc
import logging
import os
import pickle
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, closing
from functools import cache, lru_cache
from pathlib import Path
from typing import TypeVar, cast

import jax

State = TypeVar("State")
Block = TypeVar("Block")
Result = TypeVar("Result")

log = logging.getLogger(__name__)

IDLE_SECONDS = 10  # a worker without work ends after so many seconds


def default_workers() -> int:
    """The processor cores that this process may use."""
    import joblib

    return int(joblib.cpu_count())


def in_order(
    work: Callable[[State, Block], Result], state: State, blocks: Sequence[Block], workers: int
) -> Iterator[Result]:
    """work(state, block) of each block, in the order of the blocks; a few are computed ahead.

    Args:
      work: a function of a module.
      state: what all blocks need; it must be picklable, and each worker reads it once.
      workers: number of processes; 1: this process does the work.

    Raises what `work` raises, at the first block that fails; RuntimeError if a worker is killed.
    """
    if workers <= 1 or len(blocks) < 2:
        yield from (work(state, block) for block in blocks)
        return
    with ExitStack() as stack:
        try:
            path = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="instructrec_"))) / "state"
            path.write_bytes(pickle.dumps(state))  # read by this process's own workers only
        except OSError as error:
            log.warning("no worker processes, because the folder for temporary files cannot be written: %s", error)
            yield from (work(state, block) for block in blocks)
            return
        import joblib

        run = joblib.Parallel(
            n_jobs=min(workers, len(blocks)),
            return_as="generator",
            batch_size=1,
            pre_dispatch="2*n_jobs",
            idle_worker_timeout=IDLE_SECONDS,
        )
        results = run(joblib.delayed(_work)(work, str(path), block) for block in blocks)
        try:
            with closing(results):
                for result, failure in results:
                    if failure is not None:
                        raise failure
                    yield result
        except BrokenProcessPool as error:
            raise RuntimeError(
                f"a worker process was killed, perhaps for lack of memory: lower data.workers ({workers})."
            ) from error


def _work(work: Callable[[State, Block], Result], path: str, block: Block) -> tuple[Result | None, Exception | None]:
    """(result, None) or (None, error): an error must not overtake those of earlier blocks."""
    _start()
    try:
        return work(cast(State, _state(path)), block), None
    except Exception as error:
        return None, error


@cache
def _start() -> None:
    """Prepares a worker process."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes share the cores
    jax.config.update("jax_platforms", "cpu")  # an accelerator belongs to the main process
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    """Ends the process soon after its parent was killed."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


@lru_cache(maxsize=1)
def _state(path: str) -> object:
    state = pickle.loads(Path(path).read_bytes())
    gc.freeze()  # a tenth of the time would go into searching modules and state for garbage, again and again
    gc.set_threshold(50_000, 20, 20)
    return state
