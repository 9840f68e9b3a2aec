"""Vectors of texts by the network or run of a path, for tasks that need another network than their own."""

from collections.abc import Sequence

import numpy as np


def text_vectors(path: str, texts: Sequence[str]) -> np.ndarray:
    """float32 [texts, width], as `Run.encode`'s.

    Args:
      path: run directory, HuggingFace folder or hub id.
    """
    from instructrec_jax.runs.run import Run, is_run  # which opens tasks, and so imports this
    from instructrec_jax.runs.vectors import settings_of

    return Run.open(path, () if is_run(path) else settings_of(path)).encode(list(texts))
