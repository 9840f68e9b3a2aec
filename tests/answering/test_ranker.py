"""Fusions of two rankers: the best items are those of the scores, and a tuned weight is kept with the run."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from instructrec_jax.answering.ranker import (
    BaselineRanker,
    FusedRanker,
    Ranker,
    choose_fusion,
    chosen_fusion,
    keep_fusion,
    kept_fusion,
    read_fusions,
    tune,
)
from instructrec_jax.data.batch import Text
from instructrec_jax.data.example import Example
from instructrec_jax.ranking.fusion import GRID, Fusion, hybrid, mask, ndcg_at, weight_gains
from instructrec_jax.tasks.base import Encoded

CASES, ITEMS = 6, 12


class Known(Ranker):
    """A ranker with a table of scores instead of a run's model; a case is its number."""

    def __init__(self, scores: np.ndarray, run: Any = None):
        self.table, self.run = scores, run

    def encode(self, examples: Sequence[Example]) -> list[Encoded]:
        return cases([int(example.id) for example in examples])

    def scores(self, cases: Sequence[Encoded], items: np.ndarray | None = None) -> np.ndarray:
        rows = self.table[[case.target.number for case in cases]]
        return rows if items is None else np.take_along_axis(rows, items, 1)


def cases(numbers: Sequence[int]) -> list[Encoded]:
    """Case n wants item n and has seen item n + 1."""
    return [
        Encoded(
            Text(np.ones(1, np.int32)),
            SimpleNamespace(number=n, seen=np.array([n + 1]), items=np.array([n])),
            Example(instruction="a", id=str(n)),
        )
        for n in numbers
    ]


def tables(seed: int, *, ties: bool = False) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    draw = (
        (lambda: rng.integers(0, 4, (CASES, ITEMS)).astype(float))
        if ties
        else (lambda: rng.normal(size=(CASES, ITEMS)))
    )
    return draw(), draw()


@pytest.mark.parametrize("k", [None, 5, ITEMS, 50])
@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_the_best_are_those_of_the_scores(k: int | None, weight: float, ties: bool, seed: int) -> None:
    """`evaluate` ranks by `scores`, `recommend` shows `best`."""
    first, second = tables(seed, ties=ties)
    fused = FusedRanker(Known(first), Known(second), Fusion("other", weight, k))
    own = cases(range(CASES))
    hidden = [case.target.seen for case in own]
    scores = fused.scores(own, own, hidden)
    allowed = np.ones((CASES, ITEMS), bool)
    for row, each in zip(allowed, hidden, strict=True):
        row[each] = False
    assert (np.isneginf(scores) == ~allowed).all()
    best = fused.best(own, own, hidden, allowed, 4)
    for case in range(CASES):
        order = sorted(np.flatnonzero(allowed[case]), key=lambda item: (-scores[case, item], item))
        assert best.items[case].tolist() == order[:4]
        if k is None:  # of two stages, `scores` are places in the ranking
            np.testing.assert_allclose(best.scores[case], scores[case, order[:4]], atol=1e-12)


@pytest.mark.parametrize("k", [None, 3])
def test_only_allowed_items_are_shown_and_the_rest_has_no_score(k: int | None) -> None:
    first, second = tables(0)
    fused = FusedRanker(Known(first), Known(second), Fusion("other", 0.5, k))
    own, allowed = cases(range(CASES)), np.zeros((CASES, ITEMS), bool)
    allowed[:, [8, 10]] = True
    best = fused.best(own, own, [np.empty(0, int)] * CASES, allowed, 5)
    assert {item for row in best.items[:, :2] for item in row} == {8, 10}
    assert np.isfinite(best.scores[:, :2]).all() and np.isneginf(best.scores[:, 2:]).all()


@pytest.mark.parametrize(("k", "weight"), [(None, 0.3), (None, 0.0), (5, 0.3), (5, 1.0)])
def test_units_say_what_a_change_of_a_rankers_score_does(k: int | None, weight: float) -> None:
    """Evidence divides changes of raw scores by them: the mixed score is linear in both, up to a constant of a case."""
    first, second = tables(1)
    fused = FusedRanker(Known(first), Known(second), Fusion("other", weight, k))
    own = cases(range(CASES))
    best = fused.best(own, own, [np.empty(0, int)] * CASES, np.ones((CASES, ITEMS), bool), 4)
    for case in range(CASES):
        items = best.items[case]
        raw = best.units[0][case] * first[case, items] + best.units[1][case] * second[case, items]
        np.testing.assert_allclose(np.diff(raw), np.diff(best.scores[case]), atol=1e-9)


