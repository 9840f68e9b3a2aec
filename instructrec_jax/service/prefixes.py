"""Keys and values of prompts' beginnings, kept for the next prompt that begins so."""

import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from instructrec_jax.backbones.layers import Cache


def prefix_keys(tokens: np.ndarray, chunk: int, pictures: Mapping[int, str] | None = None) -> list[bytes]:
    """A digest of the tokens (int32 [n]) up to the end of each whole chunk.

    Args:
      pictures: the hash of each picture by its first token.
    """
    digest, keys = hashlib.blake2b(digest_size=16), []
    for end in range(chunk, len(tokens) + 1, chunk):
        for start, name in (pictures or {}).items():
            if end - chunk <= start < end:
                digest.update(f"{start}:{name};".encode())
        digest.update(np.ascontiguousarray(tokens[end - chunk : end], np.int32).tobytes())
        keys.append(digest.digest())
    return keys


class Prefixes:
    """Chunks of keys and values by the digest of all tokens through the chunk; the least recently used are dropped.

    Args:
      limit: maximum total size, in bytes of all devices together.
    """

    def __init__(self, limit: int):
        self.limit, self.size = limit, 0
        self._blocks: OrderedDict[bytes, Cache] = OrderedDict()

    def find(self, keys: Sequence[bytes]) -> list[Cache]:
        """The chunks of the longest known prefix."""
        known = next((n for n, key in enumerate(keys) if key not in self._blocks), len(keys))
        for key in reversed(keys[:known]):  # a later chunk is of no use without the earlier ones, and is dropped first
            self._blocks.move_to_end(key)
        return [self._blocks[key] for key in keys[:known]]

    def add(self, key: bytes, block: Cache) -> None:
        size = _bytes(block)
        if key in self._blocks or size > self.limit:
            return
        self._blocks[key] = block
        self.size += size
        while self.size > self.limit:
            self.size -= _bytes(self._blocks.popitem(last=False)[1])


def _bytes(block: Cache) -> int:
    return sum(x.nbytes for x in jax.tree.leaves(block))
