"""`scripts/compare_pretraining.py`: its arms, its questions and its table."""

import importlib.util
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
from byte_tokenizer import byte_tokenizer
from synthesis_texts import RIVER, TOWN

from instructrec_jax.files import read_jsonl, write_jsonl

PATH = Path(__file__).parents[1] / "scripts" / "compare_pretraining.py"
spec: Any = importlib.util.spec_from_file_location("compare_pretraining", PATH)
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)


def test_arms_are_of_the_same_texts_without_those_of_the_tests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"text": text} for text in (TOWN, RIVER, "The river in the east of the country is long. " * 3)]
    write_jsonl(tmp_path / "texts.jsonl", rows)
    write_jsonl(tmp_path / "held.jsonl", rows[2:])
    write_jsonl(tmp_path / "qa.jsonl", [{"context": "A town.", "question": "What is it?", "answer": "A town"}])
    asked: list[tuple[str, int]] = []

    def trained(arm: str, seed: int, options: Any) -> dict[str, float]:
        asked.append((arm, seed))
        return {script.LOSS: seed + 0.5 * (arm == "rules"), "tokens": 1000.0 + seed}

    monkeypatch.setattr(script, "trained", trained)
    named = [f"--{name}={tmp_path / file}" for name, file in (("held_out", "held.jsonl"), ("questions", "qa.jsonl"))]
    script.main([str(tmp_path / "texts.jsonl"), *named, f"--out={tmp_path / 'out'}", "--network=net", "--seeds=2"])
    raw, rules = (read_jsonl(tmp_path / "out" / f"{arm}.jsonl") for arm in ("raw", "rules"))
    contents = [[row["messages"][0]["content"] for row in arm] for arm in (raw, rules)]  # type: ignore[index]
    assert contents[0] == [TOWN, RIVER]
    assert all(more.startswith(f"{text}\n\n") for text, more in zip(*contents, strict=True))
    assert asked == [("raw", 0), ("rules", 0), ("raw", 1), ("rules", 1)]
    said = capsys.readouterr().out
    assert "| raw | 0.500 | 1,000 |" in said and "| rules − raw | +0.500 (+0.500 to +0.500) | |" in said


def test_the_likeliest_of_candidates_is_a_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_jsonl(tmp_path / "held.jsonl", [{"source": ["One.", "Two."]}, {"source": ["Three."]}])
    rows = [
        {"instruction": "Is it?", "output": "Yes", "candidates": ["No", "Yes"]},
        {"instruction": "?", "output": "a"},
    ]
    write_jsonl(tmp_path / "qa.jsonl", rows)
    asked: list[tuple[str, int]] = []

    class Opened:
        def __init__(self, settings: list[str]) -> None:
            self.settings = settings

        def evaluate(self, examples: list[Any]) -> Namespace:
            asked.append((" ".join(self.settings), len(examples)))
            return Namespace(metrics={"loss": 2.0, "token accuracy": 0.5, "accuracy": 1.0})

    monkeypatch.setattr(script.Run, "open", lambda _, settings=(): Opened(list(settings)))
    options = Namespace(
        held_out=tmp_path / "held.jsonl", questions=tmp_path / "qa.jsonl", text_field="source", most=None
    )
    assert script.measured(tmp_path, options) == {script.RAW: 2, script.LOSS: 2, script.TOKENS: 0.5, script.CHOICES: 1}
    raw, answers, choices = sorted(asked)
    assert raw == ("", 2) and answers == ("--task.train_on completions --data.truncate left", 2)
    assert choices == ("--task.type choice --data.truncate left --data.train []", 1), "documents are no labels"
    assert script.text_of(["One.", "Two."]) == "One. Two."
    assert len(script.some(options.questions, 1)) == 1


def test_a_question_is_a_prompt_with_its_context() -> None:
    example = script.question({"context": "A town.", "question": "What is it?", "answer": "A town"})
    assert (example.instruction, example.output) == ("A town.\n\nQuestion: What is it?\nAnswer:", "A town")
    assert script.raw("x").messages[0].content == "x"


def test_steps_see_equally_many_tokens(tmp_path: Path) -> None:
    byte_tokenizer().save_pretrained(tmp_path)
    texts = ["x" * 98, "y" * 298, "z" * 700]  # with a line break before and an end after: 100, 300, and cut to 400
    write_jsonl(tmp_path / "raw.jsonl", [script.raw(text).to_record() for text in texts])
    options = Namespace(network=tmp_path, max_length=400, rows=2, tokens=16_000)
    assert script.steps_of(tmp_path / "raw.jsonl", options) == 20  # two rows of 400
    write_jsonl(tmp_path / "raw.jsonl", [script.raw(text).to_record() for text in (*texts[1:], texts[1])])
    assert script.steps_of(tmp_path / "raw.jsonl", options) == 24  # three rows with 1,000 of 1,200
