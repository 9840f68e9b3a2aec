"""A cache of compiled programs for one test."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache

CACHE = ("jax_compilation_cache_dir", "jax_compilation_cache_max_size")
SMALLEST = ("jax_persistent_cache_min_compile_time_secs", "jax_persistent_cache_min_entry_size_bytes")


@contextmanager
def jax_settings_kept() -> Iterator[None]:
    """The cache's settings are those of before at the end, and its folder is opened again."""
    before = {name: getattr(jax.config, name) for name in (*CACHE, *SMALLEST)}
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


@contextmanager
def programs_in(folder: Path) -> Iterator[None]:
    """All programs are kept in `folder`."""
    with jax_settings_kept():
        jax.config.update(CACHE[0], str(folder))
        jax.config.update(SMALLEST[0], 0.0)
        jax.config.update(SMALLEST[1], -1)
        compilation_cache.reset_cache()
        yield
