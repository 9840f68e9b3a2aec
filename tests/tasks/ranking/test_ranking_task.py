"""What all ranking tasks share: targets, protocols, baselines; and several wanted items and logQ in retrieval."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from helpers import Setup, examples, task_config

from instructrec_jax.data.example import Example
from instructrec_jax.data.loader import pack
from instructrec_jax.data.prompts import render
from instructrec_jax.evaluation.evaluator import ScoredRow, table
from instructrec_jax.evaluation.predictor import predictor
from instructrec_jax.ranking.candidates import write_candidates
from instructrec_jax.ranking.catalogue import Catalogue, Splits
from instructrec_jax.ranking.evaluation import POPULARITY_AXIS
from instructrec_jax.ranking.tuned_baselines import TUNED
from instructrec_jax.tasks.base import Encoded, LossInputs, TaskContext
from instructrec_jax.tasks.prediction import Predict
from instructrec_jax.tasks.ranking.ranking_config import RankingConfig
from instructrec_jax.tasks.ranking.ranking_task import RankingTask
from instructrec_jax.tasks.task_config import TaskConfig

NOTHING = Predict(lambda texts, *_: [])  # what a task that computes no outputs scores with

ITEMS = 12
SEQUENCES = [np.array(s, np.int32) for s in ([0, 1, 2], [1, 2, 3], [2], [5, 2, 1])]


@pytest.fixture
def context(tokenizer: Any) -> TaskContext:
    return TaskContext(tokenizer, 64)


def build(context: TaskContext, folder: Path, **settings: Any) -> Any:
    return task_config("retrieval", folder / "catalogue", **settings).build(context)


def with_splits(folder: Path) -> Splits:
    """Writes splits beside the small catalogue."""
    items = Catalogue.load(folder / "catalogue")
    held = [np.array([n + 6], np.int32) for n in range(4)]
    splits = Splits(list("abcd"), SEQUENCES, held, [items_ + 2 for items_ in held])
    splits.save(folder / "catalogue", items)
    return splits


# ------------------------------------------------------------------ several wanted items


WANTED = ("item-1", "item-4", "item-7")


def test_one_of_several_wanted_items_is_drawn_and_the_others_are_no_negatives(
    context: TaskContext, tmp_path: Path
) -> None:
    task = build(context, tmp_path, softmax="sampled", negatives=9)
    encoded = task.encode(
        [
            Example(instruction="a film", output=WANTED, history=("item-0", "item-1")),
            Example(instruction="a book", output="item-4", history=("item-2",)),
        ]
    )
    assert encoded[0].target.items.tolist() == [1, 4, 7]
    assert encoded[0].target.seen.tolist() == [0] and encoded[0].target.history.tolist() == [0, 1]
    drawn: Counter[int] = Counter()
    for seed in range(90):
        arrays = task.gather(encoded, np.random.default_rng(seed)).own
        chosen = int(arrays.items[arrays.target[0]])
        drawn[chosen] += 1
        assert arrays.items[arrays.target[1]] == 4
        allowed = set(arrays.items[arrays.allowed[0]].tolist())
        assert allowed & {0, 1, 4, 7} == {chosen} and len(allowed) > 5
        assert set(arrays.items[arrays.allowed[1]].tolist()) - {1, 7} <= set(range(ITEMS)) - {2}
    assert set(drawn) == {1, 4, 7} and min(drawn.values()) > 15


def test_full_softmax_leaves_the_other_wanted_items_out(checkpoint: Path, tmp_path: Path) -> None:
    setup = Setup("retrieval", checkpoint, tmp_path, softmax="full", temperature=0.1)
    task: Any = setup.task
    buffers = jax.device_get(setup.state.buffers)
    first = Example(instruction="a film", output=WANTED)
    encoded = task.encode([first, Example(instruction="a book", output="item-4")])
    parts = task.gather(encoded, np.random.default_rng(0))
    assert parts.own.other_positives.shape == (2, 3)

    @jax.jit
    def loss(params: Any, batch: Any, buffers: Any) -> Any:
        model = nnx.merge(setup.model.graphdef, params)
        return task.loss(model, batch, LossInputs(buffers=buffers))

    total, _ = loss(setup.model.params, pack(parts, setup.buckets, 1).batch, buffers)
    predict = predictor(task, setup.model.graphdef, setup.mesh, setup.buckets)(setup.model.params)
    queries = np.stack(predict([e.text for e in encoded])).astype(np.float64)
    fresh = np.stack(predict(task.item_texts)).astype(np.float64)
    chosen = parts.own.items[parts.own.target]
    vectors = buffers["item_vectors"].astype(np.float64)
    vectors[chosen] = fresh[chosen]
    expected = 0.0
    for e, query, wanted in zip(encoded, queries, chosen, strict=True):
        scores = 10 * vectors @ query
        out = [i for i in e.target.items if i != wanted]
        expected += np.log(np.exp(np.delete(scores, out)).sum()) - scores[wanted]
    assert float(total) == pytest.approx(expected, rel=1e-5)


# ------------------------------------------------------------------ logQ


@pytest.mark.parametrize("softmax", ["in_batch", "sampled"])
def test_log_q_subtracts_the_log_of_expected_counts(softmax: Any, checkpoint: Path, tmp_path: Path) -> None:
    build_folder = task_config("retrieval", tmp_path / "catalogue")  # writes the catalogue, for the splits
    del build_folder
    with_splits(tmp_path)
    setup = Setup("retrieval", checkpoint, tmp_path, softmax=softmax, negatives=3, temperature=0.1, log_q=True)
    task: Any = setup.task
    encoded = task.encode(examples("retrieval", 6))
    parts = task.gather(encoded, np.random.default_rng(0))

    @jax.jit
    def loss(params: Any, batch: Any) -> Any:
        return task.loss(nnx.merge(setup.model.graphdef, params), batch, LossInputs())

    total, _ = loss(setup.model.params, pack(parts, setup.buckets, 1).batch)

    # How often each item is a candidate, by drawing the batches that the docstring speaks of.
    counts = np.bincount(np.concatenate(SEQUENCES), minlength=ITEMS) + 1.0
    distinct = len({int(e.target.items[0]) for e in encoded})
    rng = np.random.default_rng(1)
    drawn = rng.choice(ITEMS, (40_000, 6), p=counts / counts.sum())
    present = (drawn[:, :, None] == np.arange(ITEMS)).any(axis=1)
    if softmax == "sampled":
        present |= ~present & (rng.random(present.shape) < 3 / (ITEMS - distinct))
    log_q = np.log(present.mean(axis=0))
    candidates = parts.own.items
    there = candidates < ITEMS
    np.testing.assert_allclose(parts.own.log_q[there], log_q[candidates[there]], atol=0.03)
    assert not parts.own.log_q[~there].any()

    predict = predictor(task, setup.model.graphdef, setup.mesh, setup.buckets)(setup.model.params)
    items = np.stack(predict(task.item_texts)).astype(np.float64)
    exact = dict(zip(candidates.tolist(), parts.own.log_q.astype(float).tolist(), strict=True))
    expected = 0.0
    for e, query in zip(encoded, np.stack(predict([e.text for e in encoded])).astype(np.float64), strict=True):
        scores = {i: 10 * items[i] @ query - exact[i] for i in candidates[there].tolist() if i not in e.target.seen}
        expected += np.log(sum(map(np.exp, scores.values()))) - scores[int(e.target.items[0])]
    assert float(total) == pytest.approx(expected, rel=1e-5)


def test_log_q_needs_popularity_and_a_sample(context: TaskContext, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="task.log_q.*splits/train.jsonl"):
        build(context, tmp_path, log_q=True)
    with_splits(tmp_path)
    with pytest.raises(ValueError, match="task.log_q"):
        build(context, tmp_path, log_q=True, softmax="full")
    assert build(context, tmp_path, log_q=True).popularity.sum() == pytest.approx(1)


# ------------------------------------------------------------------ a reranker


@TaskConfig.register_subclass("test-reranker")
@dataclass
class RerankerConfig(RankingConfig):
    def build(self, context: TaskContext) -> "Reranker":
        return Reranker(self, context)


class Reranker(RankingTask):
    """Likes items by their number, and whatever stands first."""

    retrieves = False
    front = 0.0

    def score_candidates(self, predict: Predict, encoded: Sequence[Encoded], candidates: np.ndarray) -> np.ndarray:
        assert candidates.min() >= 0
        return candidates + self.front * (np.arange(candidates.shape[1]) == 0)


def reranker(context: TaskContext, folder: Path, **settings: Any) -> Any:
    task_config("retrieval", folder / "catalogue")
    with_splits(folder)
    return RerankerConfig(catalogue=str(folder / "catalogue"), **settings).build(context)


def of_users(**fields: Any) -> list[Example]:
    return [
        Example(
            instruction="a film",
            output=f"item-{n + 8}",
            history=("item-1",),
            id=f"c{n}",
            origin={"user": user, "split": "test"},
            **fields,
        )
        for n, user in enumerate("abcd")
    ]


def test_a_reranker_scores_candidates_alone(context: TaskContext, tmp_path: Path) -> None:
    task = reranker(context, tmp_path, protocols=["uni4", "listed"], cutoffs=[1, 3], orders=3)
    assert task.metric == "uni4 NDCG@3"
    listed = ("item-8", "item-9", "item-10", "item-11", "item-2")
    test = task.encode(of_users(candidates=listed))
    scores = task.score(NOTHING, test)
    # Of the five listed, 11 is the best, and case n wants n + 8.
    np.testing.assert_allclose(scores.cases["listed HR@1"], [0, 0, 0, 1])
    np.testing.assert_allclose(scores.cases["listed HR@3"], [0, 1, 1, 1])
    assert "3 orders" in scores.report
    assert "0.0% of the cases" in scores.report
    for record, e, case in zip(scores.predictions, test, scores.cases[task.metric], strict=True):
        assert record["user"] == e.example.origin["user"] and record["reference"] == [e.example.output]
        assert len(record["prediction"]) == 5 and record["scores"] == sorted(record["scores"], reverse=True)
        assert record["input"] == render(e.example) and record[task.metric] == case
        own = {1, *SEQUENCES["abcd".index(record["user"])].tolist()}
        assert not own & {int(item[5:]) for item in record["prediction"]}
    task.front = 100
    assert "100.0% of the cases" in task.score(NOTHING, test).report
    # Baselines are ranked among the same candidates.
    rows = task.baselines([], test)
    assert list(rows) == ["random", "popularity", "Markov-1", "coKNN", "coKNN-source", *TUNED, "BM25"]
    for row in rows.values():
        assert row.metrics.keys() == scores.metrics.keys() and row.protocol == scores.protocol
    counts = np.bincount(np.concatenate(SEQUENCES), minlength=ITEMS)
    np.testing.assert_array_equal(task.baseline_scores("popularity", test)(slice(1, 3)), np.tile(counts, (2, 1)))
    with pytest.raises(ValueError, match="magic"):
        task.baseline_scores("magic", test)


def test_protocols_that_cannot_be(context: TaskContext, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="task.protocols.*full"):
        reranker(context, tmp_path)
    with pytest.raises(ValueError, match="'unix'"):
        build(context, tmp_path, protocols=["full", "unix"])
    with pytest.raises(ValueError, match="task.protocols"):
        build(context, tmp_path, protocols=[])


def test_frozen_candidates_are_used_and_said(context: TaskContext, tmp_path: Path) -> None:
    task = build(context, tmp_path, protocols=["full", "uni4"], cutoffs=[1, 3])
    splits = with_splits(tmp_path)
    write_candidates(tmp_path / "catalogue", task.catalogue, splits, ["uni4"], seed=5)
    task = build(context, tmp_path, protocols=["full", "uni4"], cutoffs=[1, 3])
    scores = task.score_with(fixed_scores(4), task.encode(of_users()))
    assert "seen items masked" in scores.protocol
    assert "candidates/uni4.*.jsonl;" in scores.protocol


def fixed_scores(count: int) -> Callable[[slice], np.ndarray]:
    scores = np.random.default_rng(count).normal(size=(count, ITEMS))
    return lambda block: scores[block]


# ------------------------------------------------------------------ the table


def test_the_table_has_main_metrics_intervals_and_segments(context: TaskContext, tmp_path: Path) -> None:
    task = build(context, tmp_path, protocols=["full", "uni4"], cutoffs=[1, 3, 10])
    with_splits(tmp_path)
    task = build(context, tmp_path, protocols=["full", "uni4"], cutoffs=[1, 3, 10])
    asked = [
        Example(instruction="a film", output=f"item-{n % 12}", origin={"wording": "new" if n % 2 else "known"})
        for n in range(24)
    ]
    test = task.encode(asked)
    rows = [ScoredRow(name, {"": task.score_with(fixed_scores(n), test)}) for name, n in (("tuned", 24), ("other", 25))]
    found = table(rows, tuned="tuned", protocol="", metric=task.metric, measured_on="test")
    assert found["metrics"] == ["NDCG@10", "HR@10", "MRR@10", "uni4 HR@1", "uni4 NDCG@3"]
    assert {"coverage@10", "Gini@10", "novelty@10", "HR@3", "uni4 HR@3"} <= set(found["all_metrics"])
    low, high = found["rows"][0]["intervals"]["NDCG@10"]
    assert low < found["rows"][0]["values"]["NDCG@10"] < high
    parts = {part["name"]: part for part in found["segments"]}
    odd = rows[1].scores[""].cases["NDCG@10"][1::2].mean()
    assert parts["wording new"]["cases"] == 12 and parts["wording new"]["values"]["other"] == pytest.approx(odd)
    assert parts["wording new"]["low"] < parts["wording new"]["values"]["tuned"] < parts["wording new"]["high"]
    along = [part["place"] for part in parts.values() if part["axis"] == POPULARITY_AXIS]
    assert len(along) > 2 and along == sorted(along, key=lambda place: int(place.split(" to ")[0]))


def test_predictions_name_a_user_only_where_there_is_one(context: TaskContext, tmp_path: Path) -> None:
    task = reranker(context, tmp_path, protocols=["uni4"], cutoffs=[1, 3])
    known = of_users()
    asked = task.encode([known[0], replace(known[1], origin={"wording": "new"})])
    first, second = task.score(NOTHING, asked).predictions
    assert first["user"] == known[0].origin["user"] and "user" not in second and "score" not in first
