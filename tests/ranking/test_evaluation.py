"""The evaluator against scikit-learn and against loops that take the definitions literally."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import ndcg_score

from instructrec_jax.ranking import evaluation as evaluator
from instructrec_jax.ranking.candidates import Candidates
from instructrec_jax.ranking.evaluation import (
    POPULARITY_AXIS,
    Cases,
    answer_errors,
    beyond_accuracy,
    evaluate,
    evaluate_candidates,
)

CUTOFFS = [1, 3, 5]


def by_hand(scores: np.ndarray, wanted: list[int], k: int, out: set[int], against: bool = False) -> dict[str, float]:
    """Metrics of one case, averaged over every order of the items that sorts the scores downwards."""
    items = [i for i in range(len(scores)) if i not in out]
    groups = [[i for i in items if scores[i] == s] for s in sorted({scores[i] for i in items}, reverse=True)]
    if against:
        orders = iter([[i for g in groups for i in sorted(g, key=lambda i: i in wanted)]])
    else:
        orders = (list(itertools.chain(*o)) for o in itertools.product(*(itertools.permutations(g) for g in groups)))
    found = []
    for order in orders:
        gains = [float(i in wanted) for i in order[:k]]
        discounts = [1 / math.log2(place + 2) for place in range(len(items))]
        ideal = sum(discounts[: min(k, len(wanted))])
        first = next((place + 1 for place, gain in enumerate(gains) if gain), math.inf)
        found.append(
            [
                float(any(gains)),
                sum(gains) / len(wanted),
                sum(g * d for g, d in zip(gains, discounts, strict=False)) / ideal,
                1 / first,
            ]
        )
    return dict(zip(("HR", "Recall", "NDCG", "MRR"), np.mean(found, axis=0).tolist(), strict=True))


def problem(several: bool, levels: int = 3, items: int = 7, count: int = 60) -> tuple[Cases, np.ndarray]:
    rng = np.random.default_rng(levels + several)
    sizes = rng.integers(1, 4, count) if several else np.ones(count, int)
    wanted = [rng.permutation(items)[:size] for size in sizes]
    # Histories may name an item twice, and wanted ones too: these compete all the same.
    histories = [rng.integers(0, items, 3) if n % 4 else np.empty(0, int) for n in range(count)]
    return Cases(wanted, histories, items), rng.integers(0, levels, (count, items)).astype(np.float32)


@pytest.mark.parametrize("ties", ["average", "against"])
@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("mask_seen", [True, False])
def test_full_metrics_equal_the_mean_over_all_orders(
    mask_seen: bool, several: bool, ties: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluator, "BLOCK", 7)
    cases, scores = problem(several)
    found = evaluate(cases, [], lambda block: scores[block], cutoffs=CUTOFFS, ties=ties, mask_seen=mask_seen)
    for case, (wanted, history) in enumerate(zip(cases.positives, cases.histories, strict=True)):
        out = set(history.tolist()) - set(wanted.tolist()) if mask_seen else set()
        for k in CUTOFFS:
            expected = by_hand(scores[case], wanted.tolist(), k, out, against=ties == "against")
            for name, value in expected.items():
                if f"{name}@{k}" in found.cases:
                    assert found.cases[f"{name}@{k}"][case] == pytest.approx(value, abs=1e-12), (case, name, k)
    assert ("Recall@3" in found.cases) == several and "MRR@5" in found.cases and "MRR@3" not in found.cases
    for name, values in found.cases.items():
        assert found.metrics[name] == pytest.approx(values.mean())
    assert found.main == ["NDCG@5", "HR@5", "MRR@5"]
    assert ("seen items masked" in found.protocol) == mask_seen and "ranked over all 7 items" in found.protocol


@pytest.mark.parametrize("several", [False, True])
def test_ndcg_equals_that_of_scikit_learn(several: bool) -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(40, 30))
    scores[::3] = scores[::3].round(1)  # scikit-learn averages over ties as well
    wanted = [rng.permutation(30)[: rng.integers(1, 9) if several else 1] for _ in range(40)]
    relevant = np.stack([np.isin(np.arange(30), items) for items in wanted]).astype(float)
    found = evaluate(Cases(wanted, [np.empty(0, int)] * 40, 30), [], lambda b: scores[b], cutoffs=[5, 10, 20])
    for k in (5, 10, 20):
        assert found.metrics[f"NDCG@{k}"] == pytest.approx(ndcg_score(relevant, scores, k=k), abs=1e-12)


@pytest.mark.parametrize("ties", ["average", "against"])
@pytest.mark.parametrize("several", [False, True])
def test_metrics_among_candidates(several: bool, ties: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluator, "BLOCK", 7)
    cases, scores = problem(several, items=9)
    rng = np.random.default_rng(4)
    lists = np.full((60, 5), -1, np.int32)
    for case, wanted in enumerate(cases.positives):
        others = rng.permutation(np.setdiff1d(np.arange(9), wanted))[: 5 if case % 5 else 3]
        lists[case, : len(others)] = others
    lists[11] = -1
    candidates = Candidates("uni5", lists, "five of them")
    settings: Any = {"cutoffs": [1, 2, 3, 10], "ties": ties}
    found = evaluate(cases, [candidates], lambda block: scores[block], **settings)
    rows = np.arange(60)[:, None]
    alone = evaluate_candidates(cases, [candidates], lambda items: scores[rows, items], **settings)
    for name, values in alone.cases.items():
        np.testing.assert_array_equal(found.cases[name], values)
    for case, wanted in enumerate(cases.positives):
        out = set(range(9)) - set(wanted.tolist()) - set(lists[case].tolist())
        for k in (1, 2, 3):
            expected = by_hand(scores[case], wanted.tolist(), k, out, against=ties == "against")
            for name, value in expected.items():
                if f"uni5 {name}@{k}" in alone.cases:
                    value = math.nan if case == 11 else value
                    assert alone.cases[f"uni5 {name}@{k}"][case] == pytest.approx(value, abs=1e-12, nan_ok=True)
    # Of three candidates and the wanted item, the first ten are all: no such metric among candidates.
    assert "uni5 HR@3" in found.metrics and "uni5 HR@10" not in found.metrics
    assert found.metrics["uni5 NDCG@3"] == pytest.approx(np.nanmean(found.cases["uni5 NDCG@3"]))
    assert found.main[-3:] == ["uni5 HR@1", "uni5 NDCG@2", "uni5 NDCG@3"] and "uni5: five of them" in found.protocol
    # What is kept of a ranking of candidates: all of them with the wanted ones, by score.
    for case in (0, 3, 11):
        competing = [*cases.positives[case].tolist(), *(i for i in lists[case].tolist() if i >= 0)]
        order = sorted(competing, key=lambda i: (-scores[case, i], i))
        assert alone.items[case][: len(order)].tolist() == order and (alone.items[case][len(order) :] == -1).all()


def test_ranked_items_come_by_score_then_number() -> None:
    rng = np.random.default_rng(0)
    for levels in (2, 5, 1000):
        scores = rng.integers(0, levels, (30, 50)).astype(np.float32)
        seen = [rng.permutation(np.arange(1, 50))[: n * 2 - 10 if n > 5 else 0] for n in range(30)]
        found = evaluate(Cases([np.array([0])] * 30, seen, 50), [], lambda b, s=scores: s[b], cutoffs=[10])
        for row, items, values, out in zip(scores, found.items, found.scores, seen, strict=True):
            order = sorted(set(range(50)) - set(out.tolist()), key=lambda i: (-row[i], i))[:20]
            assert items.tolist() == order + [-1] * (20 - len(order))
            np.testing.assert_array_equal(values[: len(order)], row[order])


def test_infinite_scores_and_masked_items() -> None:
    """A target at −∞ is tied with others at −∞, but not with the items that are masked."""
    scores = np.array([[-np.inf, -np.inf, -np.inf, 1.0, np.inf]])
    found = evaluate(Cases([np.array([0])], [np.array([1, 4])], 5), [], lambda b: scores[b], cutoffs=[1, 2, 3])
    assert [found.metrics[f"HR@{k}"] for k in (1, 2, 3)] == pytest.approx([0, 0.5, 1])


def test_scores_are_not_written_into() -> None:
    scores = np.random.default_rng(0).normal(size=(3, 8))
    before = scores.copy()
    evaluate(Cases([np.array([0])] * 3, [np.array([1])] * 3, 8), [], lambda b: scores[b], cutoffs=[1])
    np.testing.assert_array_equal(scores, before)


def test_beyond_accuracy() -> None:
    lists = np.array([[0, 1], [0, 2], [0, -1]])
    popularity = np.array([10.0, 3, 0, 1])
    found = beyond_accuracy(lists, 4, popularity)
    counts = [3, 1, 1, 0]
    assert found["coverage"] == 0.75
    # Half the mean absolute difference, relative to the mean.
    differences = np.mean([abs(a - b) for a in counts for b in counts])
    assert found["Gini"] == pytest.approx(differences / (2 * np.mean(counts)))
    share = (popularity + 1) / 18
    assert found["novelty"] == pytest.approx(-np.mean(np.log2(share[[0, 1, 0, 2, 0]])))
    same = beyond_accuracy(np.zeros((9, 1), int), 4)
    assert same["Gini"] == pytest.approx(0.75) and "novelty" not in same


def test_segments_say_their_limits_and_hold_the_right_cases() -> None:
    count = 40
    popularity = np.arange(50.0)
    wanted = [np.array([n]) for n in range(count)]
    histories = [np.arange(40, 40 + 1 + n % 4) for n in range(count)]
    labels = {"wording": ["train" if n % 3 else "held_out" for n in range(count)], "only": ["one"] * count}
    cases = Cases(wanted, histories, 50, popularity, labels)
    segments = cases.segments
    assert segments["cold users (history of at most 1)"].tolist() == list(range(0, 40, 4))
    assert len(segments["other users (history of more than 1)"]) == 30
    assert segments["cold items (at most 9 training interactions)"].tolist() == list(range(10))
    assert segments["new items (no training interactions)"].tolist() == [0]
    assert segments["items with 9 to 12 training interactions"].tolist() == [9, 10, 11, 12]
    along = [segments[name] for name, (axis, _) in cases.places.items() if axis == POPULARITY_AXIS]
    assert np.concatenate(along).tolist() == list(range(count)) and len(along) == 11
    assert [place for _, place in cases.places.values()][:3] == ["0", "1 to 4", "5 to 8"]
    assert segments["wording held_out"].tolist() == list(range(0, 40, 3)) and "only one" not in segments
    assert not Cases(wanted, [np.array([45])] * count, 50).segments


def test_the_same_cases_are_one_segment() -> None:
    histories = [np.array([9])] * 8
    cases = Cases([np.array([n]) for n in (0, 0, 0, 1, 1, 2, 2, 2)], histories, 10, np.array([0, 1, 1.0] + [5] * 7))
    assert list(cases.segments) == ["new items (no training interactions)", "items with 1 training interaction"]
    unknown = Cases([np.array([0])] * 3, histories[:3], 10, np.zeros(10))
    assert list(unknown.segments) == ["new items (no training interactions)"] and not unknown.places
    assert not Cases([np.array([4])] * 3, histories[:3], 10, np.ones(10)).segments


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"cutoffs": [8, 9]}, "task.cutoffs"),
        ({"cutoffs": []}, "task.cutoffs"),
        ({"cutoffs": [1], "ties": "worst"}, "ties"),
        ({"cutoffs": [1], "scores": np.full((3, 8), np.nan)}, "case 0 .*NaN"),
        ({"cutoffs": [1], "scores": np.zeros((3, 7))}, "\\[3, 8\\].*\\[3, 7\\]"),
        ({"cutoffs": [1], "cases": 0}, "case"),
    ],
)
def test_what_cannot_be(settings: dict[str, Any], words: str) -> None:
    scores, count = settings.pop("scores", np.zeros((3, 8))), settings.pop("cases", 3)
    cases = Cases([np.array([0])] * count, [np.array([1])] * count, 8)
    with pytest.raises(ValueError, match=words):
        evaluate(cases, [], lambda b: scores[b], **settings)


# ------------------------------------------------------------------ rerankers and generated answers


def test_answer_errors() -> None:
    names = {"Alien": [0], "The Thing": [1, 2], "i0": [0]}
    answers = [["alien ", "The Thing", "Solaris", "solaris"], ["i0", "Alien"], []]
    histories = [np.array([0, 1]), np.array([2]), np.array([0])]
    found = answer_errors(answers, names, histories)
    # "The Thing" may be 2, which was not seen; "i0" and "Alien" are the same item.
    assert found == {"invalid": 2 / 6, "duplicate": 2 / 6, "already seen": 1 / 6}
    with pytest.raises(ValueError, match="answers"):
        answer_errors([[]], names, [np.array([0])])


def test_a_long_evaluation_says_how_fast_it_was(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cases, scores = problem(several=False)
    evaluate(cases, [], lambda block: scores[block], cutoffs=CUTOFFS)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(evaluator, "LONG", 0.0)
    evaluate(cases, [], lambda block: scores[block], cutoffs=CUTOFFS)
    assert "ranked 60 cases over 7 items: " in (said := capsys.readouterr().err) and "scores/s" in said


@pytest.mark.parametrize("several", [False, True])
def test_seen_items_of_a_block_are_those_of_its_cases(several: bool) -> None:
    cases, _ = problem(several)
    for block in (slice(0, 60), slice(17, 31), slice(59, 60)):
        rows, items = cases.seen(block)
        expected = [
            (row, item)
            for row, case in enumerate(range(block.start, block.stop))
            for item in sorted(set(cases.histories[case].tolist()) - set(cases.positives[case].tolist()))
        ]
        assert list(zip(rows.tolist(), items.tolist(), strict=True)) == expected
