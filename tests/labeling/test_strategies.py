"""Strategies of active learning beside brute force in float64."""

from typing import Any

import numpy as np
import pytest

from instructrec_jax.labeling.strategies import STRATEGIES, Beliefs, badge, core_set, select, ties

RNG = np.random.default_rng(0)
SHARES = RNG.dirichlet(np.ones(4), 30)
DRAWS = RNG.dirichlet(np.ones(4), (5, 30))
VECTORS = RNG.normal(size=(30, 6)).astype(np.float32)
KNOWN = RNG.normal(size=(3, 6)).astype(np.float32)
ALL = Beliefs(30, SHARES, DRAWS, VECTORS, KNOWN)


def test_breaking_ties_and_entropy() -> None:
    gaps = [sorted(p)[-1] - sorted(p)[-2] for p in SHARES]
    np.testing.assert_allclose(ties(SHARES), -np.array(gaps), rtol=1e-12)
    assert select("breaking_ties", ALL, 30, 0).tolist() == sorted(range(30), key=gaps.__getitem__)
    entropies = [-sum(x * np.log(x) for x in p) for p in SHARES]
    assert select("entropy", ALL, 5, 0).tolist() == sorted(range(30), key=lambda i: -entropies[i])[:5]


def test_bald() -> None:
    def h(p: np.ndarray) -> float:
        return -sum(x * np.log(x) for x in p)

    gains = [h(DRAWS[:, i].mean(0)) - np.mean([h(p) for p in DRAWS[:, i]]) for i in range(30)]
    assert select("bald", ALL, 6, 0).tolist() == sorted(range(30), key=lambda i: -gains[i])[:6]


def test_core_set() -> None:
    centers, wanted = list(KNOWN.astype(float)), []
    for _ in range(8):
        nearest = [min(np.sum((v - c) ** 2) for c in centers) for v in VECTORS.astype(float)]
        wanted.append(int(np.argmax(nearest)))
        centers.append(VECTORS[wanted[-1]].astype(float))
    assert core_set(VECTORS, KNOWN, 8).tolist() == wanted
    assert sorted(core_set(np.ones((5, 2)), np.empty((0, 2)), 5)) == list(range(5))  # equal texts: each once


def test_core_set_without_labels_begins_far_out() -> None:
    vectors = np.array([[0.0], [1.0], [2.0], [10.0]])
    assert core_set(vectors, np.empty((0, 1)), 3).tolist() == [3, 0, 2]


def test_badge_is_kmeans_plus_plus_on_gradients() -> None:
    error = SHARES - np.eye(4)[SHARES.argmax(1)]
    gradients = np.einsum("nk,nw->nkw", error, VECTORS.astype(float)).reshape(30, -1)
    rng = np.random.default_rng(7)
    wanted = [int(np.argmax((gradients**2).sum(1)))]
    while len(wanted) < 8:
        nearest = np.min([((gradients - gradients[c]) ** 2).sum(1) for c in wanted], axis=0)
        nearest[wanted] = 0
        wanted.append(int(rng.choice(30, p=nearest / nearest.sum())))
    assert badge(SHARES, VECTORS, 8, np.random.default_rng(7)).tolist() == wanted
    sure = np.tile([1.0, 0.0], (6, 1))  # no gradient at all
    assert len(set(badge(sure, VECTORS[:6], 6, rng).tolist())) == 6


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_each_text_is_chosen_once(strategy: Any) -> None:
    assert sorted(select(strategy, ALL, 99, 0).tolist()) == list(range(30))
    assert select(strategy, ALL, 7, 5).tolist() == select(strategy, ALL, 7, 5).tolist()


def test_what_is_missing_is_named() -> None:
    for strategy, said in (
        ("bald", "a network with dropout"),
        ("entropy", "a classification task"),
        ("core_set", "vectors"),
    ):
        with pytest.raises(ValueError, match=f"--strategy {strategy} needs .*{said}.*random needs nothing"):
            select(strategy, Beliefs(3), 1, 0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the pool is empty"):
        select("random", Beliefs(0), 1, 0)
    with pytest.raises(ValueError, match="--batch must be at least 1"):
        select("random", Beliefs(3), 0, 0)
    assert len(select("random", Beliefs(3), 2, 0)) == 2
