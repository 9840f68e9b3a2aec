"""Texts that come again: what is dropped of data.train, and what stays."""

import pytest

from instructrec_jax.data.example import Example
from instructrec_jax.data.fingerprints import normalized
from instructrec_jax.labeling.duplicates import near_duplicates
from instructrec_jax.labeling.findings import Finding, Rows
from instructrec_jax.labeling.repeats import repeats


def found(similarity: float = 1.0, one_label: bool = True, **splits: list[tuple[str, str]]) -> list[Finding]:
    rows = Rows()
    for split, given in splits.items():
        for number, (text, label) in enumerate(given):
            rows.splits.append(split)  # type: ignore[arg-type]
            rows.numbers.append(number)
            rows.examples.append(Example(instruction=text, output=label, id=f"{split}-{number}"))
            rows.texts.append(text)
            rows.keys.append(normalized(text))
    keys = list(dict.fromkeys(rows.keys))
    return repeats(rows, keys, near_duplicates(keys, similarity), one_label)


def brief(findings: list[Finding]) -> list[tuple[str, str, int, bool]]:
    return [(f.kind, f.split, f.number, f.dropped) for f in findings]


def test_a_duplicate_leaves_the_first() -> None:
    train = [("Good film", "good"), ("bad film", "bad"), ("good film!", "good"), ("good  film", "good")]
    assert brief(found(train=train)) == [("duplicate", "train", 2, True), ("duplicate", "train", 3, True)]


def test_the_most_frequent_label_of_equal_texts_stays() -> None:
    train = [("a film", "good"), ("a film", "bad"), ("A film", "good")]
    assert brief(found(train=train)) == [
        ("contradiction", "train", 0, False),
        ("contradiction", "train", 1, True),
        ("contradiction", "train", 2, False),
        ("duplicate", "train", 2, True),
    ]


def test_no_label_stays_where_several_are_as_frequent() -> None:
    assert [f.dropped for f in found(train=[("a film", "good"), ("a film", "bad")])] == [True, True]


def test_different_answers_of_other_tasks_do_not_contradict() -> None:
    train = [("name a city", "Paris"), ("name a city", "Rome"), ("name a city", "Rome")]
    assert brief(found(one_label=False, train=train)) == [("duplicate", "train", 2, True)]


def test_the_test_stays_whole() -> None:
    splits = {
        "train": [("a film", "good"), ("other", "bad")],
        "validation": [("a film", "good"), ("old", "bad")],
        "test": [("A film", "bad")],
    }
    assert brief(found(**splits)) == [("leak", "train", 0, True), ("leak", "validation", 0, False)]
    assert found(**splits)[0].other == "test test-0" and found(**splits)[0].other_label == "bad"


LONG = "please tell me why the payment with my new card was declined in the shop"


def test_near_duplicates_of_another_label_stay() -> None:
    train = [(LONG, "declined"), (LONG + " now", "declined"), (LONG + " so", "other")]
    assert brief(found(0.8, train=train)) == [
        ("near-duplicate", "train", 1, True),
        ("near-duplicate", "train", 2, False),
    ]
    assert brief(found(0.8, one_label=False, train=train)) == [("near-duplicate", "train", 1, True)]


def test_each_row_of_a_text_near_the_test_is_dropped() -> None:
    findings = found(0.8, train=[(LONG, "a"), (LONG, "b")], test=[(LONG + " now", "a")])
    leaks = [f for f in findings if f.kind == "leak"]
    assert [(f.number, f.dropped) for f in leaks] == [(0, True), (1, True)]
    assert all(f.similarity == pytest.approx(len(LONG) - 4, abs=1) or f.similarity < 1 for f in leaks)
