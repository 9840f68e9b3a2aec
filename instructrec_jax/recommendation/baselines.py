"""Simple recommenders every claim is measured against: random, popularity, Markov-1, co-occurrence kNN, BM25.

All share one protocol: `fit(sequences, num_items)` on training sequences (item numbers, oldest first) and
`score(histories, instructions)` → float64 [cases, items], higher is better. Scores depend on a case alone,
not on the block it is scored in, so large sets are scored block by block with `score_in_blocks`.
"""

import re
import zlib
from collections.abc import Iterator, Sequence
from typing import Protocol, Self

import numpy as np
from numpy.typing import ArrayLike
from scipy import sparse


class Baseline(Protocol):
    name: str

    def fit(self, sequences: Sequence[ArrayLike], num_items: int) -> Self:
        """Learn from training sequences of item numbers in 0 .. num_items - 1, oldest first."""

    def score(self, histories: Sequence[ArrayLike], instructions: Sequence[str] = ()) -> np.ndarray:
        """Float64 [cases, items] for histories of item numbers, oldest first, and what was asked in words."""


class Random:
    """Uniform scores, the same for the same history and instruction under one seed."""

    name = "random"

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def fit(self, sequences: Sequence[ArrayLike], num_items: int) -> Self:
        self.num_items = num_items
        return self

    def score(self, histories: Sequence[ArrayLike], instructions: Sequence[str] = ()) -> np.ndarray:
        scores = np.empty((len(histories), self.num_items))
        for case, history in enumerate(histories):
            content = np.asarray(history, np.int32).tobytes() + (instructions[case] if instructions else "").encode()
            scores[case] = np.random.default_rng((self.seed, zlib.crc32(content))).random(self.num_items)
        return scores


class Popularity:
    """How many training interactions an item has."""

    name = "popularity"

    def fit(self, sequences: Sequence[ArrayLike], num_items: int) -> Self:
        self.counts = _popularity(_flatten(sequences, num_items)[0], num_items)
        return self

    def score(self, histories: Sequence[ArrayLike], instructions: Sequence[str] = ()) -> np.ndarray:
        return np.tile(self.counts, (len(histories), 1))


class Markov:
    """How often an item came right after the last one; popularity decides ties and for empty histories."""

    name = "Markov-1"

    def fit(self, sequences: Sequence[ArrayLike], num_items: int) -> Self:
        items, owners = _flatten(sequences, num_items)
        popularity = _popularity(items, num_items)
        self.fallback = popularity / (popularity.max(initial=0) + 1)  # below 1: never outweighs a transition
        self.transitions = _pairs(items, owners, gap=1, num_items=num_items)
        return self

    def score(self, histories: Sequence[ArrayLike], instructions: Sequence[str] = ()) -> np.ndarray:
        weights = _history_weights(histories, len(self.fallback), depth=1, decay=1.0)
        return (weights @ self.transitions).toarray() + self.fallback


class CoOccurrence:
    """Item-to-item kNN on sequences.

    Within a training sequence, an item b that follows a at distance g <= window adds 1/g to the link a → b
    and `backwards` times that to b → a. A link into b is divided by the square root of b's popularity. The
    score of an item is the sum of the links into it from the last `depth` items of the history, the n-th
    before the last weighted by decay^n. Items that nothing in the history links to come after, by popularity.
    """

    name = "coKNN"

    def __init__(self, window: int = 10, depth: int = 20, decay: float = 0.8, backwards: float = 0.5) -> None:
        self.window, self.depth, self.decay, self.backwards = window, depth, decay, backwards

    def fit(self, sequences: Sequence[ArrayLike], num_items: int) -> Self:
        items, owners = _flatten(sequences, num_items)
        links = sparse.csr_array((num_items, num_items), dtype=np.float64)
        for gap in range(1, self.window + 1):
            links = links + _pairs(items, owners, gap, num_items) / gap
        links = links + self.backwards * links.T
        popularity = _popularity(items, num_items)
        self.links = (links @ sparse.diags_array(1 / np.sqrt(np.maximum(popularity, 1)))).tocsr()
        self.fallback = 1e-9 * popularity / (popularity.max(initial=0) + 1)  # far below any link
        return self

    def score(self, histories: Sequence[ArrayLike], instructions: Sequence[str] = ()) -> np.ndarray:
        weights = _history_weights(histories, len(self.fallback), self.depth, self.decay)
        return (weights @ self.links).toarray() + self.fallback


