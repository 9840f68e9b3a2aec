"""Drift: whether what a model is asked, and what it answers, still looks like the evaluation of its run.

Four distributions are compared, in windows of N answers that do not overlap, with a sample of the evaluation's cases:
the shares of labels, the scores, the lengths of texts, and the share of unknown words per text. Kept are numbers and
the model's own labels, no text.

**Labels** (p in m cases, q in n answers; rare ones are one category, see `pooled`). The distance is that of Jensen
and Shannon (Lin 1991; a metric: Endres & Schindelin 2003),

    d = sqrt((KL(p ‖ r) + KL(q ‖ r)) / 2),   r = (p + q) / 2,   logarithms to base 2, so 0 ≤ d ≤ 1

For small changes it is a function of the population stability index: d² ≈ PSI / (8 ln 2); PSI 0.1 is d = 0.13, and
PSI 0.25 is d = 0.21. Whether it could be chance is the G-test of homogeneity (Woolf 1957): G = 2 Σ O ln(O / E) over the
2 × K table, above the quantile 1 − α of χ² with K − 1 degrees of freedom (Wilks 1938).

**Scores, lengths, unknown words.** The distance is that of Kolmogorov and Smirnov, D = max |F(x) − F'(x)|; it could be
chance up to sqrt(−ln(α / 2) / 2) · sqrt((m + n) / (m n)) (Smirnov 1939; ties only make this safer, Noether 1963).

**An alert** needs both: a distance above its threshold, because a large window finds differences that do not matter,
and one that is not chance. With α = level / 4 (Bonferroni) the probability that a window of an unchanged stream is an
alert is at most `level`, whatever the four have to do with each other, and k windows have at most k · level false
alarms on average, although all are compared with the same cases. As in a control chart (Shewhart 1931) the level is
that of a window and not of the whole stream, so that a change is found as soon after a year as on the first day. It
holds for answers that are drawn independently, as the cases were; bursts of answers that resemble each other are why
the thresholds of distances are there.
"""

import math
import re
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import scipy

from instructrec_jax.parsing import json_lines, raw_lines
from instructrec_jax.service.monitoring_settings import DriftConfig

What = Literal["labels", "scores", "lengths", "unknown_words"]
WHATS: tuple[What, ...] = ("labels", "scores", "lengths", "unknown_words")
LEAST = 50  # values on either side below which a distribution is not compared
EXPECTED = 5  # least expected count of a label (Cochran 1954)
WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Finding:
    """The comparison of one distribution in one window.

    Attributes:
      distance: 0 (the same) to 1.
      excess: by which factor it is beyond its threshold and chance, whichever is farther; above 1: drift.
      detail: what moved, in words: labels and numbers.
    """

    what: What
    distance: float
    excess: float
    detail: str


@dataclass(frozen=True)
class Reference:
    """What the evaluation of a run looked like.

    Attributes:
      known: the model's own labels.
      labels: label -> number of cases.
      numbers: of scores, lengths and unknown words: float64 [cases], sorted.
      words: the words of the cases' texts in lower case; any other word is unknown.
      cases: number of cases.
    """

    known: frozenset[str]
    labels: Mapping[str, int]
    numbers: Mapping[What, np.ndarray]
    words: frozenset[str]
    cases: int

    def measured(self, text: str) -> tuple[float, float | None]:
        """(length in characters, share of unknown words) of a text; None for one without words."""
        found = WORD.findall(text.lower())
        unknown = sum(word not in self.words for word in found) / len(found) if found else None
        return float(len(text)), unknown


def read_reference(path: Path, most: int, labels: Sequence[str] = ()) -> Reference | None:
    """The reference of a run directory's predictions.jsonl: at most `most` cases, drawn at random but always the same.

    Args:
      labels: the model's own labels; other predictions are other people's words, and are not kept.

    Returns None where the file is not there. Raises ValueError for a damaged one.
    """
    if not path.is_file():
        return None
    kept: list[bytes] = []
    rng = np.random.default_rng(0)
    for number, line in enumerate(raw_lines(path)):  # reservoir sampling, so that a file of any size fits (Vitter 1985)
        if len(kept) < most:
            kept.append(line)
        elif (place := int(rng.integers(number + 1))) < most:
            kept[place] = line
    records = []
    for _, record in json_lines(kept):
        if isinstance(record, ValueError):
            raise ValueError(f"{path}: {record}. Evaluate the run again: python -m instructrec_jax.evaluate.")
        records.append(record)
    return reference_of(records, labels)