# ------------------------------------------------------------------ the weight


@pytest.mark.parametrize("k", [None, 6])
def test_the_weight_goes_to_the_ranker_that_knows(k: int | None) -> None:
    noise = np.random.default_rng(0).normal(size=(CASES, ITEMS))
    right = np.eye(CASES, ITEMS) * 10 + noise * 0.1
    validation = cases(range(CASES))
    knows = tune(Known(right), Known(noise), "other", validation, k, "data.validation")
    other = tune(Known(noise), Known(right), "other", validation, k, "data.validation")
    assert knows.weight <= 0.5 <= other.weight and knows.weight < other.weight
    assert (knows.name, knows.k) == ("other", k)
    every = np.ones((CASES, ITEMS), bool)
    hidden = [case.target.seen for case in validation]
    for row, seen in zip(every, hidden, strict=True):
        row[seen] = False
    best = FusedRanker(Known(right), Known(noise), knows).best(validation, validation, hidden, every, 1)
    assert best.items[:, 0].tolist() == list(range(CASES))


def test_a_weight_that_cannot_be_tuned_names_the_setting() -> None:
    first, second = (Known(table) for table in tables(0))
    with pytest.raises(ValueError, match="--retrieve"):
        tune(first, second, "other", cases([0]), 0, "data.validation")
    with pytest.raises(ValueError, match="other.*data.validation"):
        tune(first, second, "other", [], None, "data.validation")


def ranker(path: Path, checkpoint: int | None, trained: bool = True) -> Known:
    return Known(np.zeros((1, 1)), SimpleNamespace(path=path, trained=trained, checkpoint=checkpoint, members=()))


def test_a_tuned_weight_is_kept_with_the_checkpoints_of_both(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    first, second = ranker(tmp_path, 6), ranker(other, 3)
    assert read_fusions(tmp_path / "fusions.json") == {}
    for fusion in (Fusion(str(other), 0.25, 7), Fusion(str(other), 0.5), Fusion("coKNN", 0.75)):
        keep_fusion(first, second, fusion, cases=9)
    assert kept_fusion(first, second, str(other), reranks=True) == Fusion(str(other), 0.25, 7)
    assert kept_fusion(first, second, str(other), reranks=False) == Fusion(str(other), 0.5)
    assert kept_fusion(first, second, "coKNN", reranks=False) == Fusion("coKNN", 0.75)
    keep_fusion(first, second, Fusion(str(other), 0.1, 3), cases=9)  # tuned again
    assert kept_fusion(first, second, str(other), reranks=True) == Fusion(str(other), 0.1, 3)
    assert len(read_fusions(tmp_path / "fusions.json")) == 3
    for changed in ((ranker(tmp_path, 7), second), (first, ranker(other, 4))):
        with pytest.raises(ValueError, match=r"evaluate .* --rerank .*other"):
            kept_fusion(*changed, str(other), reranks=True)


def test_a_weight_that_was_never_tuned_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="evaluate .* --hybrid coKNN"):
        kept_fusion(ranker(tmp_path, 6), ranker(tmp_path, 6), "coKNN", reranks=False)
    keep_fusion(ranker(tmp_path, None, trained=False), ranker(tmp_path, 6), Fusion("coKNN", 0.5), cases=9)
    assert not (tmp_path / "fusions.json").exists()  # nothing is written to a HuggingFace folder


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "fusions.json").write_text('{"hybrid: coKNN": {"weight": "much"}}')
    with pytest.raises(ValueError, match="fusions.json"):
        kept_fusion(ranker(tmp_path, 6), ranker(tmp_path, 6), "coKNN", reranks=False)


# ------------------------------------------------------------------ the hybrid that training chooses


