"""Baselines: random, popularity, Markov-1, coKNN, ItemKNN, EASE, BPR-MF, BM25.

All share one protocol: `fit(sequences, num_items)` on training sequences (item numbers, oldest first) and
`score(histories, instructions)` → float64 [cases, items], higher is better. The scores of a case do not depend on the
other cases, so large sets can be scored block by block.
"""

import re
import zlib
from collections.abc import Iterator, Sequence
from typing import Literal, Protocol, Self

import numpy as np
import scipy  # its parts load on first use, which takes a tenth of a second
from numpy.typing import ArrayLike


class Baseline(Protocol):
    name: str

    def fit(self, sequences: Sequence[ArrayLike], num_items: int) -> Self:
        """Fits to training sequences of item numbers in 0 .. num_items - 1, oldest first."""

    def score(self, histories: Sequence[ArrayLike], instructions: Sequence[str] = ()) -> np.ndarray:
        """Scores, float64 [cases, items]. histories: item numbers, oldest first; instructions: their texts."""


class Random:
    """Uniform random scores, determined by seed, history and instruction."""

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
    """The number of training interactions of an item."""

    name = "popularity"

    def fit(self, sequences: Sequence[ArrayLike], num_items: int) -> Self:
        self.counts = _popularity(_flatten(sequences, num_items)[0], num_items)
        return self

    def score(self, histories: Sequence[ArrayLike], instructions: Sequence[str] = ()) -> np.ndarray:
        return np.tile(self.counts, (len(histories), 1))


class Markov:
    """The number of times an item followed the last item; ties and empty histories are ranked by popularity."""

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


ALL = 1_000_000  # last items of a history: all of them
BLOCK = 500  # items of ItemKNN at once
LINKS = 100_000_000  # of coKNN in memory, 12 bytes each
PAIRS = 10_000_000  # of items whose links are counted at once


