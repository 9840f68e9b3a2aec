"""n-gram language models: the probability of a token given the last few."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FALLBACK = (0.5, 1.0, 1.5)  # discounts where counts of counts are 0, as in KenLM (Heafield et al., 2013)


@dataclass(frozen=True)
class _Level:
    """The n-grams of one length.

    Lookup is column by column: `keys[j]` has the sorted values (number of the first j tokens) * base + token j; the
    index of a value is the number of the first j + 1 tokens.
    """

    keys: list[np.ndarray]
    discounted: np.ndarray  # [n-grams] (count − D) / count of the context
    backoff: np.ndarray  # [contexts] probability left for the shorter context


class KneserNey:
    """Interpolated modified Kneser–Ney smoothing (Chen & Goodman, 1999, sections 3 and 4.1.6).

    c(h w) is the count of the n-gram h w or, for n below `order`, the number of different tokens before it:

        p(w | h) = (c(h w) − D(c(h w))) / c(h) + γ(h) p(w | h without its first token)

    with discounts D for counts of one, two and more, and γ(h) = Σ D / c(h), so that p sums to 1. Unigrams are
    interpolated with 1 / vocab_size, so unseen tokens have a probability. Texts start with `order` − 1 start symbols.

    Args:
      texts: int [length] each, tokens below `vocab_size`.
      order: length of the longest n-gram; 1 gives (discounted) relative frequencies.

    Raises:
      ValueError: no tokens, or a token outside of the vocabulary.
    """

    def __init__(self, texts: Sequence[np.ndarray], order: int, vocab_size: int) -> None:
        self.order, self.vocab_size = order, vocab_size
        grams = self._grams(texts)
        if not len(grams):
            raise ValueError("there are no tokens to count.")
        self.levels: list[_Level] = []
        for length in range(order, 0, -1):
            ids, keys = np.zeros(len(grams), np.int64), []
            for column in grams[:, order - length :].T:
                found, first, ids = np.unique(ids * (vocab_size + 1) + column, return_index=True, return_inverse=True)
                keys.append(found)
            counts = np.bincount(ids)
            discount = discounts(counts)[np.minimum(counts, 3)]
            context = keys[-1] // (vocab_size + 1)
            total = np.bincount(context, weights=counts)
            backoff = np.bincount(context, weights=discount) / total
            self.levels.insert(0, _Level(keys, (counts - discount) / total[context], backoff))
            grams = grams[first]  # each n-gram once: the next level counts the different tokens before its n-grams

    def log_probabilities(self, texts: Sequence[np.ndarray]) -> list[np.ndarray]:
        """log p of each token of each text, given the tokens before it: float64 [length] each."""
        grams = self._grams(texts)
        p = np.full(len(grams), 1 / self.vocab_size)
        for length, level in enumerate(self.levels, 1):
            ids, known = np.zeros(len(grams), np.int64), np.ones(len(grams), bool)
            for keys, column in zip(level.keys, grams[:, self.order - length :].T, strict=True):
                context, known_context = ids, known
                key = ids * (self.vocab_size + 1) + column
                ids = np.minimum(np.searchsorted(keys, key), len(keys) - 1)
                known = known & (keys[ids] == key)
            longer = np.where(known, level.discounted[ids], 0) + level.backoff[context] * p
            p = np.where(known_context, longer, p)
        return np.split(np.log(p), np.cumsum([len(text) for text in texts])[:-1])

    def _grams(self, texts: Sequence[np.ndarray]) -> np.ndarray:
        """int64 [tokens of all texts, order]: each token (last column) with the tokens before it."""
        start = np.full(self.order - 1, self.vocab_size)  # the start symbol: not the number of any token
        if any(len(text) and not 0 <= text.min() <= text.max() < self.vocab_size for text in texts):
            raise ValueError(f"a token is outside of the vocabulary 0..{self.vocab_size - 1}.")
        padded = np.concatenate([part for text in texts for part in (start, text)] or [start]).astype(np.int64)
        if len(padded) < self.order:
            return np.zeros((0, self.order), np.int64)
        grams = np.lib.stride_tricks.sliding_window_view(padded, self.order)
        return grams[grams[:, -1] != self.vocab_size]


def discounts(counts: np.ndarray) -> np.ndarray:
    """D(0) = 0, D(1), D(2) and D(3 or more) from the numbers of n-grams that occur once, twice, three and four times.

    `FALLBACK` where one of these numbers is 0, or a D would not lie in 0..count.
    """
    n = np.bincount(np.minimum(counts, 5), minlength=6)[1:5].astype(float)
    if n.all():
        d = np.array([r - (r + 1) * n[0] / (n[0] + 2 * n[1]) * n[r] / n[r - 1] for r in (1, 2, 3)])
        if (d >= 0).all():
            return np.concatenate([[0], d])
    return np.array([0, *FALLBACK])
