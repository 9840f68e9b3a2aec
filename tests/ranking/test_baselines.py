import math
from collections import Counter

import numpy as np
import pytest
from scipy import optimize

from instructrec_jax.ranking import baselines
from instructrec_jax.ranking.baselines import (
    BM25,
    BPR,
    EASE,
    CoOccurrence,
    ItemKNN,
    Markov,
    Popularity,
    Random,
    _adagrad,
    counts_of,
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


def test_counts_of_few_sequences_at_a_time(sequences):
    many = [np.asarray(sequence, np.int32) for sequence in sequences] * 60
    expected = popularity_of(many)
    assert counts_of(many, ITEMS).tolist() == [expected[item] for item in range(ITEMS)]
    assert counts_of([], ITEMS).tolist() == [0] * ITEMS


@pytest.mark.parametrize("divide_by", ["target", "source"])
def test_links_do_not_depend_on_how_many_are_counted_at_once(sequences, divide_by, monkeypatch):
    whole = CoOccurrence(divide_by=divide_by).fit(sequences, ITEMS)
    monkeypatch.setattr(baselines, "PAIRS", 1)
    parts = CoOccurrence(divide_by=divide_by).fit(sequences, ITEMS)
    assert whole.links.toarray().tobytes() == parts.links.toarray().tobytes()


def test_many_links_are_cut_to_the_strongest_of_each_item(sequences, monkeypatch):
    whole = CoOccurrence().fit(sequences, ITEMS).links.toarray()
    monkeypatch.setattr(baselines, "LINKS", 3 * ITEMS)
    cut = CoOccurrence().fit(sequences, ITEMS).links.toarray()
    for row, kept in zip(whole, cut, strict=True):
        best = sorted(range(ITEMS), key=lambda item: (-row[item], item))[:3]
        np.testing.assert_array_equal(kept, [row[item] if item in best else 0 for item in range(ITEMS)])


@pytest.mark.parametrize(("window", "depth", "divide_by"), [(10, 20, "target"), (3, 4, "target"), (10, 20, "source")])
def test_co_occurrence_against_loops(sequences, histories, window, depth, divide_by):
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
                divisor = math.sqrt(popularity[other if divide_by == "target" else item])
                expected[case, other] += 0.8**back * links[item, other] / max(divisor, 1)
    method = CoOccurrence(window=window, depth=depth, divide_by=divide_by)
    scores = method.fit(sequences, ITEMS).score(histories)
    np.testing.assert_allclose(scores, expected, rtol=1e-6, atol=1e-8)


def test_co_occurrence_orders_unlinked_items_by_popularity():
    scores = CoOccurrence().fit([[0, 1], [2], [2], [3]], 5).score([[0], []])
    assert scores[0].argsort()[::-1].tolist()[:3] == [1, 2, 3]
    assert scores[1].argmax() == 2


def objective(model, users, factors, triples):
    """The sum over triples (user, wanted, other) of the docstring's formula, in plain float64."""
    total = 0.0
    for u, i, j in triples:
        margin = users[u] @ factors[i] - users[u] @ factors[j]
        squares = users[u, :-1] @ users[u, :-1] + factors[i] @ factors[i] + factors[j] @ factors[j]
        total += math.log1p(math.exp(-margin)) + model.regularization / 2 * squares
    return total


def test_bpr_gradients_against_differences():
    rng = np.random.default_rng(0)
    users, factors = rng.normal(size=(3, 5)), rng.normal(size=(6, 5))
    users[:, -1] = 1
    triples = np.array([(0, 1, 2), (0, 1, 3), (1, 5, 0), (2, 2, 1)])
    model = BPR(size=4, regularization=0.3)
    user, wanted, other = triples.T
    of_users, of_items = model._gradients(users, factors, user, wanted, other)
    found = np.zeros_like(users), np.zeros_like(factors)
    np.add.at(found[0], user, of_users)
    np.add.at(found[1], np.concatenate([wanted, other]), of_items)
    for table, gradient in zip((users, factors), found, strict=True):
        for place in np.ndindex(table.shape):
            if table is users and place[1] == 4:
                assert gradient[place] == 0  # the constant that the bias is multiplied with
                continue
            values = []
            for change in (1e-6, -1e-6):
                table[place] += change
                values.append(objective(model, users, factors, triples))
                table[place] -= change
            np.testing.assert_allclose(gradient[place], (values[0] - values[1]) / 2e-6, atol=1e-6)


def test_bpr_folds_in_the_best_user(sequences, histories):
    model = BPR(size=4, epochs=5, regularization=0.05).fit(sequences, ITEMS)
    others = [int(np.flatnonzero((model.q == q).all(1))[0]) for q in model.compared]
    for history in histories[1:]:

        def mean_objective(p, history=history):
            scores = model.q.astype(np.float64) @ p + model.bias
            margins = scores[history][:, None] - scores[others]
            return np.log1p(np.exp(-margins)).mean() + 0.05 / 2 * p @ p

        best = optimize.minimize(mean_objective, np.zeros(4), tol=1e-10).x
        np.testing.assert_allclose(model.fold_in(history), best, atol=2e-3)
    np.testing.assert_allclose(model.score(histories)[0], model.bias)
    p = model.fold_in(histories[2])
    np.testing.assert_allclose(model.score(histories)[2], model.q @ p + model.bias, rtol=1e-6)


def test_bpr_learns_tastes():
    """Two kinds of users who never share an item: half a history tells which other items to put first."""
    rng = np.random.default_rng(0)
    sequences = [rng.permutation(6)[:5] + 6 * (user % 2) for user in range(60)]
    scores = BPR(size=4, epochs=30, learning_rate=0.1).fit(sequences, 12).score([[0, 1, 2], [8, 7, 6], [11, 9]])
    assert set(scores[0].argsort()[::-1][:6]) == set(range(6))
    assert set(scores[1].argsort()[::-1][:6]) == set(scores[2].argsort()[::-1][:6]) == set(range(6, 12))


def test_bpr_depends_on_the_seed_alone(sequences, histories):
    def scores(seed):
        return BPR(size=4, epochs=2, batch=16, seed=seed).fit(sequences, ITEMS).score(histories)

    np.testing.assert_array_equal(scores(1), scores(1))
    assert not np.array_equal(scores(1), scores(2))


def test_bpr_adds_up_the_gradients_of_a_row():
    table, squares = np.zeros((3, 2)), np.zeros((3, 2))
    for _ in range(2):
        _adagrad(table, squares, np.array([2, 0, 2]), np.array([[1.0, 2], [3, 4], [5, 6]]), 0.1)
    np.testing.assert_allclose(squares, 2 * np.array([[9, 16], [0, 0], [36, 64]]))
    np.testing.assert_allclose(table[[0, 2]], -0.1 * (1 + 1 / math.sqrt(2)), rtol=1e-6)
    assert not table[1].any()


def test_bpr_never_takes_a_chosen_item_for_another(monkeypatch):
    """User 0 chose all items but one, user 1 all: she has no pairs."""
    taken = []
    original = BPR._gradients

    def spy(self, users, factors, user, wanted, other):
        taken.extend(zip(user.tolist(), other.tolist(), strict=True))
        return original(self, users, factors, user, wanted, other)

    monkeypatch.setattr(BPR, "_gradients", spy)
    model = BPR(size=2, epochs=20).fit([[0, 1, 2], [0, 1, 2, 3], []], 4)
    assert set(taken) == {(0, 3)} and np.isfinite(model.score([[0, 3], []])).all()
    assert np.isfinite(BPR(size=2, epochs=1).fit([], 4).score([[1]])).all()


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
    for baseline in (Random(3), Popularity(), Markov(), CoOccurrence(), BPR(size=8, epochs=1), BM25(texts)):
        baseline.fit(sequences, ITEMS)
        whole = baseline.score(histories, instructions)
        parts = [slice(0, 2), slice(2, 4), slice(4, 5)]
        blocks = [baseline.score(histories[part], instructions[part]) for part in parts]
        np.testing.assert_array_equal(np.concatenate(blocks), whole)
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
    with pytest.raises(ValueError, match="BM25"):
        BM25(["a"]).score([[]])
    with pytest.raises(ValueError, match="BM25"):
        BM25(["a"]).fit([], 2)


def binary(sequences):
    held = np.zeros((len(sequences), ITEMS))
    for user, sequence in enumerate(sequences):
        held[user, sequence] = 1
    return held


def weights_of(histories, decay):
    weights = np.zeros((len(histories), ITEMS))
    for case, history in enumerate(histories):
        for place, item in enumerate(reversed(history)):
            weights[case, item] = decay**place
    return weights


@pytest.mark.parametrize("decay", [1.0, 0.5])
def test_ease_is_the_best_linear_autoencoder(sequences, histories, decay):
    """Its weights minimize |X − XB|² + λ|B|² with a diagonal of zeros: each column is a ridge regression."""
    held, regularization = binary(sequences), 3.0
    wanted = np.zeros((ITEMS, ITEMS))
    for item in range(ITEMS):
        others = np.delete(np.arange(ITEMS), item)
        of_others = held[:, others]
        gram = of_others.T @ of_others + regularization * np.eye(ITEMS - 1)
        wanted[others, item] = np.linalg.solve(gram, of_others.T @ held[:, item])
    model = EASE(regularization, decay).fit(sequences, ITEMS)
    np.testing.assert_allclose(model.weights, wanted, atol=1e-12)
    scores = model.score(histories)
    np.testing.assert_allclose(scores, weights_of(histories, decay) @ wanted, atol=1e-8)
    assert scores[0].argmax() == held.sum(0).argmax()  # an empty history: popularity


@pytest.mark.parametrize(("neighbors", "decay"), [(ITEMS, 1.0), (3, 0.7)])
def test_item_knn_against_loops(sequences, histories, neighbors, decay):
    held, shrink = binary(sequences), 2.0
    counts, similar = held.sum(0), np.zeros((ITEMS, ITEMS))
    for a in range(ITEMS):
        for b in range(ITEMS):
            if a != b:
                similar[a, b] = (held[:, a] * held[:, b]).sum() / (math.sqrt(counts[a] * counts[b]) + shrink)
    for row in similar:  # of equal ones, those of the lowest numbers
        row[np.argsort(-row, kind="stable")[neighbors:]] = 0
    scores = ItemKNN(neighbors, shrink, decay).fit(sequences, ITEMS).score(histories)
    np.testing.assert_allclose(scores, weights_of(histories, decay) @ similar.T, atol=1e-8)


def test_repeated_and_missing_items():
    sequences = [[0, 0, 1], [], [1, 0]]
    once = [[0, 1], [], [1, 0]]
    for make in (EASE, ItemKNN):
        scores = make().fit(sequences, 4).score([[0], []])
        np.testing.assert_array_equal(scores, make().fit(once, 4).score([[0], []]))
        assert np.isfinite(scores).all() and scores[0, 1] == scores[0].max()
        assert np.isfinite(make().fit([], 4).score([[], [1]])).all()


def test_bm25_of_texts_without_words():
    assert BM25(["…", "!"]).fit([], 2).score([[]], ["…"]).tolist() == [[0, 0]]
