"""What a test expects of answers: the same, a change in one direction, or a certain answer.

The table of what "the same" means is `SAME`, by the kind of answer; a test's `same` changes these defaults.
"""

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, cast

import numpy as np

from instructrec_jax.data.example import Output
from instructrec_jax.metrics.answers import f1
from instructrec_jax.tasks.answers import (
    Answer,
    ChoiceAnswer,
    ItemsAnswer,
    LabelAnswer,
    LabelsAnswer,
    NumberAnswer,
    SpanAnswer,
    TagsAnswer,
    TextAnswer,
)

AnswerKind = Literal["label", "labels", "choice", "number", "tags", "span", "text", "items"]
KIND_OF: Mapping[type, AnswerKind] = {
    LabelAnswer: "label",
    LabelsAnswer: "labels",
    ChoiceAnswer: "choice",
    NumberAnswer: "number",
    TagsAnswer: "tags",
    SpanAnswer: "span",
    TextAnswer: "text",
    ItemsAnswer: "items",
}
QUARTER = 0.25  # of the standard deviation of the predicted numbers: how far one may move
# Kind of answer -> the options of `same` with their defaults; None: see QUARTER.
SAME: Mapping[AnswerKind, Mapping[str, float | bool | None]] = {
    "label": {},
    "choice": {},
    "labels": {"share": 1.0},
    "number": {"within": None},
    "tags": {"share": 1.0},
    "span": {"f1": 1.0},
    "text": {"f1": 0.7},
    "items": {"overlap": 0.8, "top": False, "k": 10},
}
OF_SAME: Mapping[str, str] = {option: kind for kind, options in SAME.items() for option in options}
CHANGES = ("not_up", "not_down", "up", "down")
DIRECTIONS = {"probability": ("label", "change", "by"), "number": ("change", "by"), "rank": ("item", "change", "by")}
PREDICTED, TOP = "predicted", "top"
ROUNDING = 1e-9


class NotForThisRun(ValueError):
    """A test whose labels or answers the run has not got."""


@dataclass(frozen=True)
class Expectation:
    """`how`: same, probability, number, rank, answer, output, one_of, not, contains or own (each example's output)."""

    how: str
    values: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Criterion:
    """Whether an answer is as expected: `holds(answer before, answer after, the example's own output)`.

    The answer before is None in a minimum functionality test.
    """

    said: str
    holds: Callable[[Answer | None, Answer, Output], bool]


# ---- reading -------------------------------------------------------------------------------------------


def read_expectation(kind: str, wanted: Mapping[str, object], own_outputs: bool) -> Expectation:
    """The expectation of a test of this kind.

    Args:
      own_outputs: whether the test's examples have outputs.

    Raises ValueError naming what is wrong.
    """
    if kind == "invariance":
        return Expectation("same", _same(wanted))
    if kind == "minimum" and not wanted and own_outputs:
        return Expectation("own")
    choices = ("output", "one_of", "not", "contains") if kind == "minimum" else (*DIRECTIONS, "answer")
    if len(wanted) != 1 or next(iter(wanted)) not in choices:
        raise ValueError(
            f"expect should have one of {', '.join(choices)}, but has {', '.join(map(str, wanted)) or 'none'}."
        )
    ((how, value),) = wanted.items()
    if how in DIRECTIONS:
        return Expectation(how, _direction(how, value))
    if how == "answer" and value != "changed":
        raise ValueError(f"expect.answer should be changed, but is {value!r:.60}.")
    if how == "contains" and not (isinstance(value, str) and value):
        raise ValueError(f"expect.contains should be a text, but is {value!r:.60}.")
    if how in ("one_of", "not"):
        value = value if isinstance(value, list) else [value]
        if not value or how == "one_of" and len(value) < 2:
            raise ValueError(f"expect.{how} should be a list of answers, but is {value!r:.60}.")
    return Expectation(how, {"value": value})