def with_baselines(table: np.ndarray, path: Path, baselines: dict[str, np.ndarray]) -> Known:
    """A ranker whose task has baselines with these tables of scores."""

    def baseline_scores(name: str, encoded: Sequence[Encoded]) -> Any:
        return lambda block: baselines[name][[case.target.number for case in encoded[block]]]

    def encode(examples: Sequence[Example]) -> list[Encoded]:
        return cases([int(example.id) for example in examples])

    config = SimpleNamespace(evaluation=SimpleNamespace(fuse=True))
    run = SimpleNamespace(path=path, trained=True, checkpoint=6, members=(), config=config)
    found = Known(table, run)
    found.folder = "catalog"
    found.task = SimpleNamespace(baseline_names=list(baselines), baseline_scores=baseline_scores, encode=encode)  # type: ignore[assignment]
    return found


def test_training_chooses_the_baseline_that_helps_most(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise, other, unrelated = rng.normal(size=(3, CASES, ITEMS))
    little, much = np.eye(CASES, ITEMS) + other, 3 * np.eye(CASES, ITEMS) + other
    validation = cases(range(CASES))
    tables = {"unrelated": unrelated, "little": little, "much": much}
    first = with_baselines(noise, tmp_path, tables)
    fused = choose_fusion(first, validation)
    assert fused is not None and fused.fusion == tune(first, Known(much), "much", validation, None, "")
    hidden = [case.target.seen for case in validation]

    def mean(scores: np.ndarray) -> float:
        return float(ndcg_at(scores, [case.target.items for case in validation]).mean())

    alone = mean(mask(noise, hidden))
    best = mean(fused.scores(validation, validation, hidden))
    assert best > alone and all(
        best >= mean(hybrid(mask(noise, hidden), table, weight)) for table in tables.values() for weight in GRID
    )
    again = chosen_fusion(first)
    assert again is not None and again.fusion == fused.fusion
    keep_fusion(
        first, BaselineRanker(first.task, "little"), Fusion("little", 0.5), CASES
    )  # as `evaluate --hybrid little`
    keep_fusion(first, BaselineRanker(first.task, "much"), Fusion("much", 0.4), CASES)
    again = chosen_fusion(first)
    assert again is not None and again.fusion == Fusion("much", 0.4)
    keep_fusion(first, BaselineRanker(first.task, "little"), Fusion("little", 0.5), CASES, chosen=True)
    assert [kept.get("chosen") for kept in read_fusions(tmp_path / "fusions.json").values()] == [None, True]
    first.task.baseline_names = ["BM25"]  # type: ignore[misc]
    with pytest.raises(ValueError, match=r"little mixed in.*catalog has no splits/train.jsonl.*evaluation.fuse false"):
        chosen_fusion(first)
    first.run.config.evaluation.fuse = False
    assert chosen_fusion(first) is None
    first.run.config.evaluation.fuse = True
    first.run.checkpoint = 7  # trained further
    first.task.baseline_names = ["little"]  # type: ignore[misc]
    assert chosen_fusion(first) is None


def test_of_baselines_that_cannot_be_told_apart_training_chooses_coknn(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise, *tables = rng.normal(size=(3, CASES, ITEMS))
    validation = cases(range(CASES))
    own = mask(noise, [case.target.seen for case in validation])

    def best(table: np.ndarray) -> float:
        return float(weight_gains(own, table, [case.target.items for case in validation]).mean(1).max())

    worse, better = sorted((np.eye(CASES, ITEMS) + table for table in tables), key=best)
    assert best(worse) < best(better)
    fused = choose_fusion(with_baselines(noise, tmp_path, {"EASE": better, "coKNN": worse}), validation)
    assert fused is not None and fused.fusion.name == "coKNN"
    much = {"EASE": np.eye(CASES, ITEMS) * 5 + worse, "coKNN": worse}
    fused = choose_fusion(with_baselines(noise, tmp_path, much), validation)
    assert fused is not None and fused.fusion.name == "EASE"


def test_training_chooses_none_that_may_be_chance(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    right = 5 * np.eye(CASES, ITEMS) + rng.normal(size=(CASES, ITEMS)) * 0.1
    first = with_baselines(right, tmp_path, {"unrelated": rng.normal(size=(CASES, ITEMS))})
    assert choose_fusion(first, cases(range(CASES))) is None
    assert chosen_fusion(first) is None and not (tmp_path / "fusions.json").exists()