def reference_of(records: Sequence[Mapping[str, object]], labels: Sequence[str] = ()) -> Reference:
    """The reference of records as in predictions.jsonl; `labels` as in `read_reference`.

    A word of a case is unknown if no other case has it, as the words of a new text are compared with all cases.
    """
    texts = [text if isinstance(text := record.get("input"), str) else None for record in records]
    words = [WORD.findall((text or "").lower()) for text in texts]
    cases_with = Counter(word for found in words for word in set(found))
    known = frozenset(labels)
    answers = [numbers_of(record, known) for record in records]
    numbers: dict[What, list[float]] = {
        "scores": [score for _, score in answers if score is not None],
        "lengths": [float(len(text)) for text in texts if text is not None],
        "unknown_words": [sum(cases_with[w] == 1 for w in found) / len(found) for found in words if found],
    }
    shown: dict[What, np.ndarray] = {what: np.sort(_ordered(values)) for what, values in numbers.items()}
    counts = Counter(label for label, _ in answers if label is not None)
    return Reference(known, counts, shown, frozenset(cases_with), len(records))


def numbers_of(record: Mapping[str, object], known: frozenset[str]) -> tuple[str | None, float | None]:
    """(label, score) of an answer's record (`tasks.answers`), served or in predictions.jsonl; None: it has none.

    The score is the highest probability, the log-probability of a written text, the lead of a span over "no answer", or
    the number of a regression. Several labels of one text are one label, such as "sad + urgent". Scores of rankings
    depend on the candidates, which are not those of the evaluation, so these are not compared.
    """
    said = record.get("prediction")
    label = None
    if known and isinstance(said, str) and said in known:
        label = said
    elif known and isinstance(said, list) and known.issuperset(map(str, said)):
        label = " + ".join(sorted(map(str, said))) or "none"
    shares = record.get("probabilities")
    if isinstance(shares, Mapping):
        return label, max((float(share) for share in shares.values()), default=None)
    found = (record.get(name) for name in ("probability", "log_probability", "ahead_of_no_answer", "prediction"))
    return label, next((float(value) for value in found if isinstance(value, int | float)), None)


def _ordered(values: Sequence[float]) -> np.ndarray:
    """float64; NaN, which a diverged model gives, lies below every number, so that it shows as drift."""
    found = np.asarray(values, np.float64)
    return np.where(np.isnan(found), -np.inf, found)


# ---------------------------------------------------------------- statistics


def pooled(before: Mapping[str, int], now: Mapping[str, int]) -> tuple[np.ndarray, list[str]]:
    """(counts, int64 [2, categories]; their names) of labels, from the most frequent to the rarest.

    Labels whose expected count in the smaller sample is below 5 are one category, "others", and if even that is below
    5, it takes in the next rarest label: the distribution of G is that of χ² for enough cases only.
    """
    total = Counter(before) + Counter(now)
    sizes = sum(before.values()), sum(now.values())
    share = min(sizes) / max(sum(sizes), 1)
    names = sorted(total, key=lambda label: (-total[label], label))
    frequent = [name for name in names if total[name] * share >= EXPECTED]
    rare = names[len(frequent) :]
    while rare and frequent and sum(total[name] for name in rare) * share < EXPECTED:
        rare.append(frequent.pop())
    rows = [[counts.get(n, 0) for n in frequent] + [sum(counts.get(n, 0) for n in rare)] for counts in (before, now)]
    table = np.array(rows, np.int64)
    return (table, [*frequent, "others"]) if rare else (table[:, :-1], frequent)


def compare_labels(before: Mapping[str, int], now: Mapping[str, int], level: float, threshold: float) -> Finding:
    """Compares the counts of labels. Excess: the smaller of d / threshold and sqrt((G − df) / (χ² − df))."""
    table, names = pooled(before, now)
    if len(names) < 2:
        return Finding("labels", 0.0, 0.0, "one label only")
    shares = table / table.sum(1, keepdims=True)
    from scipy.spatial.distance import jensenshannon  # takes half a second to import

    distance = float(np.nan_to_num(jensenshannon(shares[0], shares[1], base=2)))  # the root of -1e-17 for equal ones
    expected = table.sum(1, keepdims=True) * table.sum(0) / table.sum()
    logs = np.log(np.where(table > 0, table, 1) / expected)  # 0 ln 0 = 0
    found, df = float(2 * (table * logs).sum()), len(names) - 1
    chance = math.sqrt(max(found - df, 0.0) / (float(scipy.special.chdtri(df, level)) - df))
    moved = sorted(range(len(names)), key=lambda i: -abs(shares[1, i] - shares[0, i]))[:3]
    detail = ", ".join(f"{names[i]} {shares[0, i]:.1%} -> {shares[1, i]:.1%}" for i in moved)
    return Finding("labels", distance, min(distance / max(threshold, 1e-9), chance), detail)


