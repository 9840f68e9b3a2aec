"""A stream of records labeled by a classifier whose answers are known: order, values, weights, bad records."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest

from instructrec_jax.answering.records import Skipped
from instructrec_jax.answering.rolling import Band, Weight
from instructrec_jax.answering.watch import Feed, Reading, label_values, opinions, read_values, watch
from instructrec_jax.data.example import BadExample
from instructrec_jax.tasks.averaging import Mixture

LABELS = ["negative", "neutral", "positive"]


class Oracle:
    """Knows the probabilities of a text: numbers separated by spaces, one line for each member."""

    labels = LABELS
    run = SimpleNamespace(abstention=None)

    def __init__(self, members: int = 1):
        self.members, self.numbers = members, list[int]()
        self.mixture = Mixture.equal("probability", members)

    def encode(self, text: str, where: str) -> list[Any]:
        if text == "unusable":
            raise BadExample("text", "unusable text", "too long", where)
        return [text]

    def logits(self, encoded: Sequence[Sequence[Any]], numbers: Sequence[int]) -> np.ndarray:
        self.numbers += numbers
        rows = [[[float(x) for x in line.split()] for line in each[0].splitlines()] for each in encoded]
        with np.errstate(divide="ignore"):
            return np.log(np.array(rows).transpose(1, 0, 2))

    def shares(self, logits: np.ndarray) -> np.ndarray:
        return np.exp(logits)

    def mean(self, logits: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore"):
            return np.log(np.exp(logits).mean(0))


START = datetime(2030, 1, 1, tzinfo=UTC)
FIELDS = {"text": "text", "entity": "who", "time": "when"}


def stream(path: Path, *rows: tuple[Any, Any, Any]) -> str:
    def when(day: Any) -> Any:
        return day if isinstance(day, str | None) else (START + timedelta(days=day)).isoformat()

    lines = [json.dumps({"text": text, "who": entity, "when": when(day)}) for text, entity, day in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def feed(late: int = 0, skip: bool = False, oracle: Any = None) -> Feed:
    return Feed(oracle or Oracle(), FIELDS, UTC, timedelta(days=late), Skipped(skip))


# ------------------------------------------------------------------ values of labels


def test_usual_labels_have_values() -> None:
    assert label_values(LABELS, None).tolist() == [-1, 0, 1]
    assert label_values(["Positive", "NEGATIVE"], None).tolist() == [1, -1]
    assert label_values(LABELS, {"neutral": 0.5}).tolist() == [-1, 0.5, 1]
    assert label_values(["good", "bad"], {"bad": -2, "good": 3}).tolist() == [3, -2]


@pytest.mark.parametrize(
    ("labels", "given", "named"),
    [
        (["good", "bad"], None, r"--values.*good.*bad"),
        (["good", "bad"], {"good": 1.0}, r"--values.*\['bad'\]"),
        (["good", "bad"], {"good": 1.0, "bda": -1.0}, "'bda'.*\"bad\""),
    ],
)
def test_labels_without_a_value_are_named(labels: list[str], given: Any, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        label_values(labels, given)


def test_values_from_json() -> None:
    assert read_values('{"good": 1, "bad": -0.5}') == {"good": 1.0, "bad": -0.5}


@pytest.mark.parametrize("value", ['"1"', "true", "null", "NaN", "Infinity", "1e999", "9" * 400, "[1]", ""])
def test_values_that_are_no_numbers_are_named(value: str) -> None:
    with pytest.raises(ValueError, match="--values"):
        read_values(f'{{"a": {value}}}')


@pytest.mark.parametrize("text", ["", "[1]", "3", "{'a': 1}"])
def test_values_that_are_no_mapping_are_named(text: str) -> None:
    with pytest.raises(ValueError, match="--values"):
        read_values(text)


# ------------------------------------------------------------------ reading


def test_records_come_in_the_order_of_time(tmp_path: Path) -> None:
    path = stream(tmp_path / "s.jsonl", ("1 0 0", "a", 2), ("0 1 0", "b", 1), ("0 0 1", "a", 3), ("0 1 0", "a", 2.5))
    found = list(feed(late=2)(path))
    assert [reading.time for reading in found] == [START + timedelta(days=d) for d in (1, 2, 2.5, 3)]
    assert [reading.number for reading in found] == [1, 0, 3, 2]  # numbered as they arrived
    assert found[0].entity == "b" and found[0].where.endswith("line 2")
    with pytest.raises(ValueError, match="line 2.*'when'"):
        list(feed(late=0)(path))


def test_times_without_a_zone_are_counted(tmp_path: Path) -> None:
    path = stream(tmp_path / "s.jsonl", ("1 0 0", "a", "2030-01-01 00:00"), ("1 0 0", "a", "2030-01-02T00:00:00Z"))
    reading = feed()
    assert len(list(reading(path))) == 2 and reading.unzoned == 1


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ((3, "a", 2), "text"),
        ((None, "a", 2), "text"),
        (("unusable", "a", 2), "text"),
        (("1 0 0", None, 2), "who"),
        (("1 0 0", "a", "soon"), "when"),
        (("1 0 0", "a", None), "when"),
    ],
)
def test_a_bad_record_comes_after_those_before_it_or_is_skipped(row: Any, field: str, tmp_path: Path) -> None:
    path = stream(tmp_path / "s.jsonl", ("1 0 0", "a", 1), row, ("0 0 1", "a", 3))
    found: list[Reading] = []
    with pytest.raises(ValueError, match=f"line 2.*'{field}'(?s:.*)--on_bad_record"):
        for reading in feed(late=9)(path):
            found.append(reading)
    assert [each.text for each in found] == ["1 0 0"]
    skipping = feed(late=9, skip=True)
    assert [each.text for each in skipping(path)] == ["1 0 0", "0 0 1"]
    assert skipping.skipped.counts.total() == 1


# ------------------------------------------------------------------ labels and scores

READINGS = [
    Reading(7, "line 1", "a", START, "hello", ["0.1 0.2 0.7\n0.3 0.4 0.3"]),
    Reading(9, "line 2", "b", START, "bye", ["1 0 0\n1 0 0"]),
]


@pytest.mark.parametrize("weight", get_args(Weight))
def test_an_opinion_is_of_the_mean_of_the_members(weight: Any) -> None:
    oracle: Any = Oracle(members=2)
    first, second = opinions(oracle, label_values(LABELS, None), weight, READINGS)
    mean = np.array([0.2, 0.3, 0.5])
    doubt = -(mean * np.log(mean)).sum()
    each = [-(p * np.log(p)).sum() for p in (np.array([0.1, 0.2, 0.7]), np.array([0.3, 0.4, 0.3]))]
    np.testing.assert_allclose(first.values, [0.6, 0.0], atol=1e-12)
    assert first.value == pytest.approx(0.3) and first.entropy == pytest.approx(doubt)
    assert first.mutual_information == pytest.approx(doubt - np.mean(each))
    assert first.weight == pytest.approx(1 - doubt / np.log(3) if weight == "certainty" else 1)
    assert second.value == -1 and second.weight == 1 and second.entropy == 0  # quite certain
    assert first.told["label"] == "positive"
    assert first.told["probabilities"] == pytest.approx(dict(zip(LABELS, mean, strict=True)))
    assert oracle.numbers == [7, 9] and json.dumps([first.told, second.told], allow_nan=False)


def test_one_member_has_no_mutual_information() -> None:
    oracle: Any = Oracle()
    (found,) = opinions(oracle, label_values(LABELS, None), "equal", [Reading(0, "x", "a", START, "t", ["0 1 0"])])
    assert "mutual_information" not in found.told and "entropy" in found.told


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_batches_make_no_difference(batch: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    texts = [" ".join(map(str, rng.dirichlet(np.ones(3)))) for _ in range(20)]
    path = stream(tmp_path / "s.jsonl", *[(text, "ab"[n % 2], n / 4) for n, text in enumerate(texts)])
    oracle: Any = Oracle()
    band = Band(-0.3, 0.3)
    found = list(watch(oracle, feed(oracle=oracle)(path), timedelta(days=1), band, batch=batch))
    alone = list(watch(oracle, feed(oracle=oracle)(path), timedelta(days=1), band, batch=1))
    assert found == alone and [told["entity"] for told, _ in found] == ["a", "b"] * 10


def test_a_band_that_no_score_can_leave_is_named() -> None:
    oracle: Any = Oracle()
    with pytest.raises(ValueError, match="--band -1 1"):
        next(watch(oracle, iter([]), timedelta(days=1), Band(-1.0, 1.0)))
    assert list(watch(oracle, iter([]), timedelta(days=1), Band(-1.0, 0.9))) == []