class CoOccurrence:
    """Item-to-item kNN on sequences.

    Within a training sequence, an item b that follows a at distance g <= window adds 1/g to the link a → b
    and `backwards` times that to b → a. The link a → b is divided by the square root of b's popularity, or, with
    `divide_by` "source" (named coKNN-source), of a's popularity, which ranks popular items higher; with "nothing" it is
    left as it is.
    The score of an item is the sum of its links from the last `depth` items of the history, the n-th before the last
    weighted by decay^n. Items without such links follow, by popularity.

    Links are computed for a block of items at a time. Where there may be more than `LINKS` of them (from 5 million
    interactions on, with a window of 10), each item keeps its LINKS / items strongest ones, so that memory is bounded.
    """

    def __init__(
        self,
        window: int = 10,
        depth: int = 20,
        decay: float = 0.8,
        backwards: float = 0.5,
        divide_by: Literal["target", "source", "nothing"] = "target",
    ) -> None:
        self.window, self.depth, self.decay, self.backwards, self.divide_by = window, depth, decay, backwards, divide_by
        self.name = "coKNN" if divide_by == "target" else "coKNN-source"

    def fit(self, sequences: Sequence[ArrayLike], num_items: int) -> Self:
        items, owners = _flatten(sequences, num_items)
        popularity = _popularity(items, num_items)
        damping = np.ones(num_items) if self.divide_by == "nothing" else 1 / np.sqrt(np.maximum(popularity, 1))
        most = max(1, LINKS // num_items) if 2 * self.window * len(items) > LINKS else num_items
        parts = [
            self._links(items, owners, places, rows, damping, most)
            for rows, places in _by_item(items, popularity, PAIRS // (2 * self.window))
        ]
        self.links = scipy.sparse.vstack(parts, format="csr")
        self.fallback = 1e-9 * popularity / (popularity.max(initial=0) + 1)  # far below any link
        return self

    def _links(
        self, items: np.ndarray, owners: np.ndarray, places: np.ndarray, rows: slice, damping: np.ndarray, most: int
    ) -> "scipy.sparse.csr_array":
        """The links of the items `rows`, whose occurrences are at `places`; of each item, the `most` strongest."""
        shape = (rows.stop - rows.start, len(damping))
        after, before = scipy.sparse.csr_array(shape), scipy.sparse.csr_array(shape)
        for gap in range(1, self.window + 1):
            after = after + _followers(items, owners, places, gap, rows.start, shape) / gap
            before = before + _followers(items, owners, places, -gap, rows.start, shape) / gap
        links = after + self.backwards * before
        factors = damping[rows] if self.divide_by == "source" else damping
        scale = scipy.sparse.diags_array(factors)
        return _strongest((scale @ links if self.divide_by == "source" else links @ scale).tocsr(), most)

    def score(self, histories: Sequence[ArrayLike], instructions: Sequence[str] = ()) -> np.ndarray:
        weights = _history_weights(histories, len(self.fallback), self.depth, self.decay)
        return (weights @ self.links).toarray() + self.fallback


class BPR:
    """Matrix factorization by Bayesian personalized ranking (Rendle et al. 2009).

    The score of item i for user u is b_i + p_u · q_i. Training minimizes, over the interactions (u, i) with negatives j
    drawn uniformly in each epoch from the items without an interaction of u,

        softplus(score_uj - score_ui) + regularization / 2 · (|p_u|² + |q_i|² + |q_j|² + b_i² + b_j²)

    by AdaGrad (Duchi et al. 2011) on batches of interactions in random order.

    The user of a case is folded in from the history: p minimizes the same objective over the items of the history, with
    q and b fixed and one fixed sample of negatives j. The objective is convex in p; steps with the bound 1/4 on the
    curvature of softplus (Böhning & Lindsay 1988) always decrease it. Users of the training data are folded in, too.
    The scores of an empty history are b.
    """

    name = "BPR-MF"

    def __init__(
        self,
        size: int = 64,
        epochs: int = 40,
        learning_rate: float = 0.1,
        regularization: float = 0.03,
        batch: int = 2048,
        seed: int = 0,
    ) -> None:
        self.size, self.epochs, self.learning_rate = size, epochs, learning_rate
        self.regularization, self.batch, self.seed = regularization, batch, seed
        self.others, self.steps = 200, 20  # for folding in: sampled negatives, and steps

    def fit(self, sequences: Sequence[ArrayLike], num_items: int) -> Self:
        items, owners = _flatten(sequences, num_items)
        chosen = np.unique(owners * num_items + items)  # sorted, to look up whether a user chose an item
        rng = np.random.default_rng(self.seed)
        # The last column is 1 for users and the bias for items.
        users = rng.normal(0, 0.1, (len(sequences), self.size + 1)).astype(np.float32)
        self.factors = rng.normal(0, 0.1, (num_items, self.size + 1)).astype(np.float32)
        users[:, -1], self.factors[:, -1] = 1, 0
        squares = np.zeros_like(users), np.zeros_like(self.factors)
        for _ in range(self.epochs):
            order = rng.permutation(len(items))
            user, positives = owners[order], items[order]
            other = rng.integers(0, num_items, len(items))
            for _ in range(10):
                known = contains(chosen, user * num_items + other)
                other[known] = rng.integers(0, num_items, known.sum())
            kept = ~contains(chosen, user * num_items + other)  # drops users with nearly all items
            user, positives, other = user[kept], positives[kept], other[kept]
            for start in range(0, len(user), self.batch):
                part = slice(start, start + self.batch)
                of_users, of_items = self._gradients(users, self.factors, user[part], positives[part], other[part])
                both = np.concatenate([positives[part], other[part]])
                _adagrad(users, squares[0], user[part], of_users, self.learning_rate)
                _adagrad(self.factors, squares[1], both, of_items, self.learning_rate)
        self._prepare(rng.integers(0, num_items, self.others))
        return self

    def _gradients(
        self, users: np.ndarray, factors: np.ndarray, user: np.ndarray, positives: np.ndarray, other: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Gradients of the objective for each triple's user, [n, size + 1], and its two items, [2 n, size + 1]."""
        p, q, r = users[user], factors[positives], factors[other]
        push = _sigmoid(np.einsum("nd,nd->n", p, r - q))[:, None]  # near 1 where the negative scores higher
        of_user = push * (r - q) + self.regularization * p
        of_user[:, -1] = 0
        of_items = np.concatenate([self.regularization * q - push * p, self.regularization * r + push * p])
        return of_user, of_items

    def _prepare(self, others: np.ndarray) -> None:
        """Precomputes statistics of the sampled negatives for folding in."""
        self.q, self.bias = self.factors[:, :-1], self.factors[:, -1]
        self.compared, self.compared_bias = self.q[others], self.bias[others]
        self.mean = self.compared.mean(0)
        self.second_moment = self.compared.T @ self.compared / len(others)

    def fold_in(self, history: ArrayLike) -> np.ndarray:
        """The user vector [size] for a history of item numbers."""
        p = np.zeros(self.size, np.float32)
        items = np.asarray(history, np.int64)
        if not len(items):
            return p
        q, bias = self.q[items], self.bias[items]
        mean = q.mean(0)
        curvature = (q.T @ q / len(q) + self.second_moment - np.outer(mean, self.mean) - np.outer(self.mean, mean)) / 4
        step = np.linalg.inv(curvature + self.regularization * np.eye(self.size, dtype=np.float32))
        for _ in range(self.steps):
            margins = (self.compared @ p + self.compared_bias) - (q @ p + bias)[:, None]
            push = _sigmoid(margins) / margins.size  # [history, others]
            p = p - step @ (push.sum(0) @ self.compared - push.sum(1) @ q + self.regularization * p)
        return p

    def score(self, histories: Sequence[ArrayLike], instructions: Sequence[str] = ()) -> np.ndarray:
        _flatten(histories, len(self.factors))  # checks the item numbers
        scores = np.empty((len(histories), len(self.factors)))
        for case, history in enumerate(histories):
            scores[case] = self.q @ self.fold_in(history) + self.bias
        return scores


class ItemKNN:
    """Item-to-item kNN by cosine (Deshpande & Karypis, 2004), without regard to order.

    The similarity of two items is n_ab / (sqrt(n_a n_b) + shrink), where n counts the sequences that hold one or both;
    each item keeps its `neighbors` most similar ones. The score of an item is the sum of its similarities to the
    items of the history, the n-th before the last weighted by decay^n.
    """

    name = "ItemKNN"

    def __init__(self, neighbors: int = 100, shrink: float = 10.0, decay: float = 1.0) -> None:
        self.neighbors, self.shrink, self.decay = neighbors, shrink, decay

    def fit(self, sequences: Sequence[ArrayLike], num_items: int) -> Self:
        held = _held(sequences, num_items)
        counts = held.sum(axis=0)
        parts = []
        for start in range(0, num_items, BLOCK):
            rows = np.arange(start, min(start + BLOCK, num_items))
            both = (held[:, rows].T @ held).toarray()
            both[np.arange(len(rows)), rows] = 0  # not itself
            similar = both / np.maximum(np.sqrt(counts[rows, None] * counts) + self.shrink, 1)
            parts.append(_largest(similar, self.neighbors))
        self.links = scipy.sparse.vstack(parts, format="csr")
        self.fallback = 1e-9 * counts / (counts.max(initial=0) + 1)
        return self

    def score(self, histories: Sequence[ArrayLike], instructions: Sequence[str] = ()) -> np.ndarray:
        weights = _history_weights(histories, len(self.fallback), ALL, self.decay)
        return (weights @ self.links.T).toarray() + self.fallback


class EASE:
    """The linear autoencoder in closed form (Steck, 2019, "Embarrassingly Shallow Autoencoders for Sparse Data").

    B = I − P / diag(P) by columns, P = (XᵀX + regularization · I)⁻¹, X the users' items as 0 and 1. The score of an
    item is the sum of its weights from the items of the history, the n-th before the last weighted by decay^n. It takes
    memory of items² and time of items³: `MOST_ITEMS` is a few seconds.
    """

    name = "EASE"
    MOST_ITEMS = 6_000

    def __init__(self, regularization: float = 250.0, decay: float = 1.0) -> None:
        self.regularization, self.decay = regularization, decay

    def fit(self, sequences: Sequence[ArrayLike], num_items: int) -> Self:
        held = _held(sequences, num_items)
        gram = (held.T @ held).toarray()
        counts = gram.diagonal().copy()
        gram[np.diag_indices(num_items)] += self.regularization
        inverse = scipy.linalg.inv(gram, overwrite_a=True)
        self.weights = -inverse / inverse.diagonal()
        self.weights[np.diag_indices(num_items)] = 0
        self.fallback = 1e-9 * counts / (counts.max(initial=0) + 1)
        return self

    def score(self, histories: Sequence[ArrayLike], instructions: Sequence[str] = ()) -> np.ndarray:
        return _history_weights(histories, len(self.fallback), ALL, self.decay) @ self.weights + self.fallback


class BM25:
    """BM25 of the instruction's words in the item texts (Robertson & Zaragoza 2009, equation 3.15).

    idf is log(1 + (N - n + 0.5) / (n + 0.5)): the added 1 keeps it positive for words in more than half of the items.
    A repeated word of the instruction counts repeatedly. Histories are ignored.
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
            raise ValueError(f"BM25 has {self.weights.shape[0]} item texts, but the catalogue has {num_items} items.")
        return self

    def score(self, histories: Sequence[ArrayLike], instructions: Sequence[str] = ()) -> np.ndarray:
        if len(instructions) != len(histories):
            raise ValueError(f"BM25 needs {len(histories)} instructions, one per history, got {len(instructions)}.")
        return (self._counts([words(text) for text in instructions]) @ self.weights.T).toarray()

    def _counts(self, documents: Sequence[Sequence[str]]) -> "scipy.sparse.csr_array":
        """Word counts float64 [documents, vocabulary]; unknown words are ignored."""
        pairs = [
            (row, self.vocabulary[word])
            for row, document in enumerate(documents)
            for word in document
            if word in self.vocabulary
        ]
        rows, columns = np.array(pairs, np.int64).reshape(-1, 2).T
        shape = (len(documents), len(self.vocabulary))
        return scipy.sparse.csr_array((np.ones(len(rows)), (rows, columns)), shape=shape)


def words(text: str) -> list[str]:
    """Lower-case words; each Chinese character is a word."""
    return re.findall(r"[\u4e00-\u9fff]|[^\W_\u4e00-\u9fff]+", text.lower())


def _flatten(sequences: Sequence[ArrayLike], num_items: int) -> tuple[np.ndarray, np.ndarray]:
    """The concatenated items, int32, and the sequence number of each. Raises ValueError for unknown item numbers."""
    arrays = [np.asarray(sequence, np.int32) for sequence in sequences]
    items = np.concatenate([np.empty(0, np.int32), *arrays])
    if len(items) and not (0 <= items.min() and items.max() < num_items):
        raise ValueError(f"item numbers must be in 0..{num_items - 1}, found {items.min()}..{items.max()}.")
    return items, np.repeat(np.arange(len(arrays)), [len(array) for array in arrays])


def counts_of(sequences: Sequence[np.ndarray], num_items: int) -> np.ndarray:
    """The number of times that each item occurs in the sequences, float64 [items]."""
    counts = np.zeros(num_items)
    for start in range(0, len(sequences), 1_000):  # few at a time, since bincount takes a copy as int64
        counts += np.bincount(np.concatenate(sequences[start : start + 1_000]), minlength=num_items)
    return counts


def _popularity(items: np.ndarray, num_items: int) -> np.ndarray:
    return np.bincount(items, minlength=num_items).astype(np.float64)


def _pairs(items: np.ndarray, owners: np.ndarray, gap: int, num_items: int) -> "scipy.sparse.csr_array":
    """counts[a, b]: number of times b is `gap` places after a in a sequence."""
    same = owners[:-gap] == owners[gap:]
    before, after = items[:-gap][same], items[gap:][same]
    return scipy.sparse.csr_array((np.ones(len(before)), (before, after)), shape=(num_items, num_items))


def _by_item(items: np.ndarray, popularity: np.ndarray, most: int) -> Iterator[tuple[slice, np.ndarray]]:
    """Blocks of item numbers with about `most` occurrences each, and where these are in `items`, in order of items."""
    order, ends = np.argsort(items, kind="stable"), np.cumsum(popularity).astype(np.int64)
    start = 0
    while start < len(ends):
        before = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + most, side="right")))
        yield slice(start, stop), order[before : ends[stop - 1]]
        start = stop


def _followers(
    items: np.ndarray, owners: np.ndarray, places: np.ndarray, gap: int, first: int, shape: tuple[int, int]
) -> "scipy.sparse.csr_array":
    """counts[a, b] float64: number of times item b is `gap` places after (below 0: before) item first + a."""
    others = places + gap
    inside = (others >= 0) & (others < len(items))
    places, others = places[inside], others[inside]
    same = owners[places] == owners[others]
    rows, columns = items[places[same]] - first, items[others[same]]
    return scipy.sparse.csr_array((np.ones(len(rows)), (rows, columns)), shape=shape)


def _strongest(links: "scipy.sparse.csr_array", most: int) -> "scipy.sparse.csr_array":
    """The `most` largest entries of each row; of equal ones, those of the lowest columns."""
    counts = np.diff(links.indptr)
    if counts.max(initial=0) <= most:
        return links
    rows = np.repeat(np.arange(len(counts)), counts)
    order = np.lexsort((links.indices, -links.data, rows))
    kept = order[np.arange(len(order)) - links.indptr[rows] < most]
    return scipy.sparse.csr_array((links.data[kept], (rows[kept], links.indices[kept])), shape=links.shape)


def _held(sequences: Sequence[ArrayLike], num_items: int) -> "scipy.sparse.csc_array":
    """[sequences, items]: 1 where a sequence holds an item."""
    items, owners = _flatten(sequences, num_items)
    held = scipy.sparse.csc_array((np.ones(len(items)), (owners, items)), shape=(len(sequences), num_items))
    held.sum_duplicates()
    held.data[:] = 1
    return held


def _largest(values: np.ndarray, most: int) -> "scipy.sparse.csr_array":
    """The `most` largest entries above 0 of each row; of equal ones, those of the lowest columns."""
    if most < values.shape[1]:
        least = np.partition(values, -most, axis=1)[:, -most, None]
        above, equal = values > least, values == least
        room = most - above.sum(axis=1, keepdims=True)
        values = np.where(above | (equal & (equal.cumsum(axis=1) <= room)), values, 0)
    return scipy.sparse.csr_array(values)


def _history_weights(
    histories: Sequence[ArrayLike], num_items: int, depth: int, decay: float
) -> "scipy.sparse.csr_array":
    """[cases, items]: decay^n for the n-th item before the last, over the last `depth` items."""
    recent, owners = _flatten([np.asarray(h, np.int32)[::-1][:depth] for h in histories], num_items)
    starts = np.searchsorted(owners, owners)
    weights = decay ** (np.arange(len(owners)) - starts)
    return scipy.sparse.csr_array((weights, (owners, recent)), shape=(len(histories), num_items))


def contains(ordered: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Whether each number of `asked` is in the sorted array `ordered`, bool like `asked`."""
    if not len(ordered):
        return np.zeros(asked.shape, bool)
    return ordered[np.minimum(np.searchsorted(ordered, asked), len(ordered) - 1)] == asked


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * x))


def _adagrad(table: np.ndarray, squares: np.ndarray, rows: np.ndarray, gradients: np.ndarray, rate: float) -> None:
    """One AdaGrad step in place on these rows; gradients of repeated rows are summed first."""
    unique, place = np.unique(rows, return_inverse=True)
    ones, columns = np.ones(len(rows), gradients.dtype), np.arange(len(rows))
    total = scipy.sparse.csr_array((ones, (place, columns)), shape=(len(unique), len(rows))) @ gradients
    squares[unique] += total**2
    table[unique] -= rate * total / (np.sqrt(squares[unique]) + 1e-8)
