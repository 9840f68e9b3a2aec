"""Criteria of every kind of answer, by hand."""

import pytest

from instructrec_jax.robustness.expectations import (
    KIND_OF,
    SAME,
    Expectation,
    NotForThisRun,
    check_outputs,
    criterion,
    probabilities,
    read_expectation,
)
from instructrec_jax.tasks.answers import (
    Answer,
    ChoiceAnswer,
    CodesAnswer,
    ItemsAnswer,
    LabelAnswer,
    LabelsAnswer,
    NumberAnswer,
    RankedItem,
    SpanAnswer,
    TagsAnswer,
    TextAnswer,
    Word,
)


def label(name: str, share: float = 0.6) -> LabelAnswer:
    other = {"good": "bad", "bad": "good"}[name]
    return LabelAnswer(name, {name: share, other: 1 - share})


def labels(*names: str) -> LabelsAnswer:
    return LabelsAnswer(names, {name: 0.9 if name in names else 0.1 for name in "abcd"})


def tags(text: str) -> TagsAnswer:
    return TagsAnswer(tuple(Word(*each.split("/"), 0, 0) for each in text.split()))


def items(names: str) -> ItemsAnswer:
    return ItemsAnswer(tuple(RankedItem(name, name, -n) for n, name in enumerate(names)))


def choice(name: str, **scores: float) -> ChoiceAnswer:
    return ChoiceAnswer(name, 0.5, scores)


def span(text: str) -> SpanAnswer:
    return SpanAnswer(text, 0, 1, 1.0)


def same(before: Answer, after: Answer, **options: object) -> bool:
    expect = read_expectation("invariance", options, False)
    return criterion(expect, before, 2.0).holds(before, after, None)


@pytest.mark.parametrize(
    ("before", "after", "options", "holds"),
    [
        (label("good"), label("good", 0.9), {}, True),
        (label("good"), label("bad"), {}, False),
        (choice("a"), choice("a"), {}, True),
        (choice("a"), choice("b"), {}, False),
        (labels("a", "b"), labels("b", "a"), {}, True),
        (labels("a", "b"), labels("a"), {}, False),
        (labels("a", "b"), labels("a"), {"share": 0.5}, True),
        (labels(), labels(), {}, True),
        (NumberAnswer(1.0), NumberAnswer(1.5), {}, True),  # a quarter of the spread, 2
        (NumberAnswer(1.0), NumberAnswer(1.6), {}, False),
        (NumberAnswer(1.0), NumberAnswer(1.6), {"within": 0.6}, True),
        (tags("a/X b/O"), tags("a/X b/O"), {}, True),
        (tags("a/X b/O"), tags("a/X b/X"), {}, False),
        (tags("a/X b/O"), tags("a/X b/X"), {"share": 0.5}, True),
        (tags("a/X , b/O".replace(" ,", " ,/O")), tags("a/X b/O"), {}, True),  # without the comma
        (tags("a/X ,/O b/O"), tags("a/X b/X"), {}, False),
        (span("the Film!"), span("film"), {}, True),
        (span("a new film"), span("film"), {}, False),
        (span("new film"), span("film"), {"f1": 0.6}, True),
        (span(""), span(""), {}, True),
        (TextAnswer("one two three"), TextAnswer("one two four"), {}, False),  # F1 = 2/3
        (TextAnswer("one two three"), TextAnswer("one two four"), {"f1": 0.6}, True),
        (items("abcdefghij"), items("abcdefghxy"), {}, True),  # 8 of 10
        (items("abcdefghij"), items("bacdefghxy"), {"top": True}, False),
        (items("abcdefghij"), items("abcdefgxyz"), {}, False),
        (items("abcdefghij"), items("abxxxxxxxx"), {"k": 2, "overlap": 1}, True),
        (items(""), items(""), {}, True),
    ],
)
def test_the_same(before: Answer, after: Answer, options: dict[str, object], holds: bool) -> None:
    assert same(before, after, **options) == holds


@pytest.mark.parametrize(
    ("change", "by", "delta", "holds"),
    [
        *(("not_up", 0.1, delta, holds) for delta, holds in ((0.1, True), (0.2, False), (-0.5, True))),
        *(("not_down", 0.1, delta, holds) for delta, holds in ((-0.1, True), (-0.2, False), (0.3, True))),
        *(("up", 0.1, delta, holds) for delta, holds in ((0.1, True), (0.05, False), (-0.2, False))),
        *(("down", 0.1, delta, holds) for delta, holds in ((-0.1, True), (-0.05, False), (0.2, False))),
        *(("up", 0, delta, holds) for delta, holds in ((0.0, False), (0.01, True))),
        *(("not_up", 0, delta, holds) for delta, holds in ((0.0, True), (0.01, False))),
    ],
)
def test_directions(change: str, by: float, delta: float, holds: bool) -> None:
    wanted = read_expectation("directional", {"probability": {"label": "good", "change": change, "by": by}}, False)
    before, after = label("good", 0.6), label("good", 0.6 + delta)
    assert criterion(wanted, before, 0.0).holds(before, after, None) == holds
    wanted = read_expectation("directional", {"number": {"change": change, "by": by}}, False)
    assert criterion(wanted, NumberAnswer(0), 0.0).holds(NumberAnswer(2), NumberAnswer(2 + delta), None) == holds


