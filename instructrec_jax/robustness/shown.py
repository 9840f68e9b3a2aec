"""Results of tests as text: a table, three failures of each, and what is over its limit."""

from instructrec_jax.data.example import Example
from instructrec_jax.data.prompts import render
from instructrec_jax.evaluation.behavior import Attacked, Behavior, BehaviorResult, FailedCase
from instructrec_jax.evaluation.layout import fitted, text_width
from instructrec_jax.evaluation.tables import clean, wrapped
from instructrec_jax.tasks.answers import (
    Answer,
    ChoiceAnswer,
    ItemsAnswer,
    LabelAnswer,
    LabelsAnswer,
    NumberAnswer,
    TagsAnswer,
)

LONGEST = 240  # characters of a shown text
LEAD = 60  # of them before the first change
ITEMS = 3


def shown_answer(answer: Answer) -> str:
    """An answer in a line."""
    if isinstance(answer, LabelAnswer):
        return f"{answer.label} ({answer.probabilities[answer.label]:.2f})"
    if isinstance(answer, LabelsAnswer):
        return ", ".join(answer.labels) or "no label"
    if isinstance(answer, ChoiceAnswer):
        return f"{answer.choice} ({answer.probability:.2f})"
    if isinstance(answer, NumberAnswer):
        return f"{answer.number:.4g}"
    if isinstance(answer, TagsAnswer):
        return " ".join(f"{word.word}/{word.tag}" for word in answer.words)[:LONGEST]
    if isinstance(answer, ItemsAnswer):
        return ", ".join(item.title for item in answer.items[:ITEMS]) or "no item"
    return str(answer.to_record()["prediction"])[:LONGEST] or "no answer"


def shown_pair(before: Example | None, after: Example) -> tuple[str, str]:
    """Two examples as text, each cut to the place where they begin to differ; ("", text) without the first."""
    if before is None:
        return "", _cut(_text(after), 0)
    lists = [(name, getattr(before, name), getattr(after, name)) for name in ("history", "candidates")]
    moved = [(name, one, other) for name, one, other in lists if one != other]
    texts = [_text(before), _text(after)]
    for name, one, other in moved:
        texts = [f"{text}\n{name}: {', '.join(each)}" for text, each in zip(texts, (one, other), strict=True)]
    same = next((n for n, (a, b) in enumerate(zip(*texts, strict=False)) if a != b), min(map(len, texts)))
    return _cut(texts[0], same), _cut(texts[1], same)


def _text(example: Example) -> str:
    return render(example) or " ".join(example.words)


def _cut(text: str, place: int) -> str:
    start = 0 if len(text) <= LONGEST or place < LEAD else place - LEAD
    front, back = "… " * (start > 0), " …" * (len(text) > start + LONGEST)
    return front + text[start : start + LONGEST] + back


def format_behavior(found: Behavior, *, width: int | None = None, more: str = "the report") -> str:
    """The table of failure rates, the failures, and the adversarial search, as plain text.

    Args:
      width: characters of a line; None: those of the terminal.
      more: where all of it is.
    """
    width = width or text_width()
    drawn = f"{found['examples']:,} examples of data.{found['split']}, seed {found['seed']}"
    lines = [wrapped(f"Robustness: {found['suite']} ({found['language']}), {drawn}", "", "  ", width)]
    if found["tests"]:
        head = ["test", "kind", "failure rate", "95% interval", "cases", "unchanged", "expected"]
        lines += ["", *fitted([head, *map(_row, found["tests"])], width, [2, 2, 1])]
        lines.append(wrapped("Unchanged examples are no cases. ! over its limit; intervals: Wilson.", "", "  ", width))
    unread = sum(test["unread"] for test in found["tests"])
    if unread:
        said = f"{unread:,} changed examples could not be read (too long, or without text)."
        lines.append(wrapped(said, "", "  ", width))
    lines += [wrapped(f"left out: {each['name']}: {each['why']}", "", "  ", width) for each in found["left_out"]]
    for test in found["tests"]:
        if test["failed"]:
            lines += [
                "",
                wrapped(f"{test['name']}: {len(test['failed'])} of {test['failures']:,} failures", "", "  ", width),
            ]
            lines += [line for each in test["failed"] for line in _failure(each, width)]
    if "adversarial" in found:
        lines += ["", *_adversarial(found["adversarial"], width)]
    return "\n".join(line.rstrip() for line in lines)


def _row(test: BehaviorResult) -> list[str]:
    if test["rate"] is None:
        rate, bounds = "–", "–"
    else:
        rate, bounds = f"{test['rate']:.1%}", f"{test['low']:.1%} to {test['high']:.1%}"
    mark = "!" if test["over"] else " "
    return [
        clean(test["name"]),
        test["kind"],
        f"{rate}{mark}",
        bounds,
        f"{test['cases']:,}",
        f"{test['unchanged']:,}",
        clean(test["expected"]),
    ]


def _failure(case: FailedCase, width: int) -> list[str]:
    before = f"{case['before']} → {case['answer_before']}" if case["before"] else case["answer_before"]
    found = [wrapped(before, "  before: ", " " * 10, width)] if before else []
    return [*found, wrapped(f"{case['after']} → {case['answer_after']}", "  after:  ", " " * 10, width)]


def _adversarial(found: Attacked, width: int) -> list[str]:
    said = (
        f"Adversarial search (greedy swaps of words, from {found['words']}): accuracy {found['accuracy_before']:.1%} "
        f"before, {found['accuracy_after']:.1%} after, on {found['examples']:,} examples; {found['flipped']:,} of "
        f"{found['right']:,} right answers flipped. Budget: {found['budget']:,} texts an example "
        f"(mean {found['mean_calls']:.1f}), at most {found['changed']:.0%} of the words"
        + (f", cosine ≥ {found['similarity']:g} ({found['encoder']})." if found["similarity"] else ".")
    )
    return [wrapped(said, "", "  ", width), *(line for each in found["failed"] for line in _failure(each, width))]


def over_limit(found: Behavior) -> list[str]:
    """A line for each test whose failure rate is above its limit."""
    return [
        f"{test['name']}: {test['rate']:.1%} failures of {test['cases']:,} cases, limit {test['limit']:.1%}"
        for test in found["tests"]
        if test["over"]
    ]
