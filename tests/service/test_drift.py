"""Drift: planted changes are one alert and one recovery, an unchanged stream none; the statistics are scipy's."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import chi2_contingency, ks_2samp

from instructrec_jax.files import write_jsonl
from instructrec_jax.service.alerts import Alerts, Notice
from instructrec_jax.service.drift import (
    Drift,
    Finding,
    Reference,
    compare_labels,
    compare_numbers,
    numbers_of,
    pooled,
    read_reference,
    reference_of,
    smallest_distance,
)
from instructrec_jax.service.monitoring import tell_drift
from instructrec_jax.service.monitoring_settings import DriftConfig
from instructrec_jax.tasks.answers import ItemsAnswer, LabelAnswer, LabelsAnswer, NumberAnswer, RankedItem, TextAnswer

LABELS = ["billing", "delivery", "returns", "account", "praise", "other"]
SHARES = np.array([0.3, 0.25, 0.2, 0.12, 0.08, 0.05])
MOVED = np.array([0.2, 0.2, 0.2, 0.12, 0.23, 0.05])  # 15 of 100 requests have another label
NEW = "Übergröße"
SEEDS, CASES, WINDOW = 20, 1500, 500
WORDS = np.array([f"w{n}" for n in range(3000)])
OFTEN = 1 / np.arange(1, 3001)  # Zipf's law


@dataclass(frozen=True)
class Stream:
    """The answers of a model: labels, scores, lengths and unknown words, one each."""

    labels: np.ndarray
    scores: np.ndarray
    texts: list[str]

    def records(self) -> list[dict[str, object]]:
        return [
            {"input": text, "prediction": LABELS[label], "probability": float(score)}
            for text, label, score in zip(self.texts, self.labels, self.scores, strict=True)
        ]


def stream(rng: np.random.Generator, count: int, kind: str = "steady") -> Stream:
    lengths = rng.geometric(1 / 12, count) * (2 if kind == "lengths" else 1)
    ranks = rng.choice(len(WORDS), lengths.sum(), p=OFTEN / OFTEN.sum())
    words = WORDS[ranks]
    if kind == "unknown_words":
        words[rng.random(len(words)) < 0.2] = NEW
    texts = [" ".join(each) for each in np.split(words, np.cumsum(lengths)[:-1])]
    labels = rng.choice(len(LABELS), count, p=SHARES)
    return Stream(labels, rng.beta(8, 2, count), texts)


def moved_labels(rng: np.random.Generator) -> np.ndarray:
    return rng.choice(len(LABELS), 1100, p=MOVED)


Added = list[dict[str, Any]]  # the arguments of `Drift.add`, one dictionary per answer


def added(reference: Reference, part: Stream) -> Added:
    drift = Drift(reference)
    return [
        {"label": LABELS[label], "score": score, **drift.measured(text)}
        for text, label, score in zip(part.texts, part.labels, part.scores, strict=True)
    ]


def play(reference: Reference, *parts: Added) -> list[Notice]:
    """The notices of a stream."""
    alerts, notices = Alerts(), []

    def seen(findings: list[Finding]) -> None:
        notice = tell_drift(alerts, "desk", findings)
        if notice is not None:
            notices.append(notice)

    drift = Drift(reference, DriftConfig(window=WINDOW), seen)
    for part in parts:
        for each in part:
            drift.add(**each)
    assert drift.windows == sum(map(len, parts)) // WINDOW
    return notices


Worlds = list[tuple[Reference, Added, Added, Added]]


@pytest.fixture(scope="module")
def worlds() -> Worlds:
    """Per seed: the reference, and three parts of an unchanged stream; the second begins and ends within a window."""
    found = []
    for seed in range(SEEDS):
        rng = np.random.default_rng(seed)
        reference = reference_of(stream(rng, CASES).records(), LABELS)
        before, between, after = (added(reference, stream(rng, count)) for count in (700, 1100, 1200))
        found.append((reference, before, between, after))
    return found


def test_a_steady_stream_raises_no_alert(worlds: Worlds) -> None:
    assert [play(reference, *parts) for reference, *parts in worlds] == [[]] * SEEDS


@pytest.mark.parametrize("kind", ["labels", "scores", "lengths", "unknown_words"])
def test_planted_drift_is_one_alert_and_one_recovery(kind: str, worlds: Worlds) -> None:
    for seed, (reference, before, between, after) in enumerate(worlds):
        rng = np.random.default_rng([seed, 1])
        if kind == "labels":
            changed = [each | {"label": LABELS[n]} for each, n in zip(between, moved_labels(rng), strict=True)]
        elif kind == "scores":
            changed = [each | {"score": float(x)} for each, x in zip(between, rng.beta(4, 2, 1100), strict=True)]
        else:
            changed = added(reference, stream(rng, 1100, kind))
        notices = play(reference, before, changed, after, after)
        assert [each["state"] for each in notices] == ["firing", "resolved"], seed
        moved = {each["what"] for each in notices[0]["details"] if each["excess"] > 1}  # type: ignore[attr-defined]
        assert kind in moved and kind in str(notices[0]["text"])
        assert "w1" not in str(notices) and NEW not in str(notices)


def test_a_weak_drift_that_lasts_is_one_alert() -> None:
    """Its windows lie around the threshold: some of them are well below."""
    counts = {0: 0, 1: 0}
    for seed in range(SEEDS):
        rng = np.random.default_rng(seed)
        before = rng.choice(["a", "b", "c"], CASES, p=[0.5, 0.3, 0.2])
        now = rng.choice(["a", "b", "c"], 20 * WINDOW, p=[0.4, 0.4, 0.2])
        reference = reference_of([{"prediction": str(each)} for each in before], ["a", "b", "c"])
        notices = play(reference, [{"label": str(each)} for each in now])
        counts[[each["state"] for each in notices].count("firing")] += 1
    assert counts[1] > counts[0]


def tables() -> Iterator[tuple[dict[str, int], dict[str, int]]]:
    for seed in range(5):
        rng = np.random.default_rng(seed)
        before, now = rng.multinomial(900, SHARES), rng.multinomial(400, MOVED)
        yield dict(zip(LABELS, before.tolist(), strict=True)), dict(zip(LABELS, now.tolist(), strict=True))


def test_the_chance_of_label_shares_is_that_of_the_g_test() -> None:
    """At the level of the p-value itself, G is just at the quantile."""
    for before, now in tables():
        counts = [[table[label] for label in LABELS] for table in (before, now)]
        p = chi2_contingency(counts, correction=False, lambda_="log-likelihood").pvalue
        found = compare_labels(before, now, p, threshold=0.0)
        np.testing.assert_allclose(found.excess, 1, rtol=1e-6)


def test_the_chance_of_numbers_is_that_of_kolmogorov_and_smirnov() -> None:
    for seed in range(5):
        rng = np.random.default_rng(seed)
        before, now = np.sort(rng.normal(0, 1, 800)), np.sort(rng.normal(0.3, 1, 500))
        oracle = ks_2samp(before, now, method="asymp")
        found = compare_numbers("scores", before, now, 1e-3, threshold=0.0)
        np.testing.assert_allclose(found.distance, oracle.statistic, rtol=1e-12)
        chance = found.distance / found.excess
        assert 2 * np.exp(-2 * chance**2 * 800 * 500 / 1300) == pytest.approx(1e-3)


def test_rare_labels_are_one_category() -> None:
    before, now = {"a": 600, "b": 390, "c": 7, "d": 3}, {"a": 60, "b": 38, "e": 2}
    counts, names = pooled(before, now)
    assert names == ["a", "others"]  # c, d and e are expected 1.1 times in 100 answers, so that b joins them
    assert counts.tolist() == [[600, 400], [60, 40]]
    counts, names = pooled({"a": 500, "b": 400, "c": 60, "d": 40}, {"a": 50, "b": 40, "c": 6, "d": 4})
    assert names == ["a", "b", "others"] and counts.tolist() == [[500, 400, 100], [50, 40, 10]]


def test_one_label_is_no_drift_and_equal_shares_have_no_distance() -> None:
    assert compare_labels({"a": 100}, {"a": 60}, 1e-5, 0.1).excess == 0
    found = compare_labels({"a": 300, "b": 700}, {"a": 30, "b": 70}, 1e-5, 0.1)
    assert (found.distance, found.excess) == (0, 0)


def test_a_small_change_is_no_alert_however_large_the_window() -> None:
    before, now = {"a": 50_000, "b": 50_000}, {"a": 52_000, "b": 48_000}
    assert compare_labels(before, now, 1e-5, 0.0).excess > 1 > compare_labels(before, now, 1e-5, 0.1).excess


def test_scores_that_are_no_numbers_show() -> None:
    before = np.sort(np.random.default_rng(0).random(500))
    drift_of_nan = compare_numbers("scores", before, np.full(100, -np.inf), 1e-5, 0.15)
    assert drift_of_nan.excess > 1 and drift_of_nan.distance == 1


def test_a_word_is_unknown_if_no_other_case_has_it() -> None:
    reference = reference_of([{"input": "Good film"}, {"input": "good book, film"}, {"input": "!"}])
    assert reference.numbers["unknown_words"].tolist() == [0, 1 / 3]
    assert reference.measured("A good BOOK") == (11, 1 / 3)
    assert reference.measured("?") == (1, None)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (LabelAnswer("praise", {"praise": 0.7, "other": 0.3}), ("praise", 0.7)),
        (LabelAnswer("a user's own candidate", {"a user's own candidate": 0.6}), (None, 0.6)),
        (LabelsAnswer(("praise", "billing"), {"praise": 0.7, "billing": 0.8}), ("billing + praise", 0.8)),
        (LabelsAnswer((), {"praise": 0.1}), ("none", 0.1)),
        (NumberAnswer(2.5), (None, 2.5)),
        (TextAnswer("words", -3.5), (None, -3.5)),
        (TextAnswer("words"), (None, None)),
        (ItemsAnswer((RankedItem("1", "a", 0.5),)), (None, None)),
    ],
)
def test_the_numbers_of_answers(answer: LabelAnswer, expected: tuple[str | None, float | None]) -> None:
    assert numbers_of(answer.to_record(), frozenset(LABELS)) == expected


def test_the_reference_is_a_sample_of_the_predictions(tmp_path: Path) -> None:
    records = stream(np.random.default_rng(0), 1000).records()
    write_jsonl(tmp_path / "predictions.jsonl", records)
    assert read_reference(tmp_path / "none.jsonl", 100) is None
    whole = read_reference(tmp_path / "predictions.jsonl", 1000, LABELS)
    assert whole is not None and whole.cases == 1000
    assert whole.labels == Counter(str(each["prediction"]) for each in records)
    some = read_reference(tmp_path / "predictions.jsonl", 300, LABELS)
    assert some is not None and some.cases == 300 and sum(some.labels.values()) == 300
    assert compare_labels(whole.labels, some.labels, 1e-3, 0.0).excess < 1
    (tmp_path / "predictions.jsonl").write_text('{"input": "private')
    with pytest.raises(ValueError, match="predictions.jsonl.*evaluate"):
        read_reference(tmp_path / "predictions.jsonl", 10)


def test_too_few_cases_see_nothing() -> None:
    assert smallest_distance(0, DriftConfig()) == np.inf
    assert smallest_distance(10, DriftConfig()) > 0.5 > smallest_distance(500, DriftConfig()) > 0.15
    few = reference_of(stream(np.random.default_rng(0), 30).records(), LABELS)
    drift = Drift(few, DriftConfig(window=50))
    for _ in range(50):
        drift.add(label="praise", score=1.0)
    assert (drift.windows, drift.latest) == (1, [])
    Drift().add(label="praise")  # without a reference nothing is kept
