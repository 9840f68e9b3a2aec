"""CheckList's text forms: exported suites run, released texts are predicted, pickles stay closed."""

from pathlib import Path
from typing import Any

import pytest

from instructrec_jax.data.example import BadExample, Example
from instructrec_jax.files import write_jsonl
from instructrec_jax.robustness.checklist import PREDICTIONS, checklist_behavior
from instructrec_jax.tasks.answers import Answer, LabelAnswer, NumberAnswer, SpanAnswer


class Sentiment:
    """In place of an examined run: it counts words, and remembers what it was asked."""

    language, split = "en", "test"

    def __init__(self, kind: str = "sentiment") -> None:
        self.kind, self.originals = kind, [Example(instruction="x", output="positive")]
        self.asked: list[Example] = []
        if kind != "sentiment":
            self.originals = [Example(instruction="x", input="y", output="1")]

    def ask(self, examples: list[Example]) -> tuple[list[Answer | None], dict[int, str]]:
        self.asked += examples
        unread = {number: "too long" for number, e in enumerate(examples) if "endless" in e.instruction}
        return [None if n in unread else self.answer(e) for n, e in enumerate(examples)], unread

    def answer(self, example: Example) -> Answer:
        text = example.instruction
        if self.kind == "span":
            return SpanAnswer("the\nanswer", 0, 1, 1.0)
        if self.kind == "number":
            return NumberAnswer(1.0)
        if self.kind == "qqp":
            return LabelAnswer("1", {"0": 0.25, "1": 0.75})
        label = "positive" if "good" in text else "negative" if "bad" in text else "neutral"
        rest = 0.2 if label != "neutral" else 0.15
        return LabelAnswer(
            label, {each: 1 - 2 * rest if each == label else rest for each in ("negative", "neutral", "positive")}
        )


def row(test: str, kind: str, case: int, text: str, **more: Any) -> dict[str, object]:
    return {"test_name": test, "type": kind, "test_case": case, "text": text, **more}


ROWS = [
    row("vocabulary", "MFT", 0, "a good film", label=2),
    row("vocabulary", "MFT", 1, "a bad film", label="positive"),
    row("vocabulary", "MFT", 2, "a film", label=[0, 1]),
    row("typos", "INV", 0, "a good film", example_idx=0),
    row("typos", "INV", 0, "a good flim"),
    row("typos", "INV", 0, "a goood film"),
    row("typos", "INV", 0, "a god film"),
    row("typos", "INV", 1, "a bad film"),
    row("typos", "INV", 1, "a bad flim"),
    row("typos", "INV", 2, "a bad film"),
    row("typos", "INV", 2, "an endless film"),
    row("praise", "DIR", 0, "bad", expect={"probability": {"label": "positive", "change": "up", "by": 0.1}}),
    row("praise", "DIR", 0, "bad good", expect={"probability": {"label": "positive", "change": "up", "by": 0.1}}),
    row("code", "DIR", 0, "bad"),
    row("code", "DIR", 0, "bad, too"),
    row("no label", "MFT", 0, "bad"),
]


def ran(examiner: Sentiment, folder: Path, out: Path) -> Any:
    return checklist_behavior(examiner, folder, out, 0.4)  # type: ignore[arg-type]


def test_an_exported_suite_is_counted_by_case(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "tests.jsonl", ROWS)
    (tmp_path / "suite.pkl").write_bytes(b"cos\nsystem\n(S'touch hacked'\ntR.")
    found = ran(Sentiment(), tmp_path, tmp_path)
    vocabulary, typos, praise = found["tests"]
    assert (vocabulary["kind"], vocabulary["cases"], vocabulary["failures"], vocabulary["over"]) == (
        "minimum",
        3,
        1,
        False,
    )
    assert (typos["cases"], typos["failures"], typos["unread"], typos["over"]) == (2, 1, 1, True)
    assert len(typos["failed"]) == 1 and typos["failed"][0]["before"] == "a good film"  # a case of two failures
    assert (praise["kind"], praise["failures"]) == ("directional", 0)
    assert {each["name"] for each in found["left_out"]} == {"code", "no label"}
    assert "keeps it as code" in found["left_out"][0]["why"]


def test_csv_and_pairs_are_read(tmp_path: Path) -> None:
    lines = "test_name,type,test_case,question1,question2\nsame,INV,0,a,b\nsame,INV,0,c,d\n"
    (tmp_path / "tests.csv").write_text(lines, encoding="utf-8")
    examiner = Sentiment("qqp")
    assert ran(examiner, tmp_path, tmp_path)["tests"][0]["failures"] == 0
    assert [(e.instruction, e.input) for e in examiner.asked] == [("a", "b"), ("c", "d")]


