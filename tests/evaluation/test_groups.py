"""Metrics by the values of a field, beside brute force."""

from typing import Any

import numpy as np
import pytest
from sklearn.metrics import f1_score

from instructrec_jax.data.batch import Text
from instructrec_jax.data.example import Example
from instructrec_jax.evaluation.groups import LEAST, group_metrics, groups_by
from instructrec_jax.evaluation.tables import Group, format_table
from instructrec_jax.metrics.bootstrap import CorpusMetric
from instructrec_jax.tasks.base import Encoded, Task
from instructrec_jax.tasks.scores import Scores


class Plain(Task):
    """A task without subtasks."""

    def __init__(self, subtasks: Any = ()) -> None:
        self.names = subtasks

    @property
    def subtasks(self) -> Any:
        return {name: self for name in self.names}


def cases(values: list[str], field: str = "column gender", **more: Any) -> list[Encoded]:
    texts = [Text(np.array([1], np.int32))] * len(values)
    return [
        Encoded(text, None, Example(instruction="a", id=f"e{n}", origin={field: value} if value else {}, **more))
        for n, (text, value) in enumerate(zip(texts, values, strict=True))
    ]


def measured(encoded: list[Encoded], scores: Scores, field: str = "gender", metric: str = "accuracy") -> list[Group]:
    parts = groups_by({"": encoded}, [field])
    return group_metrics(Plain(), {"": scores}, parts, metric, "tuned")


def test_gaps_and_intervals_are_those_of_brute_force() -> None:
    rng = np.random.default_rng(0)
    values = rng.choice(["f", "m", "x"], 300, p=[0.5, 0.4, 0.1]).tolist()
    right = (rng.random(300) < np.array([{"f": 0.6, "m": 0.8, "x": 0.2}[v] for v in values])).astype(float)
    found = measured(cases(values), Scores({"accuracy": right.mean()}, {"accuracy": right}))
    assert [part["value"] for part in found] == sorted(
        "fmx", key=lambda v: -abs(right[np.array(values) == v].mean() - right[np.array(values) != v].mean())
    )
    for part in found:
        inside = np.array(values) == part["value"]
        own, rest = right[inside], right[~inside]
        assert part["cases"] == inside.sum() and part["mean"] == pytest.approx(own.mean())
        assert part["gap"] == pytest.approx(own.mean() - rest.mean())
        draw = rng.choice(own, (8000, len(own))).mean(1) - rng.choice(rest, (8000, len(rest))).mean(1)
        assert [part["gap_low"], part["gap_high"]] == pytest.approx(np.quantile(draw, [0.025, 0.975]), abs=0.02)
        alone = rng.choice(own, (8000, len(own))).mean(1)
        assert [part["low"], part["high"]] == pytest.approx(np.quantile(alone, [0.025, 0.975]), abs=0.02)
    said = format_table({"groups": found}, width=100)
    assert "By gender: accuracy of tuned, and the gap to all other cases" in said and said.index(found[0]["value"]) > 0


def test_a_corpus_metric_is_measured_on_the_cases_of_each_side() -> None:
    rng = np.random.default_rng(1)
    values = ["a"] * 60 + ["b"] * 140
    truth, said = rng.integers(0, 3, 200), rng.integers(0, 3, 200)
    said[60:] = np.where(rng.random(140) < 0.7, truth[60:], said[60:])

    def f1(some: np.ndarray) -> float:
        return float(f1_score(truth[some], said[some], average="macro", zero_division=0))

    every = np.arange(200)
    scores = Scores({"f1": f1(every)}, corpus={"f1": CorpusMetric(f1, 200)})
    first, second = measured(cases(values), scores, metric="f1")
    assert first["gap"] == pytest.approx(-second["gap"]) and {first["value"], second["value"]} == {"a", "b"}  # type: ignore[operator]
    part = first if first["value"] == "a" else second
    assert part["mean"] == pytest.approx(f1(every[:60]))
    assert part["gap"] == pytest.approx(f1(every[:60]) - f1(every[60:]))
    draws = [f1(rng.integers(0, 60, 60)) - f1(60 + rng.integers(0, 140, 140)) for _ in range(1000)]
    assert [part["gap_low"], part["gap_high"]] == pytest.approx(np.quantile(draws, [0.025, 0.975]), abs=0.04)


