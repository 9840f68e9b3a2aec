"""Texts that are the same, or nearly: equal after normalization, or with a high Jaccard similarity of their shingles.

Candidates come from locality-sensitive hashing of MinHash signatures (Broder, 1997; `datasketch`), and each is verified
by its exact similarity, so nothing is reported that is not similar; a pair near the threshold may be missed.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import xxhash

from instructrec_jax.extras import require

LENGTH = 5  # characters of a shingle
PERMUTATIONS = 128  # of a signature
MOST = 5_000_000  # pairs that are verified


@dataclass(frozen=True)
class Pair:
    """Two texts by number, the first before the second, and their Jaccard similarity in (0, 1]; 1: equal."""

    first: int
    second: int
    similarity: float


def shingles(text: str) -> frozenset[str]:
    """All substrings of `LENGTH` characters; of a shorter text the text itself."""
    return frozenset(text[start : start + LENGTH] for start in range(max(1, len(text) - LENGTH + 1)))


def jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    """|A ∩ B| / |A ∪ B|."""
    shared = len(one & other)
    return shared / (len(one) + len(other) - shared)


def grouped(keys: Sequence[Hashable]) -> np.ndarray:
    """For each key, the number of the first one that equals it, int64 [keys]."""
    first: dict[Hashable, int] = {}
    return np.array([first.setdefault(key, number) for number, key in enumerate(keys)], np.int64)


def near_duplicates(texts: Sequence[str], similarity: float) -> list[Pair]:
    """Pairs of different normalized texts that are at least this similar, in order.

    Args:
      similarity: in (0, 1]; 1: none.

    Raises ValueError where `datasketch` is missing, and for more than `MOST` candidates.
    """
    if not 0 < similarity <= 1:
        raise ValueError(f"--similarity should be above 0 and at most 1, but is {similarity}.")
    if similarity == 1:
        return []
    require("datasketch", "the search for near-duplicates (--similarity below 1)")
    from datasketch import MinHash, MinHashLSH

    # a pair that is missed is worse than one that is verified in vain
    index = MinHashLSH(threshold=similarity, num_perm=PERMUTATIONS, weights=(0.2, 0.8))
    empty = MinHash(num_perm=PERMUTATIONS, hashfunc=lambda text: xxhash.xxh32_intdigest(text.encode(errors="replace")))
    known = [shingles(text) for text in texts]
    found, tried = [], 0
    for number, own in enumerate(known):
        signature = empty.copy()
        signature.update_batch(own)
        candidates = sorted(index.query(signature))
        tried += len(candidates)
        if tried > MOST:
            raise ValueError(
                f"more than {MOST:,} pairs of texts may be near-duplicates, as prompts of one template are: choose a "
                "higher --similarity; 1 finds equal texts only."
            )
        values = ((other, jaccard(known[other], own)) for other in candidates)
        found += [Pair(other, number, value) for other, value in values if value >= similarity]
        index.insert(number, signature, check_duplication=False)
    return sorted(found, key=lambda pair: (pair.first, pair.second))


def clusters(size: int, pairs: Sequence[Pair]) -> np.ndarray:
    """The groups that pairs connect: for each text, the smallest number of its group, int64 [size]."""
    parent = np.arange(size)

    def root(number: int) -> int:
        while parent[number] != number:
            parent[number] = number = parent[parent[number]]
        return number

    for pair in pairs:
        one, other = sorted((root(pair.first), root(pair.second)))
        parent[other] = one
    return np.array([root(number) for number in range(size)], np.int64)
