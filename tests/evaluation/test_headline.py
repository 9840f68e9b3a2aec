"""The last lines of a run: the metric that counts, beside the others, and what it was measured on."""

import pytest

from instructrec_jax.evaluation.evaluator import ScoredRow
from instructrec_jax.evaluation.headline import headline
from instructrec_jax.tasks.scores import Scores


@pytest.fixture(autouse=True)
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")


def row(name: str, **values: float) -> ScoredRow:
    return ScoredRow(name, {part: Scores({"mse": value}, predictions=[{}] * 3) for part, value in values.items()})


def test_one_group() -> None:
    rows = [
        ScoredRow(name, {"": Scores({"f1": value}, predictions=[{}] * 1234)})
        for name, value in (("before tuning", 0.1), ("after tuning", 0.5), ("chance", 0.2), ("TF-IDF", 0.3))
    ]
    said = headline(
        rows,
        tuned="after tuning",
        metric="f1",
        measured_on="test",
        greater=True,
        more="R",
        intervals={"f1": (0.4, 0.625), "accuracy": (0.1, 0.2)},
    )
    assert said.splitlines() == [
        "Result       f1 0.5000 [0.4000, 0.6250] (before tuning 0.1000; best of the others: TF-IDF 0.3000)",
        "Measured on  test (1,234 cases)",
    ]


def test_the_hybrid_that_answers_is_none_of_the_others() -> None:
    rows = [
        ScoredRow(name, {"": Scores({"f1": value}, predictions=[{}] * 3)}, served=name == "hybrid")
        for name, value in (("tuned", 0.5), ("hybrid", 0.6), ("BM25", 0.2))
    ]
    said = headline(rows, tuned="tuned", metric="f1", measured_on="test", greater=True, more="R")
    assert said.splitlines()[:2] == [
        "Result       f1 0.5000 (hybrid, which recommend answers with: 0.6000; best of the others: BM25",
        "             0.2000)",
    ]


def test_groups_lower_is_better_and_the_split_that_chose_the_checkpoint() -> None:
    rows = [row("tuned", seen=1.0, unseen=2.0), row("mean", seen=3.0, unseen=2.5), row("ridge", seen=2.5, unseen=4.0)]
    said = headline(
        rows,
        tuned="tuned",
        metric="mse",
        measured_on="validation, which also chose the checkpoint",
        greater=False,
        more="R",
    ).splitlines()
    assert "on seen" in said[0] and "ridge 2.5000" in said[0] and "on unseen" in said[1] and "mean 2.5000" in said[1]
    assert "validation, which also chose the checkpoint (6 cases)" in said[2] and "data.test" in " ".join(said[2:])


def test_many_groups_are_in_the_report_and_missing_values_are_said() -> None:
    rows = [row("tuned", **{f"language {n}": float("nan") for n in range(9)})]
    said = headline(rows, tuned="tuned", metric="mse", measured_on="test", greater=False, more="R").splitlines()
    assert len(said) == 6 and said[0].startswith("Result       mse –") and said[4].strip() == "5 more in R"
