"""Signs of life on stderr while something takes long, for logs and terminals alike."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from instructrec_jax.distributed.launch import is_first, say

FIRST, NEXT = 10.0, 30.0  # seconds


@contextmanager
def heartbeat(what: str, show: Callable[[str], object] = say) -> Iterator[None]:
    """Says that `what` goes on after 10 seconds and every 30 seconds from then on, and how long it took in the end.

    What takes less than 10 seconds says nothing. Only the first process speaks.
    """
    if not is_first():
        yield
        return
    began, done, said = time.perf_counter(), threading.Event(), threading.Event()

    def speak() -> None:
        while not done.wait(NEXT if said.is_set() else FIRST):
            said.set()
            show(f"{what}: {time.perf_counter() - began:.0f} s so far")

    thread = threading.Thread(target=speak, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    if said.is_set():
        show(f"{what}: done in {time.perf_counter() - began:.0f} s")
