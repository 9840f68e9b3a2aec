"""What a language model writes, as pairs."""

from pathlib import Path
from typing import Any

import pytest
from synthesis_texts import RIVER, TOWN

from instructrec_jax.inference.writer import Generated
from instructrec_jax.synthesis import model_pairs as module
from instructrec_jax.synthesis.grounding import problem
from instructrec_jax.synthesis.model_pairs import ModelSynthesizer, read_pairs, synthesizer_prompt, written_pairs
from instructrec_jax.synthesis.passages import Passage


def test_what_is_written_is_read() -> None:
    pairs = [("When?", "in 1457"), ("Where\nis it?", "in the\tsouth"), ("它在哪里？", "长江中游")]
    found, dropped = read_pairs(written_pairs(pairs))
    assert not dropped and [pair.check for pair in found] == ["in_text"] * 3
    assert [(p.instruction, p.answer) for p in found] == [
        ("When?", "in 1457"),
        ("Where is it?", "in the south"),
        ("它在哪里？", "长江中游"),
    ]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("When was it founded? In 1457.", module.NO_TAB),
        ("When?\t", module.NO_TAB),
        ("\tIn 1457", module.NO_TAB),
        ("When?\tin\t1457", module.NO_TAB),
        ("Is it old?\tYes.", module.YES_NO_ANSWER),
        ("它老吗？\t是。", module.YES_NO_ANSWER),
        ("When?\t" + "word " * 61, module.TOO_LONG),
        ("字" * 181 + "\t是的吗", module.TOO_LONG),
        (f"{module.ASK['en']}\tin 1457", module.COPIED),
    ],
)
def test_lines_that_are_no_pairs(line: str, reason: str) -> None:
    found, dropped = read_pairs(f"When?\tin 1457\n\n{line}\n")
    assert [pair.answer for pair in found] == ["in 1457"] and dropped == {reason: 1}


def test_a_last_line_that_was_cut_off_is_left_out() -> None:
    found, dropped = read_pairs("When?\tin 1457\nWhere?\tin the so", finished=False)
    assert [pair.answer for pair in found] == ["in 1457"] and dropped == {module.CUT_OFF: 1}
    assert read_pairs("", finished=False) == ([], {})


def test_summaries_may_use_other_words() -> None:
    (short, exact), _ = read_pairs("Summarize the text.\tA town of students and maps\nWho?\ttown of maps")
    assert short.check == "summary" and not problem(short, Passage(TOWN))
    assert exact.check == "in_text" and problem(exact, Passage(TOWN))
    ((chinese,), _) = read_pairs("请概括这篇文章。\t长江流经11个省市")
    assert chinese.check == "summary" and not problem(chinese, Passage(RIVER))


def test_the_model_is_asked_in_the_language_of_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    class Model:
        def __init__(self, path: Path) -> None: ...

        def generate(self, prompts: Any, config: Any, **more: Any) -> list[Generated]:
            asked.append((prompts, config, more))
            return [Generated("When?\tin 1457\nW", "length", 0.0), Generated("何时？\t1957年", "eos", 0.0)]

    monkeypatch.setattr(module, "LanguageModel", Model)
    passages = [Passage(TOWN, source="file, line 1"), Passage(RIVER, 2, source="b")]
    (one, cut), (other, none) = ModelSynthesizer(Path("run"), 50)(passages)
    assert [pair.answer for pair in (*one, *other)] == ["in 1457", "1957年"] and (cut, none) == (
        {module.CUT_OFF: 1},
        {},
    )
    ((prompts, config, more),) = asked
    assert [p.instruction for p in prompts] == [module.ASK["en"], module.ASK["zh"]] and config.max_new_tokens == 50
    assert prompts == [synthesizer_prompt(each) for each in passages] and prompts[0].input == TOWN
    assert more["names"] == ["passage 1 of file, line 1", "passage 3 of b"]
