"""How many programs this process has compiled: after readiness the number should stay still."""

import threading
from types import TracebackType

import jax

COMPILED = "/jax/core/compile/backend_compile_duration"  # also of a program from the persistent cache


class Compilations:
    """Counts compilations, and their seconds, from `with` until its end, in all threads.

    >>> with Compilations() as compilations:
    ...     engine.warm_up()
    >>> compilations.count
    """

    def __init__(self) -> None:
        self.count, self.seconds = 0, 0.0
        self._lock = threading.Lock()

    def __enter__(self) -> "Compilations":
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        jax.monitoring.unregister_event_duration_listener(self._listen)

    def _listen(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == COMPILED:
            with self._lock:
                self.count, self.seconds = self.count + 1, self.seconds + duration_secs