def test_cells_of_csv_are_numbers_and_objects(tmp_path: Path) -> None:
    expect = '{""probability"": {""label"": ""positive"", ""change"": ""up""}}'
    rows = ["words,MFT,0,good,2,", "words,MFT,1,bad,0,", "words,MFT,2,bad,negative,", "same,INV,0,good,,"]
    rows += [f'praise,DIR,0,{text},,"{expect}"' for text in ("bad", "good")]
    (tmp_path / "tests.csv").write_text("\n".join(["test_name,type,test_case,text,label,expect", *rows]))
    found = ran(Sentiment(), tmp_path, tmp_path)
    assert [(test["name"], test["failures"]) for test in found["tests"]] == [("words", 0), ("same", 0), ("praise", 0)]
    assert found["left_out"] == []

    unnamed = [row("a", "MFT", 0, "bad", label=7), row("b", "DIR", 0, "bad")]
    write_jsonl(tmp_path / "tests.jsonl", unnamed)
    with pytest.raises(ValueError, match="no test of .* has a case .* a: its label 7 is a number.* b: it is direc"):
        ran(Sentiment(), tmp_path, tmp_path)


def test_released_texts_are_predicted_in_checklists_form(tmp_path: Path) -> None:
    (tmp_path / "tests_n500").write_text("a good film\r\na bad film\n我的电影\n", encoding="utf-8")
    path = ran(Sentiment(), tmp_path, tmp_path)
    assert path == tmp_path / PREDICTIONS
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines == ["2 0.200000 0.200000 0.600000", "0 0.600000 0.200000 0.200000", "1 0.150000 0.700000 0.150000"]
    (tmp_path / "tests_n500").write_text("id\tquestion1\tquestion2\n0\ta\tb\n1\tc\td\n", encoding="utf-8")
    assert ran(Sentiment("qqp"), tmp_path, tmp_path).read_text() == "0.750000\n0.750000\n"
    (tmp_path / "tests_n500").unlink()
    write_jsonl(tmp_path / "squad.jsonl", [{"passage": "a b", "question": "c?"}])
    examiner = Sentiment("span")
    assert ran(examiner, tmp_path, tmp_path).read_text() == "the answer\n"
    assert (examiner.asked[0].instruction, examiner.asked[0].input) == ("c?", "a b")


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no folder"):
        ran(Sentiment(), tmp_path / "nowhere", tmp_path)
    with pytest.raises(ValueError, match="holds none of tests.jsonl, tests.csv, tests_n500, squad.jsonl. See"):
        ran(Sentiment(), tmp_path, tmp_path)
    (tmp_path / "suite.pkl").write_bytes(b"cos\nsystem\n(S'touch hacked'\ntR.")
    with pytest.raises(ValueError, match="suite.pkl is a pickle, which runs code when it is opened"):
        ran(Sentiment(), tmp_path, tmp_path)
    (tmp_path / "tests_n500").write_text("an endless film\n", encoding="utf-8")
    with pytest.raises(ValueError, match="text 1 cannot be read: too long"):
        ran(Sentiment(), tmp_path, tmp_path)
    (tmp_path / "tests_n500").write_text("a film\n", encoding="utf-8")
    with pytest.raises(ValueError, match="with the labels negative, neutral, positive"):
        ran(Sentiment("qqp"), tmp_path, tmp_path)
    for wrong, said in (
        ({"test_name": "a", "type": "INF", "test_case": 0, "text": "b"}, "a row has test_name, type"),
        ({"type": "INV", "test_case": 0, "text": "b"}, "a row has test_name, type"),
        ({"test_name": "a", "type": "INV", "test_case": 0, "txt": "b"}, "a row has text, or question1"),
        (row("a", "DIR", 0, "b", expect="up"), "expected an object"),
    ):
        write_jsonl(tmp_path / "tests.jsonl", [wrong])
        with pytest.raises(BadExample, match=said):
            ran(Sentiment(), tmp_path, tmp_path)
    (tmp_path / "tests.jsonl").write_text("", encoding="utf-8")
    with pytest.raises(ValueError, match="tests.jsonl: it is empty"):
        ran(Sentiment(), tmp_path, tmp_path)
    wrong = [row("a", "DIR", 0, "b", expect={"up": 1}), row("a", "DIR", 0, "c", expect={"up": 1})]
    write_jsonl(tmp_path / "tests.jsonl", wrong)
    with pytest.raises(BadExample, match="expect should have one of"):
        ran(Sentiment(), tmp_path, tmp_path)
