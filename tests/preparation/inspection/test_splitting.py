"""Splits of rows: equal inputs together, every row once, labels in proportion, the latest rows last."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from instructrec_jax.preparation.inspection.splitting import LEFT_OUT, SPLITS, Rows, divide, key_of, labels_of, split_of
from instructrec_jax.preparation.inspection.table import Guess, Setting


def task(kind: str = "classification", *, separator: str | None = None, inputs: tuple[str, ...] = ("text",)) -> Guess:
    fields = {} if separator is None else {"separator": Setting(separator)}
    return Guess({"type": Setting(kind)}, fields, inputs, "label")


@dataclass(frozen=True)
class Found:
    rows: dict[str, list[int]]
    left_out: int


def split(
    rows: list[dict[str, Any]],
    guess: Guess | None = None,
    *,
    files: Sequence[str] = (),
    times: Sequence[float] | None = None,
    seed: int = 0,
) -> Found:
    """The numbers of the rows of each split."""
    kept, names = Rows(len(rows) + 3, seed, guess or task()), list(dict.fromkeys(files or ["a.csv"]))
    for number, row in enumerate(rows):
        kept.add(row, names.index(files[number]) if files else 0)
    kept.finish(None if times is None else np.array(times))
    parts = divide(kept, files=names, validation=0.1, test=0.2)
    found = {name: np.flatnonzero(parts.split == number).tolist() for number, name in enumerate(SPLITS)}
    assert {name: len(each) for name, each in found.items()} == parts.counts
    assert parts.left_out == (parts.split == LEFT_OUT).sum()
    return Found(found, parts.left_out)


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("train.csv", "train"),
        ("data/my_train-2.jsonl.gz", "train"),
        ("training.csv", "train"),
        ("TEST.csv", "test"),
        ("dev.tsv", "validation"),
        ("x.val.csv", "validation"),
        ("validation.csv", "validation"),
        ("eval_1.csv", "validation"),
        ("reviews.csv", None),
        ("trainer.csv", None),
        ("contest.csv", None),
        ("test/reviews.csv", None),  # the file's own name counts
    ],
)
def test_names_of_files(file: str, expected: str | None) -> None:
    assert split_of(file) == expected


def test_keys_ignore_case_and_spaces_but_not_where_a_text_ends() -> None:
    assert key_of({"a": " The  Film\n"}, ["a"]) == key_of({"a": "the film"}, ["a"])
    assert key_of({"a": "x y", "b": ""}, ["a", "b"]) != key_of({"a": "x", "b": "y"}, ["a", "b"])
    assert key_of({"a": {"b": "x"}}, ["a.b"]) == key_of({"a": {"b": "X"}}, ["a.b"])


def test_labels_of_a_row() -> None:
    assert labels_of({"label": "x"}, task()) == ["x"] and labels_of({"label": 3}, task()) == ["3"]
    assert labels_of({"label": "x; y;"}, task("multilabel", separator=";")) == ["x", "y"]
    assert labels_of({"label": ["x", 1]}, task("multilabel")) == ["x", "1"]
    assert labels_of({"label": None}, task()) == [] and labels_of({"label": "x"}, task("regression")) == []


@pytest.mark.parametrize("kind", ["classification", "regression"])
@pytest.mark.parametrize("timed", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_every_row_is_in_one_split_and_equal_inputs_in_the_same(kind: str, timed: bool, seed: int) -> None:
    draw = random.Random(seed)
    count = draw.randrange(3, 120)
    rows = [{"text": f"film {draw.randrange(count)}", "label": draw.choice("aab")} for _ in range(count)]
    rows[:3] = [{"text": name, "label": "a"} for name in "xyz"]  # three inputs at least
    times = [draw.random() for _ in rows] if timed else None
    found = split(rows, task(kind), seed=seed, times=times)
    assert sorted(n for each in found.rows.values() for n in each) == list(range(count)) and found.left_out == 0
    assert set(found.rows) == set(SPLITS) and all(each == sorted(each) for each in found.rows.values())
    inputs = {name: {rows[n]["text"] for n in each} for name, each in found.rows.items()}
    assert not inputs["train"] & inputs["test"] and not inputs["train"] & inputs["validation"]
    assert not inputs["validation"] & inputs["test"]


def test_shares_and_labels_in_proportion() -> None:
    rows = [{"text": f"film {n}", "label": "rare" if n % 10 == 0 else "usual"} for n in range(1000)]
    found = split(rows)
    sizes = {name: len(each) for name, each in found.rows.items()}
    assert sizes == pytest.approx({"train": 700, "validation": 100, "test": 200}, abs=3)
    for name in ("validation", "test"):
        assert Counter(rows[n]["label"] for n in found.rows[name])["rare"] == pytest.approx(sizes[name] / 10, abs=1.5)
    assert split(rows).rows == found.rows and split(rows, seed=1).rows != found.rows


def test_the_order_of_a_file_does_not_matter() -> None:
    rows = [{"text": f"film {n}", "label": "ab"[n % 2]} for n in range(50)]
    ahead, back = split(rows), split(rows[::-1])
    for name in SPLITS:
        assert {rows[n]["text"] for n in ahead.rows[name]} == {rows[::-1][n]["text"] for n in back.rows[name]}


def test_training_knows_every_label() -> None:
    rows = [{"text": f"film {n}", "label": f"l{n % 9}"} for n in range(60)]
    found = split(rows)
    assert {rows[n]["label"] for n in found.rows["train"]} == {f"l{n}" for n in range(9)}


def test_the_latest_rows_are_the_test() -> None:
    times = [float(n * 7 % 100) for n in range(100)]  # a permutation
    rows = [{"text": f"film {n}", "label": "a"} for n in range(100)]
    found = split(rows, times=times)
    of = {name: sorted(times[n] for n in each) for name, each in found.rows.items()}
    assert of["train"] == [float(n) for n in range(70)] and of["validation"] == [float(n) for n in range(70, 80)]
    assert of["test"] == [float(n) for n in range(80, 100)]


def test_few_rows_reach_every_split() -> None:
    for count in range(4, 12):
        found = split([{"text": f"film {n}", "label": 1} for n in range(count)], task("regression"))
        assert all(found.rows.values()), count
    with pytest.raises(ValueError, match="2 different inputs"):
        split([{"text": "film", "label": 1}, {"text": "FILM ", "label": 2}, {"text": "book", "label": 1}])


def test_files_keep_the_split_of_their_name() -> None:
    files = ["train.csv"] * 40 + ["test.csv"] * 20
    rows = [{"text": f"film {n}", "label": "a"} for n in range(60)]
    rows[5]["text"] = "Film 45"  # stands in the test file, too
    found = split(rows, files=files)
    assert found.rows["test"] == list(range(40, 60)) and found.left_out == 1
    assert 5 not in found.rows["train"] + found.rows["validation"]
    assert len(found.rows["train"]) + len(found.rows["validation"]) == 39 and len(found.rows["validation"]) == 4
    alone = split(rows[40:], files=["test.csv"] * 20)  # nothing else to train on
    assert all(alone.rows.values()) and alone.left_out == 0
