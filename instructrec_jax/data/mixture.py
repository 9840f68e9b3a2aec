"""The order of the examples of one or several sources, as a function of (seed, epoch)."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from instructrec_jax.data.example import Example
from instructrec_jax.data.skipped import SkippedRow


class NumberedExamples(Protocol):
    """Examples by number, read one at a time. `fingerprint`: hash of content and order (hex), equal on all machines."""

    @property
    def fingerprint(self) -> str: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...

    def digest(self, index: int) -> bytes:
        """See `data.fingerprints.digest_of_example`."""


class IndexableSource(NumberedExamples, Protocol):
    """A source of a mixture."""

    @property
    def name(self) -> str: ...

    @property
    def task(self) -> str: ...

    @property
    def skipped(self) -> list[SkippedRow]: ...


@dataclass(frozen=True)
class OfSource:
    """Base of sources whose examples are made of those of another one, after which they are named."""

    source: IndexableSource

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def task(self) -> str:
        return self.source.task

    @property
    def skipped(self) -> list[SkippedRow]:
        return self.source.skipped


def permutation(size: int, *key: int) -> np.ndarray:
    """The numbers 0..size-1, int64 [size], in a random order that depends on the key only.

    Why our own: `Generator.permutation` may change between numpy versions; the raw bits of PCG64 do not.
    """
    if any(part < 0 for part in key):
        raise ValueError(f"shuffle key {key}: holds a negative number; seeds must be 0 or more.")
    bits = np.random.PCG64(np.random.SeedSequence(key)).random_raw(size)
    return np.argsort(bits, kind="stable")


def check_weights(weights: Sequence[float]) -> None:
    """Raises ValueError for a weight that is not positive."""
    for weight in weights:
        if not math.isfinite(weight) or weight <= 0:
            raise ValueError(f"weight {weight}: must be a positive number; remove the source to leave it out.")


def shares(
    sizes: Sequence[int],
    tasks: Sequence[str],
    weights: Sequence[float] | None = None,
    temperature: float = 1.0,
    size_cap: int | None = None,
) -> np.ndarray:
    """The share of each source in a mixture, float64 [sources], sum 1.

    With weights, the shares are proportional to them. Otherwise a task t with n_t examples in all its sources has a
    share proportional to min(n_t, size_cap)^(1 / temperature), which its sources divide in proportion to their
    sizes: the examples-proportional and temperature-scaled mixing of Raffel et al. 2020 (T5, section 3.5.2).
    Temperature 1 draws every example equally often; a high temperature draws every task equally often. A source
    without a task counts as a task of its own.

    Raises:
      ValueError: a weight, temperature or cap that is not positive, or weights with a temperature or a cap.
    """
    if not math.isfinite(temperature) or temperature <= 0:
        raise ValueError(f"temperature {temperature}: must be a positive number; 1 draws in proportion to size.")
    if size_cap is not None and size_cap < 1:
        raise ValueError(f"size_cap {size_cap}: must be at least 1; null sets no cap.")
    if weights is not None:
        if temperature != 1 or size_cap is not None:
            raise ValueError(
                "the sources have weights, which contradict temperature and size_cap: drop one or the other."
            )
        check_weights(weights)
        return np.array(weights, np.float64) / sum(weights)
    groups = [task or f"\x00{number}" for number, task in enumerate(tasks)]
    totals: dict[str, int] = {}
    for group, size in zip(groups, sizes, strict=True):
        totals[group] = totals.get(group, 0) + size
    rates = {group: min(n, size_cap or n) ** (1 / temperature) for group, n in totals.items()}
    portions = [rates[group] * size / totals[group] for group, size in zip(groups, sizes, strict=True)]
    return np.array(portions) / sum(portions)


def apportion(portions: np.ndarray, total: int) -> np.ndarray:
    """Integers, int64, that sum to `total` and differ from portions * total by less than 1 each.

    The largest-remainder method; of equal remainders, the first wins.
    """
    exact = portions * total
    whole = np.floor(exact + 1e-9).astype(np.int64)
    missing = total - int(whole.sum())
    whole[np.argsort(whole - exact, kind="stable")[:missing]] += 1
    return whole


@dataclass(frozen=True)
class Versions:
    """Which entries of a source are versions of one example, of which a round over the examples takes one.

    Attributes:
      starts: int64 [examples + 1], where the entries of each example begin.
      entries: int64, their numbers, of all examples end to end.
    """

    starts: np.ndarray
    entries: np.ndarray

    @classmethod
    def of(cls, numbers: np.ndarray, count: int) -> "Versions":
        """Of entries that were made of versions number % count of the examples number // count.

        Several entries of one version (windows of a long text) count as examples of their own: the first of each
        version, the second of each ... So a version that was left out leaves the others.

        Args:
          numbers: int64 [entries]; those of one version lie side by side.
        """
        here = np.arange(len(numbers))
        is_first = np.diff(numbers, prepend=-1) != 0
        ordinal = here - np.maximum.accumulate(np.where(is_first, here, 0))
        order = np.lexsort((numbers % count, ordinal, numbers // count))
        keys = np.stack([numbers // count, ordinal], axis=1)[order]
        begins = np.flatnonzero(np.append(True, (np.diff(keys, axis=0) != 0).any(1)))
        return cls(np.append(begins, len(numbers)), order)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def chosen(self, examples: np.ndarray, turn: int, *key: int) -> np.ndarray:
        """The entries of some examples in a round, int64. In n rounds, an example with n entries has each once.

        Args:
          examples: int64.
          turn: the number of the round.
          key: of the random number of the entry in round 0.
        """
        counts = np.diff(self.starts)
        begin = permutation(len(self), *key)
        return self.entries[(self.starts[:-1] + (begin + turn) % counts)[examples]]


class Mixture(Sequence[Example]):
    """Several indexable sources as one, and the order in which training reads them.

    As a sequence, it holds every example once, source after source: `len(mixture)`, `mixture[i]`.

    An epoch has as many draws (`epoch_size`) as the sources have examples together. Each source has the same number of
    draws in every epoch (see `shares`). It draws its examples in a shuffled order, and draws all of them before the
    next shuffle starts, also across epochs: a source with more examples than draws continues in the next epoch where it
    stopped. Without weights, with temperature 1, every epoch holds every example exactly once.

    Within an epoch the sources alternate evenly: the first P draws hold source i P * share_i times, within
    1 + sources / 2. A single source is shuffled again in each epoch.

    Args:
      weights: one positive number per source, or None for shares by size, temperature and cap.
      temperature, size_cap: see `shares`.
      seed: of the shuffles, 0 or more.
      versions: the versions of each source's examples, where it has any: then its size is that of its examples, and
        each draw of an example is one of its versions. None: every entry is an example.

    Raises:
      ValueError: no sources, an empty source, a source whose share is too small to be drawn, or bad weights.
    """

    def __init__(
        self,
        sources: Sequence[IndexableSource],
        *,
        weights: Sequence[float] | None = None,
        temperature: float = 1.0,
        size_cap: int | None = None,
        seed: int = 0,
        versions: Sequence[Versions | None] | None = None,
    ) -> None:
        if not sources:
            raise ValueError("there are no sources: name at least one file or data set.")
        if weights is not None and len(weights) != len(sources):
            raise ValueError(f"{len(weights)} weights for {len(sources)} sources: give one weight per source.")
        if seed < 0:
            raise ValueError(f"seed {seed}: must be 0 or more.")
        self.sources, self.seed = list(sources), seed
        self.versions = [None] * len(sources) if versions is None else list(versions)
        entries = [len(source) for source in sources]
        own = zip(self.versions, entries, strict=True)
        self.sizes = np.array([size if each is None else len(each) for each, size in own], np.int64)
        for source, size in zip(sources, self.sizes, strict=True):
            if not size:
                raise ValueError(f"source {source.name}: holds no examples; remove it or fill it.")
        self.offsets = np.concatenate([[0], np.cumsum(entries)])  # int64 [sources + 1]
        tasks = [source.task for source in sources]
        self.shares = shares([int(n) for n in self.sizes], tasks, weights, temperature, size_cap)
        self.epoch_size = int(self.sizes.sum())
        self.draws = apportion(self.shares, self.epoch_size)  # int64 [sources], in each epoch
        for source, draws, share in zip(sources, self.draws, self.shares, strict=True):
            if not draws:
                message = f"its share of {share:.2g} gives less than one of the {self.epoch_size} draws per epoch"
                raise ValueError(f"source {source.name}: {message}, so it would never be read; raise its weight.")
        self._cached: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return int(self.offsets[-1])

    def __getitem__(self, index: int) -> Example:  # type: ignore[override]
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        source = int(np.searchsorted(self.offsets, index, side="right")) - 1
        return self.sources[source][int(index - self.offsets[source])]

    def digest(self, index: int) -> bytes:
        source = int(np.searchsorted(self.offsets, index, side="right")) - 1
        return self.sources[source].digest(int(index - self.offsets[source]))

    @property
    def fingerprint(self) -> str:
        """Hash (hex) of the examples, their sources and the shares, without the seed."""
        text = "\n".join(f"{s.fingerprint} {draws}" for s, draws in zip(self.sources, self.draws, strict=True))
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def skipped(self) -> list[SkippedRow]:
        """The skipped rows of all sources (`SkippedRow`)."""
        return [row for source in self.sources for row in source.skipped]

    def epoch_order(self, epoch: int) -> np.ndarray:
        """The draws of an epoch (counted from 0) in order, int64 [epoch_size, 2]: source, index in the source."""
        cached = self._cached
        if cached is None or cached[0] != epoch:
            self._cached = cached = (epoch, self._order(epoch))
        return cached[1]

    def order(self, epoch: int) -> np.ndarray:
        """The draws of an epoch as indices into this sequence, int64 [epoch_size]."""
        pairs = self.epoch_order(epoch)
        return self.offsets[pairs[:, 0]] + pairs[:, 1]

    def example_at(self, position: int) -> Example:
        """The example at a position of the epochs put end to end."""
        epoch, place = divmod(position, self.epoch_size)
        source, index = self.epoch_order(epoch)[place]
        return self.sources[source][int(index)]

    def _order(self, epoch: int) -> np.ndarray:
        if epoch < 0:
            raise ValueError(f"epoch {epoch}: epochs are counted from 0.")
        # Draw k of a source's d draws is due at (k + 1/2) / d of the epoch; sorting by time interleaves the sources.
        times = np.concatenate([(np.arange(draws) + 0.5) / draws for draws in self.draws])
        source = np.repeat(np.arange(len(self.draws)), self.draws)
        index = np.concatenate([self._drawn(number, epoch) for number in range(len(self.draws))])
        sequence = np.argsort(times, kind="stable")
        pairs = np.stack([source, index], axis=1)[sequence]
        pairs.setflags(write=False)
        return pairs

    def _drawn(self, source: int, epoch: int) -> np.ndarray:
        """A source's draws in an epoch, int64 [draws]: a slice of its shuffles put end to end."""
        size, draws = int(self.sizes[source]), int(self.draws[source])
        first, last = epoch * draws, (epoch + 1) * draws
        rounds = range(first // size, (last - 1) // size + 1)
        endless = np.concatenate([self._round(source, number) for number in rounds])
        return endless[first - rounds.start * size : last - rounds.start * size]

    def _round(self, source: int, number: int) -> np.ndarray:
        """All examples of a source once, int64, as entries of the source."""
        order, versions = permutation(int(self.sizes[source]), self.seed, source, number), self.versions[source]
        return order if versions is None else versions.chosen(order, number, self.seed, source, 0, 3)

    def summary(self) -> str:
        """A table with a line per source: examples, draws per epoch, share, passes over its examples per epoch."""
        rows = [("source", "task", "examples", "draws per epoch", "share", "passes")]
        for s, size, draws in zip(self.sources, self.sizes, self.draws, strict=True):
            share, times = f"{100 * draws / self.epoch_size:.1f} %", f"{draws / size:.2f}"
            rows.append((s.name, s.task or "-", f"{size:,}", f"{draws:,}", share, times))
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join(lines)