def test_ranks_and_predicted_labels() -> None:
    rank = read_expectation("directional", {"rank": {"item": "top", "change": "not_down", "by": 1}}, False)
    assert criterion(rank, items("abc"), 0.0).holds(items("abc"), items("bac"), None)
    assert not criterion(rank, items("abc"), 0.0).holds(items("abc"), items("bca"), None)
    up = read_expectation("directional", {"rank": {"item": "c", "change": "up"}}, False)
    assert criterion(up, items("abc"), 0.0).holds(items("abc"), items("acb"), None)
    mine = read_expectation("directional", {"probability": {"label": "predicted", "change": "down"}}, False)
    assert criterion(mine, label("bad"), 0.0).holds(label("bad", 0.8), label("bad", 0.7), None)
    assert not criterion(mine, label("bad"), 0.0).holds(label("bad", 0.8), label("good", 0.1), None)
    other = read_expectation("directional", {"answer": "changed"}, False)
    assert criterion(other, label("bad"), 0.0).holds(label("bad"), label("good"), None)
    assert probabilities(choice("a", a=0.0, b=0.0)) == {"a": 0.5, "b": 0.5}


def holds(wanted: dict[str, object], answer: Answer, own: object = None) -> bool:
    expect = read_expectation("minimum", wanted, own is not None)
    return criterion(expect, answer, 2.0).holds(None, answer, own)  # type: ignore[arg-type]


def test_certain_answers() -> None:
    assert holds({"output": "good"}, label("good")) and not holds({"output": "good"}, label("bad"))
    assert holds({"one_of": ["good", "bad"]}, label("bad")) and not holds({"not": "bad"}, label("bad"))
    assert holds({"output": ["a", "b"]}, labels("b", "a")) and not holds({"output": "a"}, labels("a", "b"))
    assert holds({"contains": "Paris"}, TextAnswer("in paris, France")) and not holds({"contains": "x"}, span("y"))
    assert holds({"output": 3}, NumberAnswer(3.5)) and not holds({"output": 3}, NumberAnswer(3.6))
    assert holds({}, tags("a/X b/O"), ("X", "O")) and not holds({}, tags("a/X"), ("O",))
    assert holds({}, items("abc"), "c") and not holds({}, items("abc"), "d")
    assert holds({}, choice("a"), "a") and holds({}, span("The film."), "film")


@pytest.mark.parametrize(
    ("expect", "answer", "said"),
    [
        (
            Expectation("probability", {"label": "x", "change": "up", "by": 0}),
            label("good"),
            "no label 'x': it has good",
        ),
        (Expectation("output", {"value": "x"}), labels("a"), "no label 'x'"),
        (Expectation("not", {"value": ["x"]}), choice("a", a=0.5), "no candidate 'x'"),
        (Expectation("output", {"value": "three"}), NumberAnswer(3.0), "'three' is no number"),
        (
            Expectation("number", {"change": "up", "by": 0}),
            label("good"),
            "is for answers of the kind number, not label",
        ),
        (Expectation("contains", {"value": "x"}), label("good"), "expect.contains is for answers that are texts"),
        (Expectation("same", {"f1": 0.5}), label("good"), "same.f1 is not for answers of the kind label: it takes no"),
        (
            Expectation("same", {"top": True}),
            labels("a"),
            "same.top is not for answers of the kind labels: it takes share",
        ),
        (Expectation("same"), CodesAnswer((1,)), r"its answers \(CodesAnswer\) are not compared"),
    ],
)
def test_what_a_run_has_not_got_is_named(expect: Expectation, answer: Answer, said: str) -> None:
    with pytest.raises(NotForThisRun, match=said):
        criterion(expect, answer, 0.0)


@pytest.mark.parametrize(
    ("kind", "wanted", "said"),
    [
        ("invariance", {"f2": 1}, "same has no option 'f2': it has share, within, f1"),
        ("invariance", {"f1": 2}, "same.f1 should be from 0 to 1"),
        ("invariance", {"within": float("nan")}, "same.within should be a number"),
        ("invariance", {"top": 1}, "same.top should be true or false"),
        ("invariance", {"k": 0}, "same.k should be a whole number"),
        ("directional", {}, "expect should have one of probability, number, rank, answer, but has none"),
        ("directional", {"probability": {"change": "up"}}, "expect.probability.label should be a text"),
        ("directional", {"probability": {"label": "a", "change": "more"}}, "change should be one of not_up"),
        ("directional", {"number": {"change": "up", "by": -1}}, "by should be a number"),
        ("directional", {"number": {"by": 1}}, "expect.number should have change, by"),
        ("directional", {"answer": "new"}, "expect.answer should be changed"),
        ("minimum", {}, "expect should have one of output, one_of, not, contains"),
        ("minimum", {"output": 1, "not": 2}, "expect should have one of"),
        ("minimum", {"one_of": ["a"]}, "expect.one_of should be a list"),
        ("minimum", {"contains": 3}, "expect.contains should be a text"),
    ],
)
def test_wrong_expectations_are_named(kind: str, wanted: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError) as caught:
        read_expectation(kind, wanted, False)
    assert said in str(caught.value)


def test_unknown_outputs_are_named_and_every_kind_has_a_line() -> None:
    with pytest.raises(NotForThisRun, match="no label 'x'"):
        check_outputs(["good", "x"], label("good"))
    assert set(SAME) == set(KIND_OF.values())
