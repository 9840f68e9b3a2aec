"""Kneser–Ney smoothing, against the formulas written out with dictionaries."""

import math
from collections import Counter, defaultdict
from typing import Any

import numpy as np
import pytest

from instructrec_jax.tasks.generation.ngram import FALLBACK, KneserNey, discounts

START = "start"


def texts(seed: int, count: int, vocab: int) -> list[np.ndarray]:
    """Ragged texts, some empty, in which tokens follow one another with a preference, and some are rare."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        text = [int(rng.integers(vocab))]
        for _ in range(int(rng.integers(0, 30))):
            rare = int(min(rng.zipf(1.2), vocab)) - 1
            text.append(rare if rng.random() < 0.2 else (text[-1] * 3 + int(rng.geometric(0.5))) % vocab // 4)
        made.append(np.array(text if rng.random() > 0.1 else [], np.int32))
    return made


class Written:
    """Chen & Goodman's equations, one look-up at a time."""

    def __init__(self, data: list[np.ndarray], order: int, vocab: int):
        self.order, self.vocab = order, vocab
        seen = [
            tuple(([START] * (order - 1) + [int(t) for t in text])[i : i + order])
            for text in data
            for i in range(len(text))
        ]
        self.counts: dict[int, Counter[Any]] = {order: Counter(seen)}
        for length in range(order - 1, 0, -1):
            before = defaultdict(set)
            for gram in {g[order - length - 1 :] for g in seen}:
                before[gram[1:]].add(gram[0])
            self.counts[length] = Counter({gram: len(words) for gram, words in before.items()})
        self.discount = {length: self._discount(counts) for length, counts in self.counts.items()}

    @staticmethod
    def _discount(counts: Any) -> Any:
        n = Counter(counts.values())
        n1, n2, n3, n4 = (n[i] for i in (1, 2, 3, 4))
        if 0 in (n1, n2, n3, n4):
            return FALLBACK
        y = n1 / (n1 + 2 * n2)
        d = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
        return d if min(d) >= 0 else FALLBACK

    def p(self, word: int, context: tuple[Any, ...]) -> float:
        """context: the last order - 1 tokens."""
        length = len(context) + 1
        shorter = self.p(word, context[1:]) if context else 1 / self.vocab
        followers = {g: c for g, c in self.counts[length].items() if g[:-1] == context}
        total = sum(followers.values())
        if not total:
            return shorter
        d = self.discount[length]
        own = followers.get((*context, word), 0)
        left = sum(d[min(c, 3) - 1] for c in followers.values())
        return ((own - d[min(own, 3) - 1]) / total if own else 0) + left / total * shorter


@pytest.mark.parametrize("order", [1, 2, 3, 5])
@pytest.mark.parametrize("size", [3, 40])  # few texts: no counts of counts; many: discounts of their own
def test_equals_the_formulas(order: int, size: int) -> None:
    vocab = 60
    data, others = texts(order, size, vocab - 2), texts(order + 100, 4, vocab)  # two tokens never occur
    model, written = KneserNey(data, order, vocab), Written(data, order, vocab)
    if size == 40 and order > 1:
        assert any(d != FALLBACK for d in written.discount.values())
    for text, found in zip(others, model.log_probabilities(others), strict=True):
        padded = [START] * (order - 1) + text.tolist()
        expected = [math.log(written.p(word, tuple(padded[i : i + order - 1]))) for i, word in enumerate(text.tolist())]
        np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("order", [1, 3, 5])
def test_sums_to_one_over_the_vocabulary(order: int) -> None:
    vocab = 50
    model = KneserNey(texts(3, 80, 40), order, vocab)
    for context in [[], [7], [7, 22], [49, 48, 47], [1, 2, 3, 4, 5, 6], *[t.tolist() for t in texts(4, 10, 45)]]:
        every = model.log_probabilities([np.array([*context, word]) for word in range(vocab)])
        assert np.exp([each[-1] for each in every]).sum() == pytest.approx(1, abs=1e-12)


def test_known_numbers() -> None:
    """A unigram model by hand: counts 3, 1 in a vocabulary of 4, discounts 1.5 and 0.5."""
    model = KneserNey([np.array([0, 0, 0, 1])], 1, 4)
    left = (1.5 + 0.5) / 4
    expected = np.log([1.5 / 4 + left / 4, 0.5 / 4 + left / 4, left / 4, left / 4])
    np.testing.assert_allclose(model.log_probabilities([np.arange(4)])[0], expected)


def test_a_longer_context_is_better_where_order_matters() -> None:
    data = [np.array([i, 9, i, 8] * 3) for i in range(5)] * 4
    losses = [-np.concatenate(KneserNey(data, n, 10).log_probabilities(data)).mean() for n in (1, 2, 3)]
    assert losses[0] > losses[1] > losses[2]


def test_large_vocabularies_do_not_overflow() -> None:
    vocab = 256_000
    rng = np.random.default_rng(0)
    data = [rng.integers(0, vocab, 20_000)]
    again = KneserNey(data, 5, vocab).log_probabilities(data)[0]
    assert np.exp(again[10:]).mean() > 0.4  # almost every n-gram occurs once, and is found
    assert np.isfinite(again).all()


def test_discounts_need_all_counts_of_counts() -> None:
    assert discounts(np.array([1, 1, 2, 3])).tolist() == [0, *FALLBACK]
    d = discounts(np.array([1] * 10 + [2] * 4 + [3] * 2 + [4]))
    y = 10 / 18
    np.testing.assert_allclose(d, [0, 1 - 2 * y * 0.4, 2 - 3 * y * 0.5, 3 - 4 * y * 0.5])


def test_errors() -> None:
    with pytest.raises(ValueError, match="tokens"):
        KneserNey([np.zeros(0, int)], 2, 5)
    with pytest.raises(ValueError, match="0..4"):
        KneserNey([np.array([5])], 1, 5)
    with pytest.raises(ValueError, match="0..4"):
        KneserNey([np.array([1])], 2, 5).log_probabilities([np.array([7])])
