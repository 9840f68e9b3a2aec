"""Bootstrap intervals: of means and of corpus metrics, of independent cases and of cases that share owners."""

import tracemalloc

import numpy as np
import pytest
from sklearn.metrics import f1_score

from instructrec_jax.metrics.bootstrap import (
    CorpusMetric,
    bootstrap_interval,
    paired_bootstrap,
    percentile_interval,
    resampled,
    two_sample_bootstrap,
)
from instructrec_jax.metrics.ranking import ndcg


def test_paired_bootstrap():
    rng = np.random.default_rng(1)
    a = rng.normal(0.3, 1, 400)
    b = a - 0.1 + rng.normal(0, 0.05, 400)  # a is better by far less than the spread of either
    mean, low, high = paired_bootstrap(a, b, seed=0, n=2000)
    assert mean == pytest.approx((a - b).mean())
    half = 1.96 * (a - b).std() / 20  # normal approximation as the oracle
    assert low == pytest.approx(mean - half, abs=half / 5) and high == pytest.approx(mean + half, abs=half / 5)
    assert low > 0
    assert paired_bootstrap(a, b, seed=0, n=2000) == (mean, low, high)
    assert paired_bootstrap(a, a) == (0, 0, 0)


def test_bootstrap_in_blocks_and_bad_values():
    values = np.arange(3_000_000) % 7  # so long that every resample is a block of its own
    mean, low, high = bootstrap_interval(values, n=3)
    assert mean == pytest.approx(3, abs=1e-3) and low < high
    with pytest.raises(ValueError, match="cases"):
        paired_bootstrap([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="case 1"):
        bootstrap_interval([1.0, np.nan])


def test_the_bootstrap_of_few_distinct_values_is_the_same_bootstrap():
    rng = np.random.default_rng(0)
    sample = ndcg(rng.integers(1, 40, 3000), 10)
    resampled = sample[rng.integers(0, 3000, (4000, 3000))].mean(axis=1)
    mean, low, high = bootstrap_interval(sample)
    assert mean == pytest.approx(sample.mean())
    np.testing.assert_allclose([low, high], np.quantile(resampled, [0.025, 0.975]), atol=4e-4)


def test_intervals_of_cases_that_share_owners_cover_the_truth() -> None:
    """Simulated evaluations, each of 100 users with 4 cases alike: how many intervals hold the true mean."""
    rng = np.random.default_rng(0)
    owners = rng.permutation(np.repeat(np.arange(100), 4))
    covered = {"by case": 0, "by owner": 0}
    runs = 200
    for run in range(runs):
        values = 0.4 + rng.normal(0, 0.3, 100)[owners] + rng.normal(0, 0.3, 400)
        for name, who in (("by case", None), ("by owner", owners)):
            _, low, high = bootstrap_interval(values, owners=who, n=500, seed=run)
            covered[name] += low <= 0.4 <= high
    assert covered["by owner"] / runs > 0.91
    assert covered["by case"] / runs < 0.85


def test_owners_with_different_numbers_of_cases() -> None:
    rng = np.random.default_rng(0)
    owners = np.repeat(np.arange(200), rng.integers(1, 6, 200))
    values = rng.normal(0, 1, 200)[owners] + rng.normal(0, 1, len(owners))
    mean, low, high = bootstrap_interval(values, owners=owners, n=4000)
    sums, sizes = np.bincount(owners, values), np.bincount(owners)
    error = np.sqrt(np.sum((sums - mean * sizes) ** 2)) / len(owners)  # of a ratio, by linearization
    assert mean == pytest.approx(values.mean())
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.1)
    alone = bootstrap_interval(values, owners=np.arange(len(values)), n=500)
    assert alone == pytest.approx(bootstrap_interval(values, n=500), abs=0.02)
    with pytest.raises(ValueError, match="owners"):
        bootstrap_interval(values, owners=owners[:3])


