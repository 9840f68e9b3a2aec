"""Cache of item vectors on disk: FOLDER/{hash}.npy, with the hash of everything that they depend on.

A changed model, catalogue or setting changes the hash, so stale vectors are never used. Older files are kept; the
folder may be deleted at any time.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from instructrec_jax.data.batch import Text
from instructrec_jax.files import replacing

logger = logging.getLogger(__name__)

TEXTS = 16_384  # texts per call of the model, whose vectors are in memory at once


def item_vectors(
    predict: Callable[[Sequence[Text]], Sequence[np.ndarray]],
    texts: Sequence[Text],
    fingerprint: Mapping[str, object],
    folder: str | Path,
) -> np.ndarray:
    """The vector of each text, read from the cache or computed and cached.

    Args:
      predict: texts -> one vector [d] per text, as a task's `Predict`.
      texts: the items' tokens (and pictures), by item number. They are part of the hash.
      fingerprint: everything else that the vectors depend on, as plain JSON values: the weights (a checkpoint's step
        and path, or `weights_fingerprint`), `Catalogue.fingerprint()`, the settings of pooling and projection.
      folder: RUN/item_vectors, created if needed.

    Returns float32 [texts, d], memory-mapped and read-only.

    Raises ValueError for no texts, for a vector that is not finite (naming the item), or for a fingerprint that is
    empty or not JSON-serializable.
    """
    if not len(texts):
        raise ValueError("no items to compute vectors of.")
    path = Path(folder) / f"{_hash(texts, fingerprint)}.npy"
    if path.is_file():
        try:
            known = np.load(path, mmap_mode="r", allow_pickle=False)
            if known.dtype == np.float32 and known.ndim == 2 and len(known) == len(texts):
                return known
            logger.warning("%s: does not hold vectors of %d items; computing them again.", path, len(texts))
        except (ValueError, EOFError) as error:
            logger.warning("%s: damaged (%s); computing the item vectors again.", path, error)
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


def _hash(texts: Sequence[Text], fingerprint: Mapping[str, object]) -> str:
    if not fingerprint:
        raise ValueError("the fingerprint of item vectors is empty; it must identify at least the weights.")
    try:
        digest = hashlib.sha256(json.dumps(dict(fingerprint), sort_keys=True, allow_nan=False).encode())
    except (TypeError, ValueError) as error:
        raise ValueError(f"the fingerprint of item vectors must be plain JSON values ({error}).") from None
    for text in texts:
        for part in (text.tokens, text.types, text.target):
            digest.update(b"-" if part is None else str(len(part)).encode() + np.asarray(part, "<i4").tobytes())
        for picture in () if text.images is None else text.images.pictures:
            digest.update(picture.digest.encode())
    return digest.hexdigest()[:32]


def _checked(vectors: Sequence[np.ndarray], first: int, width: int) -> np.ndarray:
    """The vectors as float32 [texts, d], little-endian. `width`: d of earlier vectors; 0: none."""
    array = np.asarray(np.stack(vectors), "<f4")
    if array.ndim != 2 or width not in (0, array.shape[1]):
        shape = list(array.shape[1:])
        raise ValueError(f"an item vector should have shape [{width or 'd'}], but the model gives {shape}.")
    if len(bad := np.flatnonzero(~np.isfinite(array).all(axis=1))):
        raise ValueError(
            f"the vector of item {first + bad[0]} is not finite: its text may be empty, or the model may have diverged."
        )
    return array
