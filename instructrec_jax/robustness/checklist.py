"""CheckList's suites (Ribeiro et al., 2020) in their text forms. Their pickles run code, so they are never opened.

Three forms, told apart by the files of a folder:

    tests.jsonl or tests.csv   rows of an exported suite, with names, types and cases (docs/robustness.md): run here
    tests_n500                 released texts of the sentiment or QQP suite, one per line, without any of these
    squad.jsonl                released passages and questions of the SQuAD suite

For the released texts, the run's answers are written in the form that CheckList's `suite.run_from_file` reads.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from instructrec_jax.answering.records import read_records
from instructrec_jax.data.example import BadExample, Example
from instructrec_jax.evaluation.behavior import Behavior, BehaviorResult, FailedCase, LeftOut
from instructrec_jax.files import write_text
from instructrec_jax.parsing import json_value, text_lines
from instructrec_jax.robustness.expectations import (
    Criterion,
    Expectation,
    NotForThisRun,
    check_outputs,
    criterion,
    read_expectation,
)
from instructrec_jax.robustness.running import SHOWN, Examiner, counted, failed_case, placed
from instructrec_jax.robustness.suite import Given
from instructrec_jax.tasks.answers import Answer, LabelAnswer, NumberAnswer, SpanAnswer, TextAnswer

TYPES = {"MFT": "minimum", "INV": "invariance", "DIR": "directional"}
SENTIMENT = ("negative", "neutral", "positive")  # CheckList's numbers 0, 1, 2
DUPLICATE = ("duplicate", "1")  # names of the label whose probability the QQP suite asks for
EXPORTED, RELEASED, SQUAD = ("tests.jsonl", "tests.csv"), "tests_n500", "squad.jsonl"
PREDICTIONS = "checklist_predictions.txt"


@dataclass(frozen=True)
class Row:
    """A text of an exported suite.

    Attributes:
      case: the texts of one case belong together; the first of an INV or DIR case is the original.
      labels: what an MFT expects, any of them.
      expect: of a DIR, as in a suite; None: the export has none.
    """

    test: str
    kind: str
    case: str
    example: Example
    labels: tuple[object, ...]
    expect: Mapping[str, object] | None


def checklist_behavior(examiner: Examiner, folder: Path, out: Path, limit: float | None) -> Behavior | Path:
    """The results of an exported suite; of released texts, the file of predictions that was written.

    Raises ValueError for a folder with neither, and for rows that cannot be read.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder: name the one that holds CheckList's texts.")
    for name in EXPORTED:
        if (folder / name).is_file():
            return _exported(examiner, folder / name, limit)
    if (folder / RELEASED).is_file():
        return _predicted(examiner, folder / RELEASED, out)
    if (folder / SQUAD).is_file():
        return _predicted_spans(examiner, folder / SQUAD, out)
    pickled = sorted(file.name for file in folder.glob("*.pkl"))
    also = (
        f" {pickled[0]} is a pickle, which runs code when it is opened, so it never is: export it first."
        if pickled
        else ""
    )
    raise ValueError(f"{folder} holds none of {', '.join((*EXPORTED, RELEASED, SQUAD))}.{also} See docs/robustness.md.")


# ---- exported suites -----------------------------------------------------------------------------------


def _exported(examiner: Examiner, path: Path, limit: float | None) -> Behavior:
    base = examiner.originals[0]
    rows = []
    for number, record in read_records(str(path)):
        if isinstance(record, Exception):
            raise record
        rows.append(_row(record, base, f"{path}:{number}"))
    answers, why = examiner.ask([row.example for row in rows])
    tests: dict[str, dict[str, list[tuple[Row, Answer | None]]]] = {}
    for row, answer in zip(rows, answers, strict=True):
        tests.setdefault(row.test, {}).setdefault(row.case, []).append((row, answer))
    results: list[BehaviorResult] = []
    left_out: list[LeftOut] = []
    for name, cases in tests.items():
        try:
            results.append(_judged(name, list(cases.values()), limit))
        except NotForThisRun as error:
            left_out.append({"name": name, "why": str(error)})
    if not any(result["cases"] for result in results):
        said = "".join(f" {each['name']}: {each['why']}" for each in left_out[:3])
        raise ValueError(f"no test of {path} has a case that the run can read.{said}")
    return {
        "suite": f"checklist:{path}",
        "language": examiner.language,
        "split": examiner.split,
        "seed": 0,
        "examples": len(rows),
        "tests": results,
        "left_out": left_out,
    }


