"""Functions that worker processes run in tests."""

import os
import signal
import time


def slow_square(state: tuple[int, int], block: int) -> tuple[int, int]:
    time.sleep(0.05 if block % 2 else 0.0)
    return state[0] * block * block, os.getpid()


def fail_at(state: int, block: int) -> int:
    """Later blocks fail sooner than the first one that is bad."""
    if block >= state:
        time.sleep(0.2 if block == state else 0.0)
        raise ValueError(f"block {block}")
    return block


def die_at(state: int, block: int) -> int:
    if block == state:
        os.kill(os.getpid(), signal.SIGKILL)
    return block
