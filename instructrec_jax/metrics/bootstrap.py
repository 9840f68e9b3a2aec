"""95% bootstrap intervals of means and of corpus metrics (Efron & Tibshirani 1993, chapter 13).

Cases of one user, document or conversation (their owner) are correlated, so drawing them one by one gives intervals
that are too narrow. Instead, owners are drawn, each with all its cases (the cluster bootstrap: Davison & Hinkley 1997,
section 3.8).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

CORPUS_RESAMPLES = 1000
BLOCK = 1_000_000  # numbers that are drawn at once: all resamples may not fit in memory
CASES_DRAWN = 20_000_000  # limit on a corpus metric's cases over all resamples, of which there are at least 200


@dataclass(frozen=True)
class CorpusMetric:
    """A metric that is not a mean over cases, such as macro F1, BLEU or a correlation.

    Attributes:
      value: case numbers int64 [n], with repetitions -> the metric on these cases; NaN: undefined.
      cases: number of cases.
    """

    value: Callable[[np.ndarray], float]
    cases: int

    def on(self, inside: np.ndarray) -> "CorpusMetric":
        """The same metric on the cases with the numbers `inside`, int64 [cases]."""
        return CorpusMetric(lambda drawn: self.value(inside[drawn]), len(inside))


def bootstrap_interval(
    values: ArrayLike, *, owners: np.ndarray | None = None, seed: int = 0, n: int = 10_000
) -> tuple[float, float, float]:
    """(mean, low, high): mean of `values` [cases] and its 95% percentile bootstrap interval.

    Args:
      owners: int [cases]; cases with the same owner are drawn together. None: each case is drawn by itself.
      seed: determines the interval.
      n: number of resamples.

    Raises:
      ValueError: no case, a value that is not finite, or an n below 1.
    """
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or not sample.size:
        raise ValueError(f"the bootstrap needs values [cases] with at least one case, got shape {sample.shape}.")
    if not np.isfinite(sample).all():
        raise ValueError(f"value of case {int(np.argmin(np.isfinite(sample)))} is not finite.")
    if n < 1:
        raise ValueError(f"n, the number of resamples, must be at least 1, got {n}.")
    low, high = np.quantile(_means(sample, owners, np.random.default_rng(seed), n), [0.025, 0.975])
    return float(sample.mean()), float(low), float(high)


def two_sample_bootstrap(
    a: ArrayLike,
    b: ArrayLike,
    *,
    owners: tuple[np.ndarray | None, np.ndarray | None] = (None, None),
    seed: int = 0,
    n: int = 10_000,
) -> tuple[float, float, float]:
    """(mean of a − mean of b, low, high): 95% interval with a [cases] and b [other cases] resampled independently.

    For values of different cases (Efron & Tibshirani 1993, section 8.3). `owners`: of each, as in `bootstrap_interval`,
    none of them in both. Raises ValueError as that.
    """
    gap = bootstrap_interval(a, owners=owners[0], n=1)[0] - bootstrap_interval(b, owners=owners[1], n=1)[0]
    rng = np.random.default_rng(seed)
    first, second = (
        _means(np.asarray(sample, dtype=np.float64), own, rng, n) for sample, own in zip((a, b), owners, strict=True)
    )
    low, high = np.quantile(first - second, [0.025, 0.975])
    return gap, float(low), float(high)


def _means(sample: np.ndarray, owners: np.ndarray | None, rng: np.random.Generator, n: int) -> np.ndarray:
    """Means of n resamples of `sample` [cases], float64 [n]."""
    if owners is None:
        return _means_of_cases(sample, rng, n)
    number = _numbered(owners, len(sample))
    return _means_of_owners(np.stack([np.bincount(number, sample), np.bincount(number)]), rng, n)


def _means_of_cases(sample: np.ndarray, rng: np.random.Generator, n: int) -> np.ndarray:
    """Means of n resamples of `sample` [cases], float64 [n]."""
    distinct, counts = np.unique(sample, return_counts=True)
    if 10 * len(distinct) <= len(sample):  # few distinct values (of ranks, say): multinomial counts are cheaper
        return np.concatenate([each @ distinct / len(sample) for each in _counted(counts, rng, n)])
    return np.concatenate([sample[drawn].mean(axis=1) for drawn in _draws(len(sample), rng, n)])


def _means_of_owners(pairs: np.ndarray, rng: np.random.Generator, n: int) -> np.ndarray:
    """Means over all cases of n resamples of owners, float64 [n].

    pairs: float64 [2, owners], the sum of an owner's values and the number of its cases.
    """
    owners = pairs.shape[1]
    distinct, counts = np.unique(pairs, axis=1, return_counts=True)
    if 10 * len(counts) <= owners:
        return np.concatenate([np.divide(*(distinct @ each.T)) for each in _counted(counts, rng, n)])
    return np.concatenate([np.divide(*pairs[:, drawn].sum(axis=2)) for drawn in _draws(owners, rng, n)])


def _draws(size: int, rng: np.random.Generator, n: int) -> Iterator[np.ndarray]:
    """n draws of `size` from `size` with replacement, int64 [some of the n, size] at a time."""
    return (rng.integers(0, size, (rows, size)) for rows in _blocks(size, n))


def _counted(counts: np.ndarray, rng: np.random.Generator, n: int) -> Iterator[np.ndarray]:
    """The same, as how often each of some kinds is drawn, int64 [some of the n, kinds]. counts: of each kind."""
    size = counts.sum()
    return (rng.multinomial(size, counts / size, size=rows) for rows in _blocks(len(counts), n))


def _blocks(size: int, n: int) -> Iterator[int]:
    """n rows of `size` numbers in blocks: the rows of each."""
    rows = max(1, BLOCK // size)
    return (min(rows, n - start) for start in range(0, n, rows))


def paired_bootstrap(
    a: ArrayLike, b: ArrayLike, *, owners: np.ndarray | None = None, seed: int = 0, n: int = 10_000
) -> tuple[float, float, float]:
    """(mean difference a - b, low, high): 95% interval with a and b resampled together.

    a, b: one metric value per case, [cases], of the same cases in the same order. The difference is significant if the
    interval excludes 0. Other arguments as in `bootstrap_interval`.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape:
        raise ValueError(f"a paired bootstrap needs the same cases, got {first.shape} and {second.shape}.")
    return bootstrap_interval(first - second, owners=owners, seed=seed, n=n)


