"""Scores of the domain compared with brute force and scikit-learn."""

import numpy as np
import pytest
from sklearn.covariance import LedoitWolf
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.neighbors import NearestNeighbors

from instructrec_jax.metrics import out_of_domain
from instructrec_jax.metrics.out_of_domain import NEIGHBORS, auroc, domain_metrics, logit_score, unit, vector_statistics

WIDTH = 5


def vectors(count: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count) * 2  # labels without examples do not count
    return rng.normal(size=(count, WIDTH)) * [1, 2, 3, 0.1, 1] + labels[:, None], labels


def test_scores_of_logits() -> None:
    logits = np.array([[2.0, 0.0], [9.0, 9.0]])
    np.testing.assert_allclose(logit_score("max_probability", logits), [1 / (1 + np.exp(-2)), 0.5])
    np.testing.assert_allclose(logit_score("negative_energy", logits), np.log(np.exp(logits).sum(-1)))


def test_mahalanobis_is_that_of_the_formula() -> None:
    train, labels = vectors()
    asked = vectors(7, 1)[0]
    found = vector_statistics(train, labels).score("mahalanobis", asked)
    means = {label: train[labels == label].mean(0) for label in set(labels.tolist())}
    around = np.stack([v - means[label] for v, label in zip(train, labels.tolist(), strict=True)])
    precision = np.linalg.inv(LedoitWolf(assume_centered=True).fit(around).covariance_)
    wanted = [-min((v - m) @ precision @ (v - m) for m in means.values()) for v in asked]
    np.testing.assert_allclose(found, wanted, rtol=1e-9)


def test_neighbors_are_those_of_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    train, labels = vectors()
    asked = np.concatenate([vectors(7, 1)[0], train[:2], np.zeros((1, WIDTH))])
    found = vector_statistics(train, labels).score("knn", asked)
    fitted = NearestNeighbors(n_neighbors=NEIGHBORS).fit(train / np.linalg.norm(train, axis=1, keepdims=True))
    distances, _ = fitted.kneighbors(unit(asked))
    np.testing.assert_allclose(found, -distances[:, -1], atol=1e-6)
    monkeypatch.setattr(out_of_domain, "BLOCK", 2 * len(train))  # two texts at a time
    np.testing.assert_array_equal(vector_statistics(train, labels).score("knn", asked), found)


def test_fewer_vectors_than_neighbors_or_dimensions() -> None:
    train, labels = vectors(4)
    statistics = vector_statistics(train, labels)
    for name in ("mahalanobis", "knn"):
        assert np.isfinite(statistics.score(name, train)).all() and len(statistics.score(name, train[:0])) == 0


def test_vectors_that_say_nothing_are_named() -> None:
    train, labels = vectors()
    with pytest.raises(ValueError, match="1 training vectors"):
        vector_statistics(train[:1], labels[:1])
    with pytest.raises(ValueError, match="not all finite"):
        vector_statistics(np.where(train == train.max(), np.nan, train), labels)
    with pytest.raises(ValueError, match="equal"):
        vector_statistics(np.full((9, WIDTH), 0.1), labels[:9])


def test_auroc_is_that_of_scikit_learn_with_ties() -> None:
    rng = np.random.default_rng(0)
    inside, outside = rng.normal(1, 1, 80).round(1), rng.normal(0, 1, 60).round(1)
    truth = np.repeat([1, 0], [80, 60])
    assert auroc(inside, outside) == pytest.approx(roc_auc_score(truth, np.concatenate([inside, outside])))


def test_metrics_and_their_intervals() -> None:
    rng = np.random.default_rng(0)
    inside, outside = rng.normal(1, 1, 200).round(1), rng.normal(-1, 1, 150).round(1)
    found = domain_metrics(inside, outside, n=200)
    scores, other = np.concatenate([inside, outside]), np.repeat([0, 1], [200, 150])
    highest = max(t for t in scores if (inside >= t).mean() >= 0.95)
    wanted = {
        "auroc": roc_auc_score(1 - other, scores),
        "fpr_at_95_tpr": (outside >= highest).mean(),
        "aupr": average_precision_score(other, -scores),
    }
    for name, value in wanted.items():
        middle, low, high = found[name]
        assert middle == pytest.approx(value) and low < middle < high and high - low < 0.3
    assert domain_metrics(inside, outside, n=200) == found


def test_a_perfect_score_and_a_useless_one() -> None:
    assert domain_metrics(np.array([2.0, 3.0]), np.array([0.0, 1.0]), n=20)["auroc"] == [1, 1, 1]
    useless = domain_metrics(np.ones(4), np.ones(4), n=20)
    assert useless["auroc"][0] == 0.5 and useless["fpr_at_95_tpr"][0] == 1