def _same(wanted: Mapping[str, object]) -> dict[str, object]:
    for name, value in wanted.items():
        if name not in OF_SAME:
            raise ValueError(f"same has no option {name!r}: it has {', '.join(OF_SAME)}.")
        kind = type(SAME[OF_SAME[name]][name])  # type: ignore[index]
        if kind is bool and not isinstance(value, bool):
            raise ValueError(f"same.{name} should be true or false, but is {value!r:.60}.")
        if kind is not bool and not _is_number(value):
            raise ValueError(f"same.{name} should be a number from 0 on, but is {value!r:.60}.")
        if name == "k" and not (isinstance(value, int) and value >= 1):
            raise ValueError(f"same.k should be a whole number from 1 on, but is {value!r:.60}.")
        if name in ("share", "f1", "overlap") and cast(float, value) > 1:
            raise ValueError(f"same.{name} should be from 0 to 1, but is {value!r:.60}.")
    return dict(wanted)


def _direction(how: str, value: object) -> dict[str, object]:
    names = DIRECTIONS[how]
    if not isinstance(value, dict) or set(value) - {*names} or "change" not in value:
        raise ValueError(f"expect.{how} should have {', '.join(names)} (by: 0), but is {value!r:.80}.")
    if value["change"] not in CHANGES:
        raise ValueError(f"expect.{how}.change should be one of {', '.join(CHANGES)}, but is {value['change']!r:.60}.")
    if not _is_number(value.get("by", 0)):
        raise ValueError(f"expect.{how}.by should be a number from 0 on, but is {value['by']!r:.60}.")
    whose = {"probability": "label", "rank": "item"}.get(how)
    if whose and not isinstance(value.get(whose), str):
        raise ValueError(f"expect.{how}.{whose} should be a text, but is {value.get(whose)!r:.60}.")
    return {"by": 0, **value}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


# ---- criteria ------------------------------------------------------------------------------------------


def kind_of(answer: Answer) -> AnswerKind | None:
    """The kind of an answer; None: such as a picture, which is not compared."""
    return KIND_OF.get(type(answer))


def criterion(expect: Expectation, answer: Answer, spread: float) -> Criterion:
    """The criterion for answers like this one: of its kind, and one of the same names.

    Args:
      spread: standard deviation of the run's numbers on unchanged examples.

    Raises NotForThisRun for an expectation that these answers cannot meet.
    """
    kind, values = kind_of(answer), expect.values
    if kind is None:
        raise NotForThisRun(f"its answers ({type(answer).__name__}) are not compared.")
    if expect.how == "same":
        if wrong := [name for name in values if name not in SAME[kind]]:
            raise NotForThisRun(f"same.{wrong[0]} is not for answers of the kind {kind}: it takes {_options(kind)}.")
        return _same_criterion(kind, {**SAME[kind], **values}, spread)
    if expect.how in DIRECTIONS:
        return _directed(expect, answer, kind)
    if expect.how == "answer":
        same = _same_criterion(kind, SAME[kind], spread)
        return Criterion("another answer", lambda before, after, own: not same.holds(before, after, own))
    return _wanted(expect, answer, kind, spread)


def _options(kind: AnswerKind) -> str:
    return ", ".join(SAME[kind]) or "no option"


def _same_criterion(kind: AnswerKind, options: Mapping[str, object], spread: float) -> Criterion:
    number = {name: float(cast(float, value)) for name, value in options.items() if _is_number(value)}

    def of(said: str, same: Callable[[Answer, Answer], bool]) -> Criterion:
        def holds(before: Answer | None, after: Answer, own: Output) -> bool:
            assert before is not None  # of tests that change examples
            return same(before, after)

        return Criterion(said, holds)

    if kind == "labels":
        return of(
            f"share of the labels ≥ {number['share']:g}", lambda a, b: _shared(a, b) >= number["share"] - ROUNDING
        )
    if kind == "number":
        within = number.get("within", QUARTER * spread)
        return of(f"|change| ≤ {within:.3g}", lambda a, b: abs(_number(a) - _number(b)) <= within + ROUNDING)
    if kind == "tags":
        return of(
            f"share of the tags ≥ {number['share']:g}", lambda a, b: _tag_share(a, b) >= number["share"] - ROUNDING
        )
    if kind in ("span", "text"):
        said = "same words" if number["f1"] == 1 else f"word F1 ≥ {number['f1']:g}"
        return of(said, lambda a, b: f1(_text(b), [_text(a)]) >= number["f1"] - ROUNDING)
    if kind == "items":
        k, top = int(number["k"]), bool(options["top"])
        said = f"overlap@{k} ≥ {number['overlap']:g}" + (", same top item" if top else "")
        return of(
            said, lambda a, b: _overlap(a, b, k) >= number["overlap"] - ROUNDING and (not top or _top(a) == _top(b))
        )
    return of("same label" if kind == "label" else "same choice", lambda a, b: chosen(a) == chosen(b))