def _row(record: Mapping[str, object], base: Example, where: str) -> Row:
    name, kind, case = (record.get(key) for key in ("test_name", "type", "test_case"))
    if not isinstance(name, str) or not name or kind not in TYPES or case is None:
        needed = f"test_name, type ({', '.join(TYPES)}) and test_case"
        raise BadExample(
            "test_name", "missing column", f"a row has {needed}, but this one is {dict(record)!r:.120}", where
        )
    label, expect = (_of_cell(record.get(key)) for key in ("label", "expect"))
    labels = tuple(label) if isinstance(label, list) else () if label is None else (label,)
    if expect is not None and not isinstance(expect, Mapping):
        raise BadExample("expect", "wrong type", f"expected an object, found {expect!r:.60}.", where)
    return Row(name, str(kind), str(case), _example(record, base, where), labels, expect)


def _of_cell(value: object) -> object:
    """A value of a row; of a CSV file the number, list or object that the text of its cell is, and None for none."""
    if not isinstance(value, str):
        return value
    if not re.match(r"[-\d\[{]", value):
        return value or None
    try:
        return json_value(value)
    except ValueError:
        return value


def _example(record: Mapping[str, object], base: Example, where: str) -> Example:
    """The text, pair of questions, or question and passage of a row, where the run's texts stand."""
    texts = {key: value for key, value in record.items() if isinstance(value, str) and value.strip()}
    passage = texts.get("passage", texts.get("context"))
    if passage is not None and "question" in texts:
        given = Given({"instruction": texts["question"], "input": passage})
    elif "question1" in texts and "question2" in texts:
        given = Given({"instruction": texts["question1"], "input": texts["question2"]})
    elif "text" in texts:
        given = Given({}, texts["text"])
    else:
        detail = "a row has text, or question1 and question2, or question and passage"
        raise BadExample("text", "missing column", f"{detail}, but this one has {', '.join(map(str, record))}.", where)
    return replace(placed(base, given).example, id=where, where=where)


def _judged(name: str, cases: Sequence[Sequence[tuple[Row, Answer | None]]], limit: float | None) -> BehaviorResult:
    """As CheckList counts: a case fails if one of its texts does. Cases with an unread text are no cases."""
    read = [[(row, answer) for row, answer in case if answer is not None] for case in cases]
    whole = [own for own, case in zip(read, cases, strict=True) if own and len(own) == len(case)]
    first = cases[0][0][0]
    failed: list[FailedCase] = []
    failures, said = 0, ""
    for case in whole:
        if first.kind == "MFT":
            wrong, said = _minimum(case)
        else:
            wrong, said = _compared(case)
        failures += bool(wrong)
        failed += wrong[: int(len(failed) < SHOWN)]
    return counted(
        name,
        TYPES[first.kind],
        change="",
        expected=said,
        cases=len(whole),
        unchanged=0,
        unread=len(cases) - len(whole),
        failures=failures,
        limit=limit,
        shown=failed,
    )


def _minimum(case: Sequence[tuple[Row, Answer]]) -> tuple[list[FailedCase], str]:
    wrong = []
    for row, answer in case:
        if not row.labels:
            raise NotForThisRun("the export has no label for it.")
        labels = [_named(label, answer) for label in row.labels]
        check_outputs(labels, answer)
        wanted = criterion(Expectation("one_of", {"value": labels}), answer, 0.0)
        if not wanted.holds(None, answer, None):
            failure = failed_case(None, None, row.example, answer, " or ".join(map(str, labels)))
            wrong.append(failure)
    return wrong, "the label"