def resampled(metric: CorpusMetric, owners: np.ndarray | None = None, seed: int = 0) -> np.ndarray:
    """The metric on resamples of its cases, float64 [resamples]; NaN: undefined.

    The draws depend only on seed, number of cases and owners, so differences of two methods' values are paired. The
    number of resamples is `CORPUS_RESAMPLES`, or fewer with very many cases (see `CASES_DRAWN`).
    """
    rng = np.random.default_rng(seed)
    n = min(CORPUS_RESAMPLES, max(200, CASES_DRAWN // metric.cases))
    if owners is None:
        return np.array([metric.value(rng.integers(0, metric.cases, metric.cases)) for _ in range(n)])
    number = _numbered(owners, metric.cases)
    by_owner = np.argsort(number, kind="stable")
    sizes = np.bincount(number)
    starts = np.cumsum(sizes) - sizes
    values = np.empty(n)
    for row in range(n):
        drawn = rng.integers(0, len(sizes), len(sizes))
        ends = np.cumsum(sizes[drawn])
        inside = np.arange(ends[-1]) - np.repeat(ends - sizes[drawn], sizes[drawn])
        values[row] = metric.value(by_owner[np.repeat(starts[drawn], sizes[drawn]) + inside])
    return values


def percentile_interval(values: np.ndarray) -> tuple[float, float] | None:
    """The 95% interval of resampled values without the NaN; None if all are NaN."""
    there = values[~np.isnan(values)]
    return None if not len(there) else (float(np.quantile(there, 0.025)), float(np.quantile(there, 0.975)))


def _numbered(owners: np.ndarray, cases: int) -> np.ndarray:
    """The owners as 0, 1, ..., int64 [cases]."""
    if owners.shape != (cases,):
        raise ValueError(f"owners should be [{cases}], one per case, but have shape {list(owners.shape)}.")
    return np.unique(owners, return_inverse=True)[1]