def _directed(expect: Expectation, answer: Answer, kind: AnswerKind) -> Criterion:
    values = expect.values
    by, change = float(cast(float, values["by"])), str(values["change"])
    needed = {"probability": ("label", "labels", "choice"), "number": ("number",), "rank": ("items",)}[expect.how]
    if kind not in needed:
        raise NotForThisRun(f"expect.{expect.how} is for answers of the kind {' or '.join(needed)}, not {kind}.")
    label = str(values.get("label", ""))
    if expect.how == "probability" and label != PREDICTED:
        _check_known([label], answer)

    def value(of: Answer, before: Answer) -> float:
        if expect.how == "number":
            return _number(of)
        if expect.how == "rank":
            item = _top(before) if values["item"] == TOP else str(values["item"])
            return -float(_place(of, item))
        return probabilities(of).get(_predicted(before) if label == PREDICTED else label, 0.0)

    def holds(before: Answer | None, after: Answer, own: Output) -> bool:
        assert before is not None
        return _moved(value(after, before) - value(before, before), change, by)

    what = {"probability": f"p({label})", "number": "the number", "rank": f"the rank of {values.get('item')}"}[
        expect.how
    ]
    how = change.replace("_", " ") + (f" by {'more than ' if change.startswith('not') else ''}{by:g}" if by else "")
    return Criterion(f"{what} {how}", holds)


def _moved(delta: float, change: str, by: float) -> bool:
    """Whether a difference is a change in this direction, by at least `by`; of "not", by at most `by`."""
    delta = delta if change.endswith("up") else -delta
    if change.startswith("not"):
        return delta <= by + ROUNDING
    return delta >= by - ROUNDING if by else delta > 0


def _wanted(expect: Expectation, answer: Answer, kind: AnswerKind, spread: float) -> Criterion:
    if expect.how == "own":
        return Criterion("the expected answer", lambda before, after, own: is_answer(after, own, spread))
    value = expect.values["value"]
    listed = cast(list[object], value) if expect.how in ("one_of", "not") else [value]
    if kind == "number" and (wrong := [each for each in listed if not _is_real(each)]):
        raise NotForThisRun(f"its answers are numbers, and the expected {wrong[0]!r} is no number.")
    if expect.how == "contains":
        if kind not in ("span", "text"):
            raise NotForThisRun(f"expect.contains is for answers that are texts, not of the kind {kind}.")
        return Criterion(f"contains {value}", lambda before, after, own: str(value).lower() in _text(after).lower())
    if expect.how == "output":
        _check_known(value if kind == "labels" and isinstance(value, list) else [value], answer)
        return Criterion(f"answer {value}", lambda before, after, own: is_answer(after, value, spread))
    _check_known(listed, answer)
    said = " or ".join(map(str, listed))
    if expect.how == "one_of":
        return Criterion(said, lambda before, after, own: any(is_answer(after, each, spread) for each in listed))
    return Criterion(
        f"not {said}", lambda before, after, own: not any(is_answer(after, each, spread) for each in listed)
    )


def check_outputs(outputs: Sequence[object], answer: Answer) -> None:
    """Raises NotForThisRun for expected labels or candidates that there are not."""
    for output in outputs:
        _check_known(output if isinstance(output, tuple) else [output], answer)