class BM25:
    """Words of the instruction against the words of item texts (Robertson & Zaragoza 2009, equation 3.15).

    idf is log(1 + (N - n + 0.5) / (n + 0.5)): the added 1 keeps words of more than half the items from
    counting against an item. A word asked for twice counts twice. Histories are not looked at.
    """

    name = "BM25"

    def __init__(self, texts: Sequence[str], k1: float = 1.2, b: float = 0.75) -> None:
        documents = [words(text) for text in texts]
        self.vocabulary: dict[str, int] = {}
        for document in documents:
            for word in document:
                self.vocabulary.setdefault(word, len(self.vocabulary))
        counts = self._counts(documents)
        lengths = counts.sum(axis=1)
        containing = np.bincount(counts.indices, minlength=counts.shape[1])
        idf = np.log1p((len(texts) - containing + 0.5) / (containing + 0.5))
        damping = k1 * (1 - b + b * lengths / max(lengths.mean(), 1e-9))
        rows = np.repeat(np.arange(len(texts)), np.diff(counts.indptr))
        counts.data *= idf[counts.indices] * (k1 + 1) / (counts.data + damping[rows])
        self.weights = counts

    def fit(self, sequences: Sequence[ArrayLike], num_items: int) -> Self:
        if num_items != self.weights.shape[0]:
            raise ValueError(f"BM25 was made of {self.weights.shape[0]} item texts, the catalogue has {num_items}.")
        return self

    def score(self, histories: Sequence[ArrayLike], instructions: Sequence[str] = ()) -> np.ndarray:
        if len(instructions) != len(histories):
            raise ValueError(f"BM25 ranks by words: it needs {len(histories)} instructions, got {len(instructions)}.")
        return (self._counts([words(text) for text in instructions]) @ self.weights.T).toarray()

    def _counts(self, documents: Sequence[Sequence[str]]) -> sparse.csr_array:
        """Word counts float64 [documents, vocabulary]; words outside the vocabulary are left out."""
        pairs = [
            (row, self.vocabulary[word])
            for row, document in enumerate(documents)
            for word in document
            if word in self.vocabulary
        ]
        rows, columns = np.array(pairs, np.int64).reshape(-1, 2).T
        shape = (len(documents), len(self.vocabulary))
        return sparse.csr_array((np.ones(len(rows)), (rows, columns)), shape=shape)


def words(text: str) -> list[str]:
    """Lower-case words; each Chinese character counts as one."""
    return re.findall(r"[\u4e00-\u9fff]|[^\W_\u4e00-\u9fff]+", text.lower())


def score_in_blocks(
    baseline: Baseline, histories: Sequence[ArrayLike], instructions: Sequence[str] = (), block: int = 256
) -> Iterator[tuple[slice, np.ndarray]]:
    """(cases, their scores float64 [<= block, items]) in order: [all cases, items] need never exist."""
    for start in range(0, len(histories), block):
        cases = slice(start, min(start + block, len(histories)))
        yield cases, baseline.score(histories[cases], instructions[cases])


def _flatten(sequences: Sequence[ArrayLike], num_items: int) -> tuple[np.ndarray, np.ndarray]:
    """All items one after another, int32, and the number of the sequence each belongs to."""
    arrays = [np.asarray(sequence, np.int32) for sequence in sequences]
    items = np.concatenate([np.empty(0, np.int32), *arrays])
    if len(items) and not (0 <= items.min() and items.max() < num_items):
        raise ValueError(f"item numbers must lie in 0..{num_items - 1}, found {items.min()}..{items.max()}.")
    return items, np.repeat(np.arange(len(arrays)), [len(array) for array in arrays])


def _popularity(items: np.ndarray, num_items: int) -> np.ndarray:
    return np.bincount(items, minlength=num_items).astype(np.float64)


def _pairs(items: np.ndarray, owners: np.ndarray, gap: int, num_items: int) -> sparse.csr_array:
    """counts[a, b] = how often b stands `gap` places after a in one sequence."""
    same = owners[:-gap] == owners[gap:]
    before, after = items[:-gap][same], items[gap:][same]
    return sparse.csr_array((np.ones(len(before)), (before, after)), shape=(num_items, num_items))


def _history_weights(histories: Sequence[ArrayLike], num_items: int, depth: int, decay: float) -> sparse.csr_array:
    """[cases, items]: decay^n for the n-th item before the last, over the last `depth` items."""
    recent, owners = _flatten([np.asarray(h, np.int32)[::-1][:depth] for h in histories], num_items)
    starts = np.searchsorted(owners, owners)
    weights = decay ** (np.arange(len(owners)) - starts)
    return sparse.csr_array((weights, (owners, recent)), shape=(len(histories), num_items))