@pytest.mark.parametrize("corpus", [False, True])
def test_owners_with_cases_on_both_sides_are_drawn_with_all_their_cases(corpus: bool) -> None:
    """Each owner answers alike on both sides, so the gap is known far better than two independent samples would say."""
    rng = np.random.default_rng(2)
    owners = np.repeat(np.arange(30), 4)
    values = np.tile(["a", "a", "b", "b"], 30)
    number = np.repeat(rng.normal(0, 5, 30), 4) + (values == "a") + rng.normal(0, 0.1, 120)
    metric = {"corpus": {"gain": CorpusMetric(lambda some: float(number[some].mean()), 120)}}
    scores = Scores(
        {"gain": number.mean()}, **(metric if corpus else {"cases": {"gain": number}}), owners={"gain": owners}
    )  # type: ignore[arg-type]
    part = measured(cases(values.tolist()), scores, metric="gain")[0]
    draws = []
    for _ in range(1000):
        drawn = np.concatenate([np.flatnonzero(owners == n) for n in rng.integers(0, 30, 30)])
        draws.append(
            number[drawn][values[drawn] == part["value"]].mean() - number[drawn][values[drawn] != part["value"]].mean()
        )
    assert [part["gap_low"], part["gap_high"]] == pytest.approx(np.quantile(draws, [0.025, 0.975]), abs=0.02)
    one = Scores({"gain": number.mean()}, {"gain": number}, owners={"gain": np.zeros(120, int)})
    assert [part["gap_low"] for part in measured(cases(values.tolist()), one, metric="gain")] == [None, None]


def test_few_cases_are_pooled_and_missing_values_are_a_group() -> None:
    values = ["a"] * 12 + ["b"] * 9 + ["c"] * 4 + [""] * 11 + ["no value"] * 10
    (groups,) = groups_by({"": cases(values)}, ["gender"])[""].values()
    assert {name: len(own) for name, own in groups.numbers.items()} == {
        "a": 12,
        "no value": 10,
        "no value (others)": 11,
        f"fewer than {LEAST} cases (2 values)": 13,
    }


def test_numbers_with_many_values_are_divided_at_their_quartiles() -> None:
    ages = [str(n) for n in range(20, 60)] + [""] * 10
    (groups,) = groups_by({"": cases(ages)}, ["gender"])[""].values()
    assert list(groups.numbers) == ["20 to 29", "30 to 39", "40 to 49", "50 to 59", "no value"]
    assert sum(map(len, groups.numbers.values())) == 50
    (few,) = groups_by({"": cases(["1", "2", "1.5"] * 10)}, ["gender"])[""].values()
    assert list(few.numbers) == ["1", "2", "1.5"]


@pytest.mark.parametrize(
    ("values", "field", "message"),
    [
        ([f"id-{n}" for n in range(30)], "gender", "--by gender: none of its 30 values has 10 cases"),
        (["a"] * 30, "gender", "all 30 cases have the value 'a'"),
        (["a"] * 30, "gendr", 'no record.*has this field. Did you mean "gender".*They have gender, text'),
        ([], "gender", "no record"),
    ],
)
def test_fields_without_groups_are_named_errors(values: list[str], field: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        groups_by({"": cases(values)}, [field], lambda: ["gender", "text"])


def test_metrics_of_windows_and_of_subtasks_find_their_cases() -> None:
    plain = cases(["a", "b"] * 12, task="qa") + cases(["b", "a"] * 12, task="tags")
    windows = [e for e in plain[:24] for _ in range(2)] + plain[24:]  # two windows of each question
    parts = groups_by({"": windows}, ["gender"])
    numbers = np.arange(24.0)
    scores = Scores({"f1 (qa)": 0.0, "f1 (tags)": 0.0}, {"f1 (qa)": numbers, "f1 (tags)": -numbers})
    found = group_metrics(Plain(("qa", "tags")), {"": scores}, parts, "average", "tuned")
    means = {(part["metric"], part["value"]): part["mean"] for part in found}
    even, odd = numbers[::2].mean(), numbers[1::2].mean()
    assert means == {
        ("f1 (qa)", "a"): even,
        ("f1 (qa)", "b"): odd,
        ("f1 (tags)", "b"): -even,
        ("f1 (tags)", "a"): -odd,
    }
    short = Scores({"f1": 0.0}, {"f1": np.arange(5.0)})
    with pytest.raises(ValueError, match="f1 has 5 cases, but 72 examples"):
        group_metrics(Plain(), {"": short}, parts, "f1", "tuned")


def test_cases_without_a_value_of_the_metric_do_not_count() -> None:
    values = np.array([1.0, 0.0, np.nan] * 20)
    found = measured(cases(["a", "b", "a"] * 20), Scores({"accuracy": 0.5}, {"accuracy": values}))
    assert {part["value"]: (part["cases"], part["mean"], part["gap"]) for part in found} == {
        "a": (20, 1.0, 1.0),
        "b": (20, 0.0, -1.0),
    }
    alone = Scores({"accuracy": 0.5}, {"accuracy": np.array([1.0, np.nan, 1.0] * 20)})
    (part,) = measured(cases(["a", "b", "a"] * 20), alone)
    assert (part["value"], part["gap"], part["gap_low"]) == ("a", None, None)
