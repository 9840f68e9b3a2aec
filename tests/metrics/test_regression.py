import numpy as np
import pytest

from instructrec_jax.metrics.regression import regression_metrics, resampled_correlations


def pearson(a, b):
    a, b = a - a.mean(), b - b.mean()
    return (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())


def test_against_formulas():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 6, 100).astype(float)  # ties, so that Spearman must average ranks
    guess = truth + rng.normal(0, 2, 100)

    def average_ranks(x):
        return np.array([(x < v).sum() + ((x == v).sum() + 1) / 2 for v in x])

    found = regression_metrics(truth, guess.astype(np.float32))
    assert found["mse"] == pytest.approx(((truth - guess) ** 2).mean(), rel=1e-5)
    assert found["pearson"] == pytest.approx(pearson(truth, guess), rel=1e-5)
    assert found["spearman"] == pytest.approx(pearson(average_ranks(truth), average_ranks(guess)), rel=1e-5)


def test_constant_and_not_finite():
    with pytest.warns(UserWarning, match="predictions"):
        assert regression_metrics([1.0, 2.0, 3.0], [2.0, 2.0, 2.0]) == {
            "mse": pytest.approx(2 / 3),
            "pearson": 0.0,
            "spearman": 0.0,
        }
    with pytest.raises(ValueError, match="predictions .*case 1"):
        regression_metrics([1.0, 2.0], [1.0, np.nan])
    with pytest.raises(ValueError, match="targets and predictions"):
        regression_metrics([1.0], [1.0, 2.0])


def test_correlations_of_any_cases():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 5, 50).astype(float)
    guess, drawn = truth + rng.normal(0, 2, 50), rng.integers(0, 50, 50)
    expected = regression_metrics(truth[drawn], guess[drawn])
    for name, metric in resampled_correlations(truth, guess).items():
        assert metric.value(drawn) == pytest.approx(expected[name])
        assert np.isnan(metric.value(np.zeros(50, int)))
    assert resampled_correlations(truth, np.zeros(50)) == {}