def _named(label: object, answer: Answer) -> object:
    """A label's name, or a number. CheckList's suites number labels: 0, 1, 2 of the sentiment suite are `SENTIMENT`."""
    if isinstance(answer, NumberAnswer):
        return label
    if isinstance(answer, LabelAnswer) and isinstance(label, int) and str(label) not in answer.probabilities:
        if set(answer.probabilities) == {*SENTIMENT} and 0 <= label < len(SENTIMENT):
            return SENTIMENT[label]
        raise NotForThisRun(
            f"its label {label} is a number: write the run's {', '.join(answer.probabilities)} instead."
        )
    return str(label)


def _compared(case: Sequence[tuple[Row, Answer]]) -> tuple[list[FailedCase], str]:
    (original, before), *others = case
    wanted = _wanted(original, before)
    wrong = [
        failed_case(original.example, before, row.example, after)
        for row, after in others
        if not wanted.holds(before, after, None)
    ]
    return wrong, wanted.said


def _wanted(row: Row, answer: Answer) -> Criterion:
    if row.kind == "INV":
        return criterion(Expectation("same"), answer, 0.0)
    if row.expect is None:
        raise NotForThisRun("it is directional, and the export has no `expect`: CheckList keeps it as code.")
    try:
        return criterion(read_expectation("directional", row.expect, False), answer, 0.0)
    except NotForThisRun:
        raise
    except ValueError as error:
        raise BadExample("expect", "not read", str(error), row.example.where) from None


# ---- released texts ------------------------------------------------------------------------------------


def _predicted(examiner: Examiner, path: Path, out: Path) -> Path:
    """Sentiment: the number of the label and the probabilities of 0, 1 and 2; QQP: that of a duplicate."""
    lines = [line.rstrip("\r\n") for line in text_lines(path)]
    head = lines[0].split("\t") if lines else []
    if {"question1", "question2"} <= set(head):
        rows = [dict(zip(head, line.split("\t"), strict=False)) for line in lines[1:]]
        return _written(examiner, path, rows, out, _of_pair)
    return _written(examiner, path, [{"text": line} for line in lines], out, _of_sentiment)


def _predicted_spans(examiner: Examiner, path: Path, out: Path) -> Path:
    rows = []
    for _, record in read_records(str(path)):
        if isinstance(record, Exception):
            raise record
        rows.append(record)
    return _written(examiner, path, rows, out, _of_span)


def _written(
    examiner: Examiner, path: Path, rows: Sequence[Mapping[str, object]], out: Path, line: Callable[[Answer], str]
) -> Path:
    base = examiner.originals[0]
    answers, why = examiner.ask([_example(row, base, f"{path}:{n}") for n, row in enumerate(rows, 1)])
    if why:  # CheckList reads predictions by their line
        first = min(why)
        raise ValueError(f"{path}: text {first + 1} cannot be read: {why[first]} Set data.truncate to right.")
    return write_text(out / PREDICTIONS, "".join(f"{line(answer)}\n" for answer in answers if answer is not None))


def _of_sentiment(answer: Answer) -> str:
    if not isinstance(answer, LabelAnswer) or set(answer.probabilities) != {*SENTIMENT}:
        raise ValueError(f"the sentiment suite is for a classification with the labels {', '.join(SENTIMENT)}.")
    shares = [answer.probabilities[name] for name in SENTIMENT]
    return " ".join([str(SENTIMENT.index(answer.label)), *(f"{share:.6f}" for share in shares)])


def _of_pair(answer: Answer) -> str:
    known = answer.probabilities if isinstance(answer, LabelAnswer) else {}
    if not (name := next((name for name in DUPLICATE if name in known), None)):
        raise ValueError(f"the QQP suite is for a classification with one of the labels {' or '.join(DUPLICATE)}.")
    return f"{known[name]:.6f}"


def _of_span(answer: Answer) -> str:
    if not isinstance(answer, SpanAnswer | TextAnswer):
        raise ValueError("the SQuAD suite is for a run that answers with texts.")
    return " ".join(answer.text.split())