def compare_numbers(what: What, before: np.ndarray, now: np.ndarray, level: float, threshold: float) -> Finding:
    """Compares two samples, both sorted. Excess: D / the larger of threshold and chance."""
    places = np.concatenate([before, now])
    shares = [np.searchsorted(each, places, side="right") / len(each) for each in (before, now)]
    distance = float(np.abs(shares[0] - shares[1]).max())
    size = len(before) * len(now) / (len(before) + len(now))
    chance = math.sqrt(-math.log(level / 2) / (2 * size))
    detail = f"median {np.median(before):.3g} -> {np.median(now):.3g}"
    if what == "unknown_words":
        detail = f"mean {before.mean():.1%} -> {now.mean():.1%}"
    return Finding(what, distance, distance / max(threshold, chance), detail)


def smallest_distance(reference: int, config: DriftConfig) -> float:
    """The smallest distance of numbers that is an alert, for a reference of that many cases; above 1: none is."""
    size = reference * config.window / max(reference + config.window, 1)
    level = config.level / len(WHATS)
    return max(config.distance, math.sqrt(-math.log(level / 2) / (2 * size)) if size else math.inf)


# ---------------------------------------------------------------- windows


@dataclass
class _Window:
    count: int = 0
    labels: Counter[str] = field(default_factory=Counter)
    numbers: dict[What, list[float]] = field(default_factory=lambda: {what: [] for what in WHATS if what != "labels"})


class Drift:
    """The watch over one model. Memory: the reference and one window.

    Args:
      reference: None: nothing to compare with; then `add` does nothing.
      seen: called with the findings of each full window.
    """

    def __init__(
        self,
        reference: Reference | None = None,
        config: DriftConfig | None = None,
        seen: Callable[[list[Finding]], object] = lambda findings: None,
    ):
        self.reference, self.config, self._seen = reference, config or DriftConfig(), seen
        self._window, self._lock = _Window(), threading.Lock()
        self.windows = 0
        self.latest: list[Finding] = []

    def measured(self, text: str) -> dict[str, float | None]:
        """The numbers of a text, as arguments of `add`; the text is not kept."""
        if self.reference is None:
            return {}
        length, unknown = self.reference.measured(text)
        return {"length": length, "unknown": unknown}

    def answered(self, prompt: str, record: Mapping[str, object] | None = None) -> None:
        """Counts an answer.

        Args:
          prompt: the text that the model read, as `data.prompts.render` makes it and an evaluation writes it.
          record: the answer as `to_record` of `tasks.answers`; None: only the text is compared.
        """
        if self.reference is not None:
            label, score = numbers_of(record or {}, self.reference.known)
            self.add(label=label, score=score, **self.measured(prompt))

    def add(
        self,
        *,
        label: str | None = None,
        score: float | None = None,
        length: float | None = None,
        unknown: float | None = None,
    ) -> None:
        """Counts an answer; every `window` answers are compared with the reference.

        Args:
          label, score: as `numbers_of` an answer's record.
          length, unknown: as `measured`.
        """
        if self.reference is None:
            return
        given: dict[What, float | None] = {"scores": score, "lengths": length, "unknown_words": unknown}
        with self._lock:
            self._window.count += 1
            if label is not None:
                self._window.labels[label] += 1
            for what, value in given.items():
                if value is not None:
                    self._window.numbers[what].append(value)
            if self._window.count < self.config.window:
                return
            full, self._window = self._window, _Window()
            self.latest = self._compared(self.reference, full)
            self.windows += 1
            self._seen(self.latest)

    def _compared(self, reference: Reference, window: _Window) -> list[Finding]:
        level, config, found = self.config.level / len(WHATS), self.config, []
        if min(sum(reference.labels.values()), window.labels.total()) >= LEAST:
            found.append(compare_labels(reference.labels, window.labels, level, config.shares))
        for what, values in window.numbers.items():
            before = reference.numbers[what]
            if min(len(before), len(values)) >= LEAST:
                found.append(compare_numbers(what, before, np.sort(_ordered(values)), level, config.distance))
        return found
