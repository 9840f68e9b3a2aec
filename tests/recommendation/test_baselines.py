import math
from collections import Counter

import numpy as np
import pytest

from instructrec_jax.recommendation.baselines import (
    BM25,
    CoOccurrence,
    Markov,
    Popularity,
    Random,
    score_in_blocks,
    words,
)

ITEMS = 12


@pytest.fixture
def sequences():
    rng = np.random.default_rng(0)
    return [rng.permutation(ITEMS)[: rng.integers(0, ITEMS + 1)] for _ in range(40)]


@pytest.fixture
def histories():
    rng = np.random.default_rng(1)
    return [rng.permutation(ITEMS)[:length] for length in (0, 1, 2, 5, 11)]


def popularity_of(sequences):
    return Counter(int(item) for sequence in sequences for item in sequence)


def test_popularity(sequences, histories):
    scores = Popularity().fit(sequences, ITEMS).score(histories)
    expected = [popularity_of(sequences)[item] for item in range(ITEMS)]
    np.testing.assert_array_equal(scores, [expected] * len(histories))


def test_markov_against_loops(sequences, histories):
    popularity = popularity_of(sequences)
    counts = Counter((int(a), int(b)) for s in sequences for a, b in zip(s[:-1], s[1:], strict=True))
    scores = Markov().fit(sequences, ITEMS).score(histories)
    for case, history in enumerate(histories):
        # popularity may only decide between items that followed equally often
        wanted = [(counts[int(history[-1]), item] if len(history) else 0, popularity[item]) for item in range(ITEMS)]
        order = sorted(range(ITEMS), key=lambda item: (wanted[item], item))
        found = sorted(range(ITEMS), key=lambda item: (scores[case, item], item))
        assert found == order
        assert [int(s) for s in scores[case]] == [w[0] for w in wanted]


@pytest.mark.parametrize(("window", "depth"), [(10, 20), (3, 4)])
def test_co_occurrence_against_loops(sequences, histories, window, depth):
    popularity = popularity_of(sequences)
    links = np.zeros((ITEMS, ITEMS))
    for s in sequences:
        for i in range(len(s)):
            for j in range(i + 1, min(i + window, len(s) - 1) + 1):
                links[s[i], s[j]] += 1 / (j - i)
                links[s[j], s[i]] += 0.5 / (j - i)
    expected = np.zeros((len(histories), ITEMS))
    for case, history in enumerate(histories):
        for back, item in enumerate(reversed(history[-depth:].tolist())):
            for other in range(ITEMS):
                expected[case, other] += 0.8**back * links[item, other] / math.sqrt(popularity[other])
    scores = CoOccurrence(window=window, depth=depth).fit(sequences, ITEMS).score(histories)
    np.testing.assert_allclose(scores, expected, rtol=1e-6, atol=1e-8)


def test_co_occurrence_orders_unlinked_items_by_popularity():
    scores = CoOccurrence().fit([[0, 1], [2], [2], [3]], 5).score([[0], []])
    assert scores[0].argsort()[::-1].tolist()[:3] == [1, 2, 3]
    assert scores[1].argmax() == 2


def test_bm25_against_formula():
    texts = ["Alien (1979). Horror, Sci-Fi.", "Aliens (1986). Action, Sci-Fi.", "Sci-Fi sci-fi night", "Heat"]
    query = "sci-fi horror horror tonight"
    documents = [words(text) for text in texts]
    mean = sum(map(len, documents)) / len(documents)
    expected = []
    for document in documents:
        total = 0.0
        for word in words(query):
            n = sum(word in d for d in documents)
            if not n:
                continue
            tf = document.count(word)
            idf = math.log(1 + (len(texts) - n + 0.5) / (n + 0.5))
            total += idf * tf * 2.2 / (tf + 1.2 * (0.25 + 0.75 * len(document) / mean))
        expected.append(total)
    scores = BM25(texts).fit([], 4).score([[]], [query])
    np.testing.assert_allclose(scores[0], expected)
    assert scores[0].argmax() == 0 and scores[0, 3] == 0


def test_words():
    assert words("Amélie's 2 CAFÉS_and 星球大战!") == [
        "amélie",
        "s",
        "2",
        "cafés",
        "and",
        "星",
        "球",
        "大",
        "战",
    ]


def test_blocks_give_what_one_call_gives(sequences, histories):
    instructions = [f"item number {case}" for case in range(len(histories))]
    texts = [f"item {number}" for number in range(ITEMS)]
    for baseline in (Random(3), Popularity(), Markov(), CoOccurrence(), BM25(texts)):
        baseline.fit(sequences, ITEMS)
        whole = baseline.score(histories, instructions)
        blocks = list(score_in_blocks(baseline, histories, instructions, block=2))
        assert [(cases.start, cases.stop) for cases, _ in blocks] == [(0, 2), (2, 4), (4, 5)]
        np.testing.assert_array_equal(np.concatenate([scores for _, scores in blocks]), whole)
        assert whole.shape == (len(histories), ITEMS) and whole.dtype == np.float64


def test_random_depends_on_seed_and_case(histories):
    first, second = Random(0).fit([], ITEMS), Random(1).fit([], ITEMS)
    assert not np.array_equal(first.score(histories), second.score(histories))
    assert len({row.tobytes() for row in first.score(histories)}) == len(histories)


def test_bad_input(histories):
    with pytest.raises(ValueError, match=r"0\.\.3"):
        Popularity().fit([[4]], 4)
    with pytest.raises(ValueError, match=r"0\.\.3"):
        Markov().fit([[0, 1]], 4).score([[-1]])
    with pytest.raises(ValueError, match="needs 1 instructions"):
        BM25(["a"]).score([[]])
    with pytest.raises(ValueError, match="1 item texts"):
        BM25(["a"]).fit([], 2)
