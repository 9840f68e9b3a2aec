"""The table of an evaluation: segments, rows and differences."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from instructrec_jax.data.batch import Text
from instructrec_jax.data.example import Example
from instructrec_jax.evaluation.evaluator import (
    ScoredRow,
    baseline_rows,
    greater_is_better,
    measured_on,
    score_row,
    segments,
    table,
)
from instructrec_jax.evaluation.results import results_of
from instructrec_jax.evaluation.tables import format_table
from instructrec_jax.metrics.bootstrap import CorpusMetric, bootstrap_interval, paired_bootstrap
from instructrec_jax.tasks.base import Encoded, Task
from instructrec_jax.tasks.prediction import Predict
from instructrec_jax.tasks.scores import BaselineNotFitted, Scores, owners_of, unless_unfit


def encoded(count: int = 6) -> list[Encoded]:
    return [
        Encoded(
            Text(np.array([n], np.int32)),
            n,
            Example(instruction=f"text {n}", id=f"e{n}", origin={"wording": "new" if n % 3 == 0 else "known"}),
        )
        for n in range(count)
    ]


class Stub(Task):
    """Scores a case by what `predict` gives its text; its only baseline by the number of the case."""

    metric = "gain"

    def score(self, predict: Any, encoded: Sequence[Encoded]) -> Scores:
        values = np.array([float(v) for v in predict([e.text for e in encoded])])
        return Scores({"gain": float(values.mean())}, {"gain": values}, [{"id": e.example.id} for e in encoded])

    def baselines(self, train: Sequence[Encoded], test: Sequence[Encoded]) -> dict[str, Scores]:
        values = np.array([len(train) * e.target / 100 for e in test])
        return {"number": Scores({"gain": float(values.mean())}, {"gain": values})}


def test_segments() -> None:
    cases = encoded()
    assert segments(cases, None) == {"": cases}
    groups = segments(cases, "wording")
    assert {name: [e.example.id for e in group] for name, group in groups.items()} == {
        "new": ["e0", "e3"],
        "known": ["e1", "e2", "e4", "e5"],
    }
    with pytest.raises(ValueError, match="evaluation.segment_by.*'viewer'.*'e0'"):
        segments(cases, "viewer")


def test_a_row_runs_each_text_once_and_scores_each_segment() -> None:
    calls: list[int] = []

    def predict(texts: Sequence[Text], *_: object) -> list[np.ndarray]:
        calls.extend(int(t.tokens[0]) for t in texts)
        return [t.tokens[0] * 1.0 for t in texts]

    cases = encoded()
    groups = {**segments(cases, "wording"), "all": cases}
    scored = score_row("after tuning", Stub(), Predict(predict), groups)
    assert sorted(calls) == list(range(6))
    means = {segment: scores.metrics["gain"] for segment, scores in scored.scores.items()}
    assert means == {"new": 1.5, "known": 3.0, "all": 2.5}


def test_baselines_are_rows_with_all_segments() -> None:
    cases = encoded()
    (row,) = baseline_rows(Stub(), cases, segments(cases, "wording"))
    assert row.name == "number"
    means = {segment: scores.metrics["gain"] for segment, scores in row.scores.items()}
    assert means == pytest.approx({"new": 0.09, "known": 0.18})


def scored_rows() -> list[ScoredRow]:
    rng = np.random.default_rng(0)
    rows = []
    for name, mean in (("before tuning", 0.2), ("after tuning", 0.6), ("popularity", 0.1)):
        scores = {}
        for segment, size in (("known", 40), ("new", 25)):
            values = rng.normal(mean, 0.3, size)
            metrics = {"NDCG@10": float(values.mean()), "HR@10": mean}
            scores[segment] = Scores(metrics, {"NDCG@10": values}, report=f"report of {name}")
        rows.append(ScoredRow(name, scores))
    return rows


def test_table() -> None:
    rows = scored_rows()
    result = table(rows, tuned="after tuning", protocol="65 cases", metric="NDCG@10", measured_on="test")
    assert result["protocol"] == "65 cases"
    assert result["metrics"] == ["NDCG@10, known", "HR@10, known", "NDCG@10, new", "HR@10, new"]
    assert [row["name"] for row in result["rows"]] == ["before tuning", "after tuning", "popularity"]
    for row, scored in zip(result["rows"], rows, strict=True):
        for segment, scores in scored.scores.items():
            assert row["values"][f"NDCG@10, {segment}"] == scores.metrics["NDCG@10"]
    assert result["report"] == "known\nreport of after tuning\n\nnew\nreport of after tuning"


def test_differences_are_paired_over_cases_and_of_the_same_segment() -> None:
    rows = scored_rows()
    result = table(rows, tuned="after tuning", protocol="", metric="NDCG@10", measured_on="test")
    names = [(d["name"], d["metric"]) for d in result["differences"]]
    assert names == [
        (f"after tuning − {other}", f"NDCG@10, {segment}")
        for other in ("before tuning", "popularity")
        for segment in ("known", "new")
    ]
    for difference in result["differences"]:
        other = next(c for c in rows if difference["name"].endswith(c.name))
        segment = difference["metric"].split(", ")[1]
        mine, theirs = (c.scores[segment].cases["NDCG@10"] for c in (rows[1], other))
        assert difference["mean"] == pytest.approx((mine - theirs).mean())
        assert (difference["mean"], difference["low"], difference["high"]) == paired_bootstrap(mine, theirs)
        # About ± 1.96 standard errors.
        error = (mine - theirs).std(ddof=1) / np.sqrt(len(mine))
        assert difference["high"] - difference["low"] == pytest.approx(2 * 1.96 * error, rel=0.15)


def test_a_table_without_segments_or_cases() -> None:
    plain = [ScoredRow(name, {"": Scores({"loss": value})}) for name, value in (("a", 1.0), ("b", 2.0))]
    result = table(plain, tuned="b", protocol="", metric="loss", measured_on="test")
    assert result["metrics"] == ["loss"] and result["differences"] == [] and result["report"] == ""
    assert table(plain, tuned="c", protocol="", metric="loss", measured_on="test")["differences"] == []


def test_which_metrics_are_better_when_greater() -> None:
    task = Stub()
    assert greater_is_better(task, "gain") and greater_is_better(task, "HR@10")
    assert not greater_is_better(task, "loss") and not greater_is_better(task, "mse")
    task.greater_is_better = False
    assert not greater_is_better(task, "gain")


def test_the_table_names_its_split() -> None:
    assert measured_on("test", chose_checkpoint=True) == "test"
    assert measured_on("validation", chose_checkpoint=False) == "validation"
    chose = measured_on("validation", chose_checkpoint=True)
    assert "checkpoint" in chose
    result = table(scored_rows(), tuned="after tuning", protocol="", metric="NDCG@10", measured_on=chose)
    assert result["split"] == chose and format_table(result).splitlines()[0] == f"Results on {chose}"


def test_a_baseline_that_cannot_be_fitted_is_a_row_with_a_note() -> None:
    def unfit() -> Scores:
        raise BaselineNotFitted("not fitted: no words")

    rows = [*scored_rows(), ScoredRow("TF-IDF", {name: unless_unfit(unfit) for name in ("known", "new")})]
    result = table(rows, tuned="after tuning", protocol="", metric="NDCG@10", measured_on="test")
    row = result["rows"][-1]
    assert row["values"] == {} and row["intervals"] == {} and row["note"] == "not fitted: no words"
    assert not any("TF-IDF" in d["name"] for d in result["differences"])
    assert "TF-IDF: not fitted: no words" in format_table(result)


def owned(users: Sequence[str], values: Sequence[float], noise: float = 0.0) -> Scores:
    examples = [Example(instruction="x", origin={"user": user} if user else {}) for user in users]
    cases = np.array(values) + noise * np.arange(len(values)) / len(values)
    corpus = {"F1": CorpusMetric(lambda drawn: float(cases[drawn].mean()), len(cases))}
    scores = Scores({"gain": float(cases.mean()), "F1": float(cases.mean())}, {"gain": cases}, corpus=corpus)
    return replace(scores, segments={"first": np.arange(60)}).owned_by(owners_of(examples))


def test_intervals_draw_the_cases_of_an_owner_together() -> None:
    """Three equal cases of each of 40 users say no more than one of each."""
    values = np.random.default_rng(0).normal(0, 1, 40)
    users = [f"u{n // 3}" for n in range(120)]
    for metric in ("gain", "F1"):
        rows = [ScoredRow("tuned", {"": owned(users, values.repeat(3))})]
        rows.append(ScoredRow("other", {"": owned(users, -values.repeat(3), 0.1)}))
        result = table(rows, tuned="tuned", protocol="", metric=metric, measured_on="test")
        _, low, high = bootstrap_interval(values)
        assert result["rows"][0]["intervals"][metric] == pytest.approx([low, high], abs=0.07)
        (difference,) = (d for d in result["differences"] if d["metric"] == metric)
        _, low, high = bootstrap_interval(2 * values)
        assert [difference["low"], difference["high"]] == pytest.approx([low - 0.05, high - 0.05], abs=0.15)
        part = result["segments"][0]
        assert part["values"]["tuned"] == pytest.approx(values[:20].mean())
        _, low, high = bootstrap_interval(values[:20])
        assert part["high"] - part["low"] == pytest.approx(high - low, rel=0.2)


def test_cases_of_one_owner_alone_have_no_interval() -> None:
    rows = [ScoredRow(name, {"": owned(["u"] * 60, np.arange(60.0) * factor)}) for name, factor in (("a", 1), ("b", 2))]
    result = table(rows, tuned="a", protocol="", metric="gain", measured_on="test")
    assert result["rows"][0]["intervals"] == {} and result["differences"] == [] and result["segments"] == []


def test_whose_an_example_is() -> None:
    def example(**fields: Any) -> Example:
        return Example(instruction="x", **fields)

    window = example(input="a long text")
    found = owners_of([window, window, example(origin={"user": "1"}), example(), example(origin={"user": "1"})])
    assert found is not None and found.tolist() == [0, 0, 1, 2, 1]
    assert owners_of(example() for _ in range(3)) is None  # each may get the address of the one before
    questions = [example(input="article"), example(input="article"), example(input="other")]
    assert owners_of(questions) is None
    shared = owners_of(questions, shared_input=True)
    assert shared is not None and shared.tolist() == [0, 0, 1]
    assert owners_of([example(origin={"user": ""}), example(origin={"user": ""})]) is None


def test_the_protocol_counts_cases_and_owners_once() -> None:
    def scores(cases: int, owners: int) -> Scores:
        values, of = np.arange(cases) % 2.0, np.arange(cases) % owners
        return Scores({"f1": 0.5}, {"f1": values}, [{"id": str(n)} for n in range(cases)], owners={"f1": of})

    rows = [ScoredRow("after tuning", {"seen": scores(12, 6), "unseen": scores(8, 4)})]
    found = results_of(rows, metric="f1", measured_on="test").evaluation["protocol"]
    assert found == (
        "12 cases (seen); 8 cases (unseen); intervals resample their 4 to 6 users, documents or conversations"
    )
