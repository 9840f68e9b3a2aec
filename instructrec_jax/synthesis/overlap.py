"""N-grams of words that texts share with test files (in Chinese n-grams of characters), see `script_words`."""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import xxhash

from instructrec_jax.answering.records import read_records
from instructrec_jax.data.example import BadExample
from instructrec_jax.metrics.language import script_words


def ngrams(words: Sequence[str], length: int) -> Iterator[int]:
    """A 64-bit hash (XXH3) of each run of `length` words. Two n-grams are taken for equal with probability 2 ** -64."""
    for start in range(len(words) - length + 1):
        yield xxhash.xxh3_64_intdigest("\x00".join(words[start : start + length]).encode("utf-8", errors="replace"))


@dataclass(frozen=True)
class Overlap:
    """The n-grams of test files.

    Attributes:
      length: words of an n-gram.
      known: uint64 [n-grams], sorted: 8 bytes each.
      texts, short: texts of the files, and those of them that are shorter than an n-gram, so that they are not found.
    """

    length: int
    known: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))
    texts: int = 0
    short: int = 0

    def found(self, text: str) -> bool:
        """Whether the text shares an n-gram with the files."""
        own = np.fromiter(ngrams(script_words(text), self.length), np.uint64) if len(self.known) else self.known
        if not len(own):
            return False
        places = np.searchsorted(self.known, own).clip(max=len(self.known) - 1)
        return bool((self.known[places] == own).any())


def read_overlap(files: Sequence[str], length: int) -> Overlap:
    """The n-grams of every text of every record of some files. Raises ValueError for a damaged record."""
    if length < 1:
        raise ValueError(f"--ngram {length}: an n-gram has at least one word.")
    hashes, texts, short = array("Q"), 0, 0
    for file in files:
        for where, record in read_records(file):
            if isinstance(record, BadExample):
                raise record.at(where)
            for text in _texts(record):
                words = script_words(text)
                hashes.extend(ngrams(words, length))
                texts, short = texts + 1, short + (len(words) < length)
    return Overlap(length, np.unique(np.frombuffer(hashes, np.uint64)), texts, short)


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list | tuple):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _texts(each)