def names_of(answer: Answer) -> tuple[str, ...]:
    """The labels or candidates that an answer is one of; () of other answers."""
    if isinstance(answer, ChoiceAnswer):
        return tuple(answer.candidates)
    return tuple(answer.probabilities) if isinstance(answer, LabelAnswer | LabelsAnswer) else ()


def _check_known(names: Sequence[object], answer: Answer) -> None:
    known = names_of(answer)
    if known and (unknown := [name for name in names if name not in known]):
        what = "an example has no candidate" if isinstance(answer, ChoiceAnswer) else "the run has no label"
        raise NotForThisRun(f"{what} {unknown[0]!r}: it has {', '.join(known[:20])}{', ...' * (len(known) > 20)}.")


def is_answer(answer: Answer, wanted: object, spread: float) -> bool:
    """Whether an answer is the expected one, by the same measures as `SAME`."""
    if isinstance(answer, NumberAnswer):
        return _is_real(wanted) and abs(answer.number - float(cast(float, wanted))) <= QUARTER * spread + ROUNDING
    if isinstance(answer, LabelsAnswer):
        return set(answer.labels) == ({*wanted} if isinstance(wanted, list | tuple) else {wanted})
    if isinstance(answer, TagsAnswer):
        return isinstance(wanted, list | tuple) and [word.tag for word in answer.words] == list(wanted)
    if isinstance(answer, ItemsAnswer):
        return any(item.id == wanted for item in answer.items)
    if isinstance(answer, SpanAnswer | TextAnswer):
        least = cast(float, SAME["span" if isinstance(answer, SpanAnswer) else "text"]["f1"])
        return f1(answer.text, [str(wanted)]) >= least - ROUNDING
    return chosen(answer) == wanted


def _is_real(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


# ---- values of answers ---------------------------------------------------------------------------------


def chosen(answer: Answer) -> str:
    return answer.label if isinstance(answer, LabelAnswer) else cast(ChoiceAnswer, answer).choice


def _predicted(answer: Answer) -> str:
    if isinstance(answer, LabelsAnswer):
        return max(answer.probabilities, key=answer.probabilities.__getitem__)
    return chosen(answer)


def probabilities(answer: Answer) -> Mapping[str, float]:
    if isinstance(answer, ChoiceAnswer):
        scores = np.array([*answer.candidates.values()])
        powers = np.exp(scores - scores.max())
        return dict(zip(answer.candidates, (powers / powers.sum()).tolist(), strict=True))
    return cast(LabelAnswer | LabelsAnswer, answer).probabilities


def _number(answer: Answer) -> float:
    return cast(NumberAnswer, answer).number


def _text(answer: Answer) -> str:
    return cast(SpanAnswer | TextAnswer, answer).text


def _shared(a: Answer, b: Answer) -> float:
    one, other = set(cast(LabelsAnswer, a).labels), set(cast(LabelsAnswer, b).labels)
    return len(one & other) / len(one | other) if one | other else 1.0


def _tag_share(a: Answer, b: Answer) -> float:
    """Equal tags of words; of texts with other numbers of words, of those that both have in the same order."""
    one, other = cast(TagsAnswer, a).words, cast(TagsAnswer, b).words
    if len(one) == len(other):
        pairs = list(zip(one, other, strict=True))
    else:
        matcher = difflib.SequenceMatcher(None, [w.word for w in one], [w.word for w in other], autojunk=False)
        blocks = matcher.get_matching_blocks()
        pairs = [(one[m.a + n], other[m.b + n]) for m in blocks for n in range(m.size)]
    return float(np.mean([x.tag == y.tag for x, y in pairs])) if pairs else 1.0


def _top(answer: Answer) -> str:
    items = cast(ItemsAnswer, answer).items
    return items[0].id if items else ""


def _overlap(a: Answer, b: Answer, k: int) -> float:
    one, other = ({item.id for item in cast(ItemsAnswer, each).items[:k]} for each in (a, b))
    return len(one & other) / max(len(one), len(other)) if one or other else 1.0


def _place(answer: Answer, item: str) -> int:
    items = [each.id for each in cast(ItemsAnswer, answer).items]
    return items.index(item) if item in items else len(items)
