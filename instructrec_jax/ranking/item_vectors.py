"""Item vectors on disk, under a name made of everything they depend on: FOLDER/{hash}.npy.

What has changed has another name, so that no vectors of an older model, catalogue or setting are ever taken for the
current ones. Files of older names are left alone; the folder may be removed at any time.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from instructrec_jax.data.loader import Text
from instructrec_jax.files import replacing

logger = logging.getLogger(__name__)

TEXTS = 16_384  # texts that the model runs at a time; the vectors of so many are in memory at once


def item_vectors(
    predict: Callable[[Sequence[Text]], Sequence[np.ndarray]],
    texts: Sequence[Text],
    fingerprint: Mapping[str, Any],
    folder: str | Path,
) -> np.ndarray:
    """The vector of each text, read from FOLDER where it is known, else computed and written there.

    Args:
      predict: texts -> one vector [d] a text, as a task's `Predict`.
      texts: the items' tokens, in the order of their numbers. They are part of the fingerprint.
      fingerprint: whatever else the vectors depend on, as plain JSON values: the weights (a checkpoint's step and path,
        or `weights_fingerprint`), `Catalogue.fingerprint()`, the settings of pooling and projection.
      folder: RUN/item_vectors, made if needed.

    Returns float32 [texts, d], memory-mapped: it takes memory only where it is read, and cannot be written.

    Raises ValueError when there are no texts, when `predict` gives no finite vector for an item, which is named, or
    when the fingerprint is empty or has no place in JSON.
    """
    if not len(texts):
        raise ValueError("there are no items to make vectors of.")
    path = Path(folder) / f"{_hash(texts, fingerprint)}.npy"
    if path.is_file():
        try:
            known = np.load(path, mmap_mode="r", allow_pickle=False)
            if known.dtype == np.float32 and known.ndim == 2 and len(known) == len(texts):
                return known
            logger.warning("%s: not vectors of %d items; computing them again.", path, len(texts))
        except (ValueError, EOFError) as error:
            logger.warning("%s: broken (%s); computing the item vectors again.", path, error)
    with replacing(path) as file:
        width = 0
        for start in range(0, len(texts), TEXTS):
            vectors = _checked(predict(texts[start : start + TEXTS]), start, width)
            if not start:
                width = vectors.shape[1]
                header = {"descr": "<f4", "fortran_order": False, "shape": (len(texts), width)}
                np.lib.format.write_array_header_1_0(file, header)
            file.write(vectors.tobytes())
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _hash(texts: Sequence[Text], fingerprint: Mapping[str, Any]) -> str:
    if not fingerprint:
        raise ValueError("the fingerprint of item vectors is empty; name at least the weights that they come from.")
    try:
        digest = hashlib.sha256(json.dumps(dict(fingerprint), sort_keys=True, allow_nan=False).encode())
    except (TypeError, ValueError) as error:
        raise ValueError(f"the fingerprint of item vectors should be plain JSON values ({error}).") from None
    for text in texts:
        for part in (text.tokens, text.types, text.target):
            digest.update(b"-" if part is None else str(len(part)).encode() + np.asarray(part, "<i4").tobytes())
    return digest.hexdigest()[:32]


def _checked(vectors: Sequence[np.ndarray], first: int, width: int) -> np.ndarray:
    """Float32 [texts, d], little-endian as the file is. `width` is the d of earlier ones, 0 for none."""
    array = np.asarray(np.stack(vectors), "<f4")
    if array.ndim != 2 or width not in (0, array.shape[1]):
        shape = list(array.shape[1:])
        raise ValueError(f"an item vector should be one row of {width or 'd'} numbers, but the model gives {shape}.")
    if len(bad := np.flatnonzero(~np.isfinite(array).all(axis=1))):
        raise ValueError(
            f"the vector of item {first + bad[0]} is not finite. Look for an empty text or a diverged model."
        )
    return array
