"""How many programs this process has compiled."""

import threading
from types import TracebackType

import jax

COMPILED = "/jax/core/compile/backend_compile_duration"  # also of a program from the persistent cache
READ = "/jax/compilation_cache/cache_hits"


class Compilations:
    """Counts programs, and the seconds of compiling or reading them, from `with` until its end, in all threads.

    >>> with Compilations() as compilations:
    ...     engine.warm_up()
    >>> compilations.count

    Attributes:
      count: programs that were compiled or read from the persistent cache.
      read: those read from the cache.
      seconds: of both.
    """

    def __init__(self) -> None:
        self.count, self.read, self.seconds = 0, 0, 0.0
        self._lock = threading.Lock()

    def __enter__(self) -> "Compilations":
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        jax.monitoring.register_event_listener(self._count_read)
        return self

    @property
    def compiled(self) -> int:
        """Programs that were compiled: not those from the cache."""
        return self.count - self.read

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        jax.monitoring.unregister_event_duration_listener(self._listen)
        jax.monitoring.unregister_event_listener(self._count_read)

    def _listen(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == COMPILED:
            with self._lock:
                self.count, self.seconds = self.count + 1, self.seconds + duration_secs

    def _count_read(self, event: str, **kwargs: str | int) -> None:
        if event == READ:
            with self._lock:
                self.read += 1