def test_few_kinds_of_owners_give_the_same_interval() -> None:
    """The multinomial way, where owners are alike, against plain resampling."""
    rng = np.random.default_rng(3)
    owners = np.repeat(np.arange(300), 3)
    values = rng.integers(0, 2, 900).astype(float)
    hits = np.bincount(owners, values)
    plain = hits[rng.integers(0, 300, (4000, 300))].sum(1) / 900
    _, low, high = bootstrap_interval(values, owners=owners)
    np.testing.assert_allclose([low, high], np.quantile(plain, [0.025, 0.975]), atol=4e-3)


@pytest.mark.parametrize("shared", [False, True])
def test_corpus_metrics_are_resampled_as_means_are(shared: bool) -> None:
    rng = np.random.default_rng(0)
    owners = np.repeat(np.arange(100), 3)
    values = rng.normal(0, 1, 100)[owners] + rng.normal(0, 0.5, 300)
    who = owners if shared else None
    found = percentile_interval(resampled(CorpusMetric(lambda drawn: float(values[drawn].mean()), 300), who))
    _, low, high = bootstrap_interval(values, owners=who)
    assert found == pytest.approx((low, high), abs=0.04)


def test_differences_of_corpus_metrics_are_paired() -> None:
    rng = np.random.default_rng(0)
    truth, noise = rng.integers(0, 4, 400), rng.random(400)
    guesses = [np.where(noise < share, truth, 0) for share in (0.7, 0.65)]
    metrics = [
        CorpusMetric(lambda drawn, g=g: float(f1_score(truth[drawn], g[drawn], average="macro")), 400)  # type: ignore[misc]
        for g in guesses
    ]
    first, second = (resampled(metric) for metric in metrics)
    ends = percentile_interval(first - second)
    assert ends is not None and 0 < ends[0] < ends[1]
    alone = percentile_interval(first)
    assert alone is not None and alone[1] - alone[0] > ends[1] - ends[0]
    part = metrics[0].on(np.arange(50))
    assert part.cases == 50 and part.value(np.arange(50)) == metrics[0].value(np.arange(50))


def test_undefined_values_are_left_out() -> None:
    assert percentile_interval(np.array([np.nan, 0.5, 0.5])) == (0.5, 0.5)
    assert percentile_interval(np.full(3, np.nan)) is None


@pytest.mark.parametrize("owned", [False, True])
@pytest.mark.parametrize("distinct", [4_000, 40_000])  # counted, and drawn one by one
def test_memory_is_that_of_a_block(distinct: int, owned: bool) -> None:
    values = np.arange(40_000.0) % distinct
    tracemalloc.start()
    mean, low, high = bootstrap_interval(values, owners=np.arange(len(values)) if owned else None, n=1_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30e6 and low < mean < high  # all resamples: 32 MB of counts, 320 MB of cases


@pytest.mark.parametrize("shared", [False, True])
def test_the_two_sample_bootstrap_is_that_of_a_loop(shared: bool) -> None:
    """Owners of several cases, or none: each side is drawn by itself."""
    rng = np.random.default_rng(3)
    a, b = rng.normal(1, 1, 40), rng.normal(0, 2, 90)
    owners = (np.repeat(np.arange(10), 4), np.repeat(np.arange(30), 3)) if shared else (None, None)
    gap, low, high = two_sample_bootstrap(a, b, owners=owners, n=20_000)
    assert gap == pytest.approx(a.mean() - b.mean())

    def drawn(sample: np.ndarray, own: np.ndarray | None) -> float:
        groups = [sample[own == name] for name in np.unique(own)] if own is not None else list(sample[:, None])
        return float(np.concatenate([groups[n] for n in rng.integers(0, len(groups), len(groups))]).mean())

    means = [drawn(a, owners[0]) - drawn(b, owners[1]) for _ in range(4000)]
    np.testing.assert_allclose([low, high], np.quantile(means, [0.025, 0.975]), atol=0.04)
    with pytest.raises(ValueError, match="at least one case"):
        two_sample_bootstrap(a, [])
    with pytest.raises(ValueError, match="not finite"):
        two_sample_bootstrap(a, [np.nan])
